// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The L1 norms of kernels/projection_kernels.hpp by BFMMLA, for rows and a matrix of bf16; all other steps are those of NEON.
//
// Rows are read in place, 64 at a time with all panels of the matrix. Products are reduced in registers. Numerics and cost:
// kernels/bfmmla_products.hpp.

#include <kvtrim/kernels/bfmmla_products.hpp>

#if KVTRIM_HAS_NEON

namespace KVTRIM_NAMESPACE::kernels::bfmmla {

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
KVTRIM_NOINLINE inline void fold_panel(const bf16_rows& a, index_t first, const bf16* panel, index_t columns,
                                       float* sums) {
    sums_of_panel c;
    multiply_panel(a, first, panel, c);
    fold_absolute(c, columns, sums);
}

/// projection_kernels::add_bf16_l1.
inline void add_l1(const bf16* x, index_t x_stride, index_t rows, const bf16* packed, index_t inner,
                   index_t columns, float* scratch, float* norms) {
    constexpr index_t rows_at_once = 64; // with a panel they stay in the first level cache
    const bf16_rows a{x, x_stride, rows, inner};
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
