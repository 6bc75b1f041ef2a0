// expect: kvtrim: NaN keys and ties need IEEE arithmetic
// flags: -ffast-math
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/baselines.hpp>
