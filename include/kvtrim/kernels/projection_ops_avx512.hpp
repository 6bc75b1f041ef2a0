// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// projection_ops in AVX-512: 8 rows times a panel [inner][32] of the matrix, which stays in the first level cache while
// all rows of a tile pass it. The products are folded as they leave the registers; none is written.
//
// Numerics: as kernels/projection_ops.hpp; each row sums in 16 lanes.

#include <kvtrim/kernels/avx512.hpp>
#include <kvtrim/kernels/projection_ops.hpp>

#include <cmath>

#if KVTRIM_HAS_X86

namespace kvtrim::kernels::avx512 {

KVTRIM_TARGET_AVX512 inline void pack_matrix(const float* rows, index_t stride, index_t first_row,
                                             index_t count, index_t inner, index_t columns, float* packed) {
    for (index_t c = 0; c < columns; c += 16) { // half a panel; columns that are not there become 0
        const __mmask16 mask = first_lanes(columns - c);
        float* to = packed + c / panel_columns * panel_columns * inner + c % panel_columns;
        to += first_row * panel_columns;
        for (index_t i = 0; i < count; ++i) {
            _mm512_storeu_ps(to + i * panel_columns, _mm512_maskz_loadu_ps(mask, rows + i * stride + c));
        }
    }
}

// What happens to a product C [rows, 32]: sums [rows][16] += |C| folded to 16 lanes, or += C * x.
enum class fold { absolute, times_row };

template <fold Fold, std::size_t Rows>
KVTRIM_TARGET_AVX512 inline void fold_products(const matrix_in& x, const float* panel, index_t inner,
                                               index_t first_column, index_t columns, index_t first_row,
                                               float* sums) {
    __m512 product[2][Rows];
    products<Rows, 2>(x, first_row, panel, inner, product);
    KVTRIM_UNROLL
    for (std::size_t i = 0; i < Rows; ++i) {
        const index_t row = first_row + static_cast<index_t>(i);
        __m512 sum = _mm512_loadu_ps(sums + row * 16);
        for (std::size_t v = 0; v < 2;
             ++v) { // a column that is not there is infinity times 0 in a broken row
            const index_t column = first_column + static_cast<index_t>(16 * v);
            const __mmask16 mask = first_lanes(columns - column);
            if constexpr (Fold == fold::absolute) {
                sum = _mm512_mask_add_ps(sum, mask, sum, _mm512_abs_ps(product[v][i]));
            } else {
                const __m512 other = _mm512_maskz_loadu_ps(mask, x.data + row * x.row + column);
                sum = _mm512_mask3_fmadd_ps(product[v][i], other, sum, mask);
            }
        }
        _mm512_storeu_ps(sums + row * 16, sum);
    }
}

// sums [rows][16] of all panels.
template <fold Fold>
KVTRIM_TARGET_AVX512 inline void fold_matrix(const matrix_in& x, index_t rows, const float* packed,
                                             index_t inner, index_t columns, float* sums) {
    std::fill_n(sums, rows * 16, 0.0f);
    for (index_t c = 0; c < columns; c += panel_columns) {
        const float* const panel = packed + c * inner;
        index_t r = 0;
        for (; r + 8 <= rows; r += 8) { fold_products<Fold, 8>(x, panel, inner, c, columns, r, sums); }
        for (; r < rows; ++r) { fold_products<Fold, 1>(x, panel, inner, c, columns, r, sums); }
    }
}

KVTRIM_TARGET_AVX512 inline void add_l1(const float* x, index_t x_stride, index_t rows, const float* packed,
                                        index_t inner, index_t columns, float* scratch, float* norms) {
    fold_matrix<fold::absolute>({x, x_stride, 1}, rows, packed, inner, columns, scratch);
    for (index_t r = 0; r < rows; ++r) { norms[r] += sum_of_lanes(_mm512_loadu_ps(scratch + r * 16)); }
}

KVTRIM_TARGET_AVX512 inline void add_gram_l2(const float* x, index_t x_stride, index_t rows,
                                             const float* packed, index_t dim, float* scratch, float* norms) {
    fold_matrix<fold::times_row>({x, x_stride, 1}, rows, packed, dim, dim, scratch);
    for (index_t r = 0; r < rows; ++r) {
        norms[r] += std::sqrt(std::max(sum_of_lanes(_mm512_loadu_ps(scratch + r * 16)), 0.0f));
    }
}

} // namespace kvtrim::kernels::avx512

#endif // KVTRIM_HAS_X86
