// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What the BFMMLA kernels share: products of bf16, 8 by 8, by the instruction of ARM.
//
//   C [8][8] += A [8][8] * B [8][8]     BFMMLA: C [2][2] += A [2][4] * B [4][2]; 16 pairs of C stay in registers
//   packed   panels of 8 columns, [inner / 4][4 pairs of columns][2][4 of inner], `inner` padded with zeros to whole eights
//
// A (keys, values) is read in place, eight rows with all panels.
//
// Numerics: products of bf16 are exact; two of them, and these sums to C, are added in float with an error below one unit in
// the last place instead of half of one ("round to odd"). Elements and sums below 2^-126 count as 0.
// Cost per 8 rows, 8 columns and 8 of inner: 32 BFMMLA, each 16 multiply-adds, and 24 loads and shuffles.
// Not used: BFDOT, which does half as much per instruction with the same rounding, and arithmetic in f16, whose 11 bits would
// break what the headers promise of scores (tests ask for 1e-6 of the size of a sum).

#include <kvtrim/core/element.hpp>
#include <kvtrim/kernels/bf16_rows.hpp>
#include <kvtrim/kernels/panel_product.hpp>
#include <kvtrim/simd/region.hpp>

#include <algorithm>

#if KVTRIM_HAS_NEON

namespace KVTRIM_NAMESPACE::kernels::bfmmla {

inline constexpr index_t edge = 8; ///< rows and columns of C, and elements of a step of `inner`

/// The next multiple of `edge`.
[[nodiscard]] constexpr index_t whole_steps(index_t count) {
    return (count + edge - 1) / edge * edge;
}

/// Index of element (inner, column) in a packed matrix of so many rows.
[[nodiscard]] constexpr index_t packed_index(index_t inner_dim, index_t inner, index_t column) {
    return column / edge * edge * whole_steps(inner_dim) + inner / 4 * 4 * edge + column % edge * 4 +
           inner % 4;
}

KVTRIM_BEGIN_NEON_BF16

/// C [4 pairs of rows][4 pairs of columns], each [2][2].
using sums_of_panel = float32x4_t[16];

KVTRIM_INLINE uint16x8_t load_eight(const bf16* from) {
    return vld1q_u16(reinterpret_cast<const std::uint16_t*>(from));
}

/// C += so many elements of eight rows times 8 [inner] of a panel.
KVTRIM_INLINE void multiply_step(const bf16* const (&rows)[8], index_t at, const bf16* panel,
                                 sums_of_panel& c) {
    uint64x2_t low[4], high[4]; // elements 0 to 3, and 4 to 7, of a pair of rows
    KVTRIM_UNROLL
    for (int p = 0; p < 4; ++p) {
        const uint64x2_t first = vreinterpretq_u64_u16(load_eight(rows[2 * p] + at));
        const uint64x2_t second = vreinterpretq_u64_u16(load_eight(rows[2 * p + 1] + at));
        low[p] = vzip1q_u64(first, second);
        high[p] = vzip2q_u64(first, second);
    }
    KVTRIM_UNROLL
    for (int n = 0; n < 16; ++n) {
        simd::neon::bfmmla(c[n], vreinterpretq_u16_u64(low[n / 4]), load_eight(panel + n % 4 * edge));
    }
    KVTRIM_UNROLL
    for (int n = 0; n < 16; ++n) {
        simd::neon::bfmmla(c[n], vreinterpretq_u16_u64(high[n / 4]), load_eight(panel + (4 + n % 4) * edge));
    }
}

/// C = rows [first, first + 8) of A times a panel; rows behind the last one repeat it.
KVTRIM_INLINE void multiply_panel(const bf16_rows& a, index_t first, const bf16* panel, sums_of_panel& c) {
    const bf16* rows[8];
    KVTRIM_UNROLL
    for (int i = 0; i < 8; ++i) { rows[i] = a.data + std::min(first + i, a.count - 1) * a.stride; }
    KVTRIM_UNROLL
    for (int n = 0; n < 16; ++n) { c[n] = vdupq_n_f32(0.0f); }
    index_t d = 0;
    for (; d + edge <= a.length; d += edge, panel += edge * edge) { multiply_step(rows, d, panel, c); }
    if (d < a.length) {
        bf16 part[8][8] = {};
        KVTRIM_UNROLL
        for (int i = 0; i < 8; ++i) { std::copy(rows[i] + d, rows[i] + a.length, part[i]); }
        const bf16* const parts[8] = {part[0], part[1], part[2], part[3], part[4], part[5], part[6], part[7]};
        multiply_step(parts, 0, panel, c);
    }
}

KVTRIM_END_REGION

} // namespace KVTRIM_NAMESPACE::kernels::bfmmla

#endif // KVTRIM_HAS_NEON
