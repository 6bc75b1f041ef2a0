// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What the output loses when one token alone is evicted, for each query row of a tile of attention.
//
//   error [t, r] = (p / (1 - p))^2 |v - o|^2      p = attention [t, r], |v - o|^2 = |v|^2 - 2 <v, o> + |o|^2
//
// Of a weight above 1 - 2^-8, whose o is v but for rounding, the error is p^2 |v|^2. NaN counts as 0.
// Numerics: float; a negative distance, which is rounding error, counts as 0.

#include <kvtrim/kernels/window_kernels.hpp>

#define KVTRIM_BODY <kvtrim/kernels/eviction_errors.inl>
#include <kvtrim/simd/for_each_target.inl>

namespace KVTRIM_NAMESPACE::kernels {

/// Turns attention [tokens, rows] into errors, for the rows [begin, end): |v|^2 = squares [tokens], <v, o> = products
/// [tokens, rows], |o|^2 = outputs [rows].
inline void eviction_errors(float* attention, const float* products, index_t tokens, index_t rows,
                            index_t begin, index_t end, const float* squares, const float* outputs) {
    (KVTRIM_CHOOSE(active_cpu_level(), eviction_errors))(attention, products, tokens, rows, begin, end,
                                                         squares, outputs);
}

} // namespace KVTRIM_NAMESPACE::kernels
