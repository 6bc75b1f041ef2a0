// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The standard deviation over the channels of each row, after each channel was scaled to a range: LagKV's score.
//
//   out [i] = sqrt(sum over d of (x [i, d] - mean of x [i])^2 / (length - 1)),   x [i, d] = (row [i, d] - low [d]) * scale [d]
//
// Numerics: double.

#include <kvtrim/simd/choose.hpp>
#include <kvtrim/simd/simd.hpp>

#include <cmath>

#define KVTRIM_BODY <kvtrim/kernels/deviations.inl>
#include <kvtrim/simd/for_each_target.inl>

namespace KVTRIM_NAMESPACE::kernels {

/// out [count] = the unbiased standard deviation of each row [length], 0 for one channel; low and scale [length].
inline void deviations(const float* rows, index_t stride, index_t count, index_t length, const double* low,
                       const double* scale, double* out) {
    (KVTRIM_CHOOSE(active_cpu_level(), deviations))(rows, stride, count, length, low, scale, out);
}

} // namespace KVTRIM_NAMESPACE::kernels
