// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Products of bf16 by ARM's BFMMLA, 8 by 8; all other steps are those of NEON.
//
//   C [8][8] += A [8][8] * B [8][8]     BFMMLA: C [2][2] += A [2][4] * B [4][2]; 16 pairs of C stay in registers while `inner` runs
//
// A (keys, values) is read in place: eight rows are multiplied by all panels before the next eight.
//
// Numerics: products of bf16 are exact; two of them, and these sums to C, are added in float with an error below one unit in
// the last place instead of half of one ("round to odd"). Elements and sums below 2^-126 count as 0.
// Cost per 8 rows, 8 columns and 8 of inner: 32 BFMMLA, each 16 multiply-adds, and 24 loads and shuffles.
// Not used: BFDOT, which does half as much per instruction with the same rounding, and arithmetic in f16, whose 11 bits would
// break what the headers promise of scores (tests ask for 2e-6 of the size of a sum). Flash tiles of bf16 are widened to floats
// on ARM: BFMMLA's order of elements would have to be packed anew for each key tile, which was not tried.

#include <kvtrim/core/element.hpp>
#include <kvtrim/core/region.hpp>
#include <kvtrim/kernels/bf16_rows.hpp>
#include <kvtrim/kernels/panel_product.hpp>

#include <algorithm>

#if KVTRIM_HAS_NEON

KVTRIM_BEGIN_NEON_BF16

namespace KVTRIM_NAMESPACE::kernels::bfmmla {

using namespace neon;
using order = packed_order<8, 8, 4>; ///< of B

inline constexpr index_t edge = 8;     ///< of C, and a step of `inner`
inline constexpr index_t row_sums = 2; ///< in which fold_absolute() sums a row

/// All that a product needs is in vector registers: there are no tiles to configure.
struct tiles {
    static void configure() {} ///< does nothing
    static void release() {}   ///< does nothing
};

/// C [4 pairs of rows][4 pairs of columns], each [2][2].
using sums_of_panel = floats[16];

KVTRIM_INLINE uint16x8_t load_eight(const bf16* from) {
    return vld1q_u16(reinterpret_cast<const std::uint16_t*>(from));
}

/// C += elements [at, at + 8) of eight rows times the same 8 rows of a panel.
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

/// C = rows [first, first + 8) of A times a panel; rows behind the last one repeat it. Not inlined: with what its callers do
/// around it g++ 12 spills sums and row pointers.
template <class Tiles>
KVTRIM_NOINLINE void multiply_panel(const bf16_rows& a, index_t first, const bf16* panel,
                                    sums_of_panel& out) {
    const bf16* rows[8];
    KVTRIM_UNROLL
    for (int i = 0; i < 8; ++i) { rows[i] = a.data + std::min(first + i, a.count - 1) * a.stride; }
    sums_of_panel c;
    KVTRIM_UNROLL
    for (int n = 0; n < 16; ++n) { c[n] = broadcast(0.0f); }
    index_t d = 0;
    for (; d + edge <= a.length; d += edge, panel += edge * edge) { multiply_step(rows, d, panel, c); }
    if (d < a.length) {
        bf16 padded[8][8] = {};
        KVTRIM_UNROLL
        for (int i = 0; i < 8; ++i) { std::copy(rows[i] + d, rows[i] + a.length, padded[i]); }
        const bf16* padded_rows[8];
        KVTRIM_UNROLL
        for (int i = 0; i < 8; ++i) { padded_rows[i] = padded[i]; }
        multiply_step(padded_rows, 0, panel, c);
    }
    KVTRIM_UNROLL
    for (int n = 0; n < 16; ++n) { out[n] = c[n]; }
}

/// Calls put(row, column, vector, lanes) for the first rows and columns of C.
template <class Put>
KVTRIM_INLINE void for_each_vector_of(const sums_of_panel& c, index_t rows, index_t columns, const Put& put) {
    const auto put_all = [&](auto lanes_of) KVTRIM_INLINED {
        KVTRIM_UNROLL
        for (int n = 0; n < 16; n += 2) { // two rows of four columns
            const float64x2_t left = vreinterpretq_f64_f32(c[n]), right = vreinterpretq_f64_f32(c[n + 1]);
            const index_t row = n / 4 * 2, column = n % 4 * 2;
            const floats two[] = {vreinterpretq_f32_f64(vzip1q_f64(left, right)),
                                  vreinterpretq_f32_f64(vzip2q_f64(left, right))};
            if (row < rows) { put(row, column, two[0], lanes_of(column)); }
            if (row + 1 < rows) { put(row + 1, column, two[1], lanes_of(column)); }
        }
    };
    if (columns >= edge) {
        put_all([](index_t) KVTRIM_INLINED { return all_lanes{}; });
    } else {
        put_all([&](index_t column) { return first_lanes(columns - column); });
    }
}

/// sums [4 pairs of rows][2][2] += |C|, of as many columns as there are: 0 times an infinite element of the row is NaN, so
/// padding is left out. The sums of rows that are not there are written, too.
KVTRIM_INLINE void fold_absolute(const sums_of_panel& c, index_t, index_t columns, float* sums) {
    const auto fold_all = [&](auto kept) KVTRIM_INLINED {
        KVTRIM_UNROLL
        for (int p = 0; p < 4; ++p) {
            floats sum = load(sums + 4 * p);
            KVTRIM_UNROLL
            for (int q = 0; q < 4; ++q) { sum = sum + kept(q, absolute(c[4 * p + q])); }
            store(sums + 4 * p, sum);
        }
    };
    if (columns >= edge) {
        fold_all([](int, floats x) KVTRIM_INLINED { return x; });
    } else {
        fold_all([&](int q, floats x) KVTRIM_INLINED {
            const uints column = uints{0, 1, 0, 1} + static_cast<std::uint32_t>(2 * q);
            return keep(vcltq_u32(column, vdupq_n_u32(static_cast<std::uint32_t>(columns))), x);
        });
    }
}

/// The norm of a row.
KVTRIM_INLINE float folded(const float* sums) {
    return sums[0] + sums[1];
}

} // namespace KVTRIM_NAMESPACE::kernels::bfmmla

KVTRIM_END_REGION

#endif // KVTRIM_HAS_NEON
