// expect: kvtrim: window_attention needs an aggregator with writes_attention, validate, halo, lanes, add and finish
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/snapkv.hpp>

// Pooling is a field of an aggregator, not one itself.
inline constexpr kvtrim::window_attention scorer{kvtrim::pooling::average};
