// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Rotations of the channel pairs of one row.
//
// A turn is two rows [pairs] of cosines and sines in double. Two turns are combined by angle addition while a row is
// rotated, and rounded to float once; the row itself is float.

#include <kvtrim/simd/choose.hpp>
#include <kvtrim/simd/simd.hpp>

namespace KVTRIM_NAMESPACE::kernels {

/// The angles of one rotation.
struct turn_row {
    const double* cosine; ///< [pairs]
    const double* sine;   ///< [pairs]
};

} // namespace KVTRIM_NAMESPACE::kernels

#define KVTRIM_BODY <kvtrim/kernels/turn_row.inl>
#include <kvtrim/simd/for_each_target.inl>

namespace KVTRIM_NAMESPACE::kernels {

/// Rotates the pairs (row[i], row[pairs + i]) by both turns together.
inline void rotate_half_split(turn_row a, turn_row b, index_t pairs, float* row) {
    (KVTRIM_CHOOSE(active_cpu_level(), rotate<false>))(a, b, pairs, row);
}

/// Rotates the pairs (row[2 i], row[2 i + 1]) by both turns together.
inline void rotate_interleaved(turn_row a, turn_row b, index_t pairs, float* row) {
    (KVTRIM_CHOOSE(active_cpu_level(), rotate<true>))(a, b, pairs, row);
}

} // namespace KVTRIM_NAMESPACE::kernels
