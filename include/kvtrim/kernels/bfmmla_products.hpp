// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Products of bf16 by ARM's BFMMLA: the logits of kernels/window_kernels.hpp and the L1 norms of kernels/projection_kernels.hpp where
// both factors are bf16; all other steps are those of NEON.
//
//   C [8][8] += A [8][8] * B [8][8]     BFMMLA: C [2][2] += A [2][4] * B [4][2]; 16 pairs of C stay in registers
//   packed   panels of 8 columns, [inner / 4][4 pairs of columns][2][4 of inner], `inner` padded with zeros to whole eights
//
// A (keys, values) is read in place, eight rows with all panels. The scale of logits comes after the product, because scaled
// queries would have to be rounded.
//
// Numerics: products of bf16 are exact; two of them, and these sums to C, are added in float with an error below one unit in
// the last place instead of half of one ("round to odd"). Elements and sums below 2^-126 count as 0.
// Cost per 8 rows, 8 columns and 8 of inner: 32 BFMMLA, each 16 multiply-adds, and 24 loads and shuffles.
// Not used: BFDOT, which does half as much per instruction with the same rounding, and arithmetic in f16, whose 11 bits would
// break what the headers promise of scores (tests ask for 1e-6 of the size of a sum).

#include <kvtrim/core/element.hpp>
#include <kvtrim/kernels/panel_product.hpp>
#include <kvtrim/kernels/soon_read.hpp>
#include <kvtrim/kernels/unpack_matrix.hpp>
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

/// window_kernels::pack_bf16_queries.
inline void pack_queries(const bf16* queries, index_t query_stride, index_t first_row, index_t count,
                         index_t head_dim, bf16* packed) {
    for (index_t i = 0; i < count; ++i) {
        for (index_t d = 0; d < whole_steps(head_dim); ++d) {
            packed[packed_index(head_dim, d, first_row + i)] =
                d < head_dim ? queries[i * query_stride + d] : bf16{0};
        }
    }
}

