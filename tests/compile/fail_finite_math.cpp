// expect: kvtrim: NaN keys and ties need IEEE arithmetic
// flags: -ffinite-math-only
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/core/status.hpp>
