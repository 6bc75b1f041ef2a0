// expect: kvtrim: padded wraps a scorer with one score per token
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/aggregate/worst_case_attention.hpp>
#include <kvtrim/score/padded.hpp>
#include <kvtrim/score/window_attention.hpp>

inline constexpr kvtrim::padded<kvtrim::window_attention<kvtrim::worst_case_attention>> scorer{};