/// projection_kernels::pack_bf16.
inline void pack_matrix(const float* rows, index_t stride, index_t first_row, index_t count, index_t inner,
                        index_t columns, bf16* packed) {
    const bool is_last = first_row + count == inner; // then the padding is written, too
    for (index_t i = first_row; i < (is_last ? whole_steps(inner) : first_row + count); ++i) {
        for (index_t c = 0; c < whole_steps(columns); ++c) {
            const bool is_there = i < inner && c < columns;
            packed[packed_index(inner, i, c)] =
                is_there ? element_traits<bf16>::from_float(rows[(i - first_row) * stride + c]) : bf16{0};
        }
    }
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

/// Rows of bf16 in memory; row t starts at t * stride.
struct rows_in {
    const bf16* data; ///< element (0, 0)
    index_t stride;   ///< elements from row to row
    index_t count;    ///< rows
    index_t length;   ///< elements of a row
};

/// C = rows [first, first + 8) of A times a panel; rows behind the last one repeat it.
KVTRIM_INLINE void multiply_panel(const rows_in& a, index_t first, const bf16* panel, sums_of_panel& c) {
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

/// window_kernels::bf16_logits.
inline void logits(const bf16* keys, index_t key_stride, index_t tokens, const bf16* packed, index_t rows,
                   index_t head_dim, float scale, float soft_cap, float* out, soon_read next) {
    even_prefetch soon(next, (tokens + edge - 1) / edge);
    const float32x4_t unit = vdupq_n_f32(scale);
    for (index_t t = 0; t < tokens; t += edge) {
        soon.step();
        for (index_t r = 0; r < rows; r += edge) {
            sums_of_panel c;
            multiply_panel({keys, key_stride, tokens, head_dim}, t, packed + r * whole_steps(head_dim), c);
            float* const to = out + t * rows + r;
            const auto put = [&](index_t token, index_t column, float64x2_t x, auto some) KVTRIM_INLINED {
                if (t + token < tokens) {
                    some.store(to + token * rows + column, vreinterpretq_f32_f64(x) * unit);
                }
            };
            const auto put_all = [&](auto lanes_of) KVTRIM_INLINED {
                KVTRIM_UNROLL
                for (int n = 0; n < 16; n += 2) { // two rows of four columns
                    const float64x2_t left = vreinterpretq_f64_f32(c[n]),
                                      right = vreinterpretq_f64_f32(c[n + 1]);
                    const index_t token = n / 4 * 2, column = n % 4 * 2;
                    put(token, column, vzip1q_f64(left, right), lanes_of(column));
                    put(token + 1, column, vzip2q_f64(left, right), lanes_of(column));
                }
            };
            if (r + edge <= rows) {
                put_all([](index_t) KVTRIM_INLINED { return neon::all_lanes{}; });
            } else {
                put_all([&](index_t column) { return neon::first_lanes(rows - r - column); });
            }
        }
    }
    if (soft_cap > 0) { neon::cap_logits(out, tokens * rows, {soft_cap}); }
}

/// sums [4 pairs of rows][2][2] += |C|, of as many columns as there are: 0 times an infinite element of the row is NaN, so
/// padding is left out.
KVTRIM_INLINE void fold_absolute(const sums_of_panel& c, index_t columns, float* sums) {
    const auto fold_all = [&](auto kept) KVTRIM_INLINED {
        KVTRIM_UNROLL
        for (int p = 0; p < 4; ++p) {
            float32x4_t sum = vld1q_f32(sums + 4 * p);
            KVTRIM_UNROLL
            for (int q = 0; q < 4; ++q) { sum = sum + kept(q, vabsq_f32(c[4 * p + q])); }
            vst1q_f32(sums + 4 * p, sum);
        }
    };
    if (columns >= edge) {
        fold_all([](int, float32x4_t x) KVTRIM_INLINED { return x; });
    } else {
        fold_all([&](int q, float32x4_t x) KVTRIM_INLINED {
            const uint32x4_t column = uint32x4_t{0, 1, 0, 1} + static_cast<std::uint32_t>(2 * q);
            return neon::keep(vcltq_u32(column, vdupq_n_u32(static_cast<std::uint32_t>(columns))), x);
        });
    }
}

/// The same of eight rows of A from `first` on times a panel. Not inlined: in the loops of its caller g++ 12 spills row pointers.
KVTRIM_NOINLINE inline void fold_panel(const rows_in& a, index_t first, const bf16* panel, index_t columns,
                                       float* sums) {
    sums_of_panel c;
    multiply_panel(a, first, panel, c);
    fold_absolute(c, columns, sums);
}

/// projection_kernels::add_bf16_l1.
inline void add_l1(const bf16* x, index_t x_stride, index_t rows, const bf16* packed, index_t inner,
                   index_t columns, float* scratch, float* norms) {
    constexpr index_t rows_at_once = 64; // with a panel they stay in the first level cache
    const rows_in a{x, x_stride, rows, inner};
    std::fill_n(scratch, whole_steps(rows) * 2, 0.0f);
    for (index_t begin = 0; begin < rows; begin += rows_at_once) {
        const index_t end = std::min(begin + rows_at_once, rows);
        for (index_t column = 0; column < columns; column += edge) {
            const bf16* const panel = packed + column * whole_steps(inner);
            for (index_t r = begin; r < end; r += edge) {
                fold_panel(a, r, panel, columns - column, scratch + 2 * r);
            }
        }
    }
    for (index_t r = 0; r < rows; ++r) { norms[r] += scratch[2 * r] + scratch[2 * r + 1]; }
}

KVTRIM_END_REGION

/// The steps of a target's window_kernels, with these products.
template <const auto& Steps>
inline constexpr auto with_logits = [] {
    auto steps = Steps;
    steps.pack_bf16_queries = pack_queries;
    steps.bf16_logits = logits;
    return steps;
}();

/// The steps of a target's projection_kernels, with these products.
template <const auto& Steps>
inline constexpr auto with_norms = [] {
    auto steps = Steps;
    steps.pack_bf16 = pack_matrix;
    steps.unpack_bf16 = unpack_matrix<packed_index>;
    steps.add_bf16_l1 = add_l1;
    return steps;
}();

} // namespace KVTRIM_NAMESPACE::kernels::bfmmla

#endif // KVTRIM_HAS_NEON
