// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Rotations of the channel pairs of one row: plain loops, compiled once more for AVX2 and AVX-512.
//
// A turn is two rows [pairs] of cosines and sines in double. Two turns are combined by angle addition while a row is
// rotated, and rounded to float once; the row itself is float.

#include <kvtrim/base/status.hpp>
#include <kvtrim/simd/cpu.hpp>

namespace kvtrim::kernels {

struct turn_row {
    const double* cosine; // [pairs]
    const double* sine;   // [pairs]
};

namespace detail {

// Pair i is (first[i * step], second[i * step]).
template <int step>
[[gnu::always_inline]] inline void rotate_pairs(turn_row a, turn_row b, index_t pairs,
                                                float* __restrict first, float* __restrict second) {
    for (index_t i = 0; i < pairs; ++i) {
        const auto c = static_cast<float>(a.cosine[i] * b.cosine[i] - a.sine[i] * b.sine[i]);
        const auto s = static_cast<float>(a.sine[i] * b.cosine[i] + a.cosine[i] * b.sine[i]);
        const float x = first[i * step];
        const float y = second[i * step];
        first[i * step] = x * c - y * s;
        second[i * step] = y * c + x * s;
    }
}

#if KVTRIM_HAS_X86
template <int step>
KVTRIM_TARGET_AVX2 void rotate_avx2(turn_row a, turn_row b, index_t pairs, float* first, float* second) {
    rotate_pairs<step>(a, b, pairs, first, second);
}
template <int step>
KVTRIM_TARGET_AVX512 void rotate_avx512(turn_row a, turn_row b, index_t pairs, float* first, float* second) {
    rotate_pairs<step>(a, b, pairs, first, second);
}
#endif

template <int step>
void rotate(turn_row a, turn_row b, index_t pairs, float* first, float* second) {
#if KVTRIM_HAS_X86
    const cpu_level level = active_cpu_level();
    if (level >= cpu_level::avx512) { return rotate_avx512<step>(a, b, pairs, first, second); }
    if (level >= cpu_level::avx2) { return rotate_avx2<step>(a, b, pairs, first, second); }
#endif
    rotate_pairs<step>(a, b, pairs, first, second);
}

} // namespace detail

// Rotates the pairs (row[i], row[pairs + i]) by both turns together.
inline void rotate_half_split(turn_row a, turn_row b, index_t pairs, float* row) {
    detail::rotate<1>(a, b, pairs, row, row + pairs);
}

// Rotates the pairs (row[2 i], row[2 i + 1]) likewise.
inline void rotate_interleaved(turn_row a, turn_row b, index_t pairs, float* row) {
    detail::rotate<2>(a, b, pairs, row, row + 1);
}

} // namespace kvtrim::kernels
