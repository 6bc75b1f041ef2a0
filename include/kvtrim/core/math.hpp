// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// sqrt, exp, abs, floor, round, fmax and isfinite, as the compiler's own, for the headers that every plan includes: <cmath> brings
// its special functions along, and with them a thirtieth of the time that a file takes which plans snapkv. Others include <cmath>.

#include <kvtrim/core/region.hpp>

namespace KVTRIM_NAMESPACE::detail::math {

// clang-format off
[[nodiscard]] inline float sqrt(float x) { return __builtin_sqrtf(x); }
[[nodiscard]] inline double sqrt(double x) { return __builtin_sqrt(x); }
[[nodiscard]] inline double exp(double x) { return __builtin_exp(x); }
[[nodiscard]] inline double abs(double x) { return __builtin_fabs(x); }
[[nodiscard]] inline double floor(double x) { return __builtin_floor(x); }
[[nodiscard]] inline double round(double x) { return __builtin_round(x); }
[[nodiscard]] inline float fmax(float a, float b) { return __builtin_fmaxf(a, b); }
[[nodiscard]] inline bool isfinite(float x) { return __builtin_isfinite(x); }
// clang-format on

} // namespace KVTRIM_NAMESPACE::detail::math
