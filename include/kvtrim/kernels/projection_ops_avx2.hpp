// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// projection_ops in AVX2: as kernels/projection_ops_avx512.hpp, 6 rows times a panel [inner][16] of the matrix.
//
// Numerics: as kernels/projection_ops.hpp; each row sums in 8 lanes.

#include <kvtrim/kernels/avx2.hpp>
#include <kvtrim/kernels/projection_ops.hpp>

#include <cmath>

#if KVTRIM_HAS_X86

namespace kvtrim::kernels::avx2 {

KVTRIM_TARGET_AVX2 inline void pack_matrix(const float* rows, index_t stride, index_t first_row,
                                           index_t count, index_t inner, index_t columns, float* packed) {
    const index_t whole = (columns + panel_columns - 1) / panel_columns * panel_columns;
    for (index_t c = 0; c < whole; c += 8) { // half a panel; columns that are not there become 0
        const first_lanes some(columns - c);
        float* to = packed + c / panel_columns * panel_columns * inner + c % panel_columns;
        to += first_row * panel_columns;
        for (index_t i = 0; i < count; ++i) {
            _mm256_storeu_ps(to + i * panel_columns, some.load(rows + i * stride + c));
        }
    }
}

// What happens to a product C [rows, 16]: sums [rows][8] += |C| folded to 8 lanes, or += C * x.
enum class fold { absolute, times_row };

template <fold Fold, std::size_t Rows>
KVTRIM_TARGET_AVX2 inline void fold_products(const matrix_in& x, const float* panel, index_t inner,
                                             index_t first_column, index_t columns, index_t first_row,
                                             float* sums) {
    __m256 product[2][Rows];
    products<Rows, 2>(x, first_row, panel, inner, product);
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    KVTRIM_UNROLL // else the products go through memory
        for (std::size_t v = 0; v < 2; ++v) {
        const index_t column = first_column + static_cast<index_t>(8 * v);
        const first_lanes some(columns - column);
        // A column that is not there is infinity times 0 in a broken row.
        const __m256 present = _mm256_castsi256_ps(some.mask());
        KVTRIM_UNROLL
        for (std::size_t i = 0; i < Rows; ++i) {
            const index_t row = first_row + static_cast<index_t>(i);
            const __m256 sum = _mm256_loadu_ps(sums + row * 8);
            const __m256 p = _mm256_and_ps(product[v][i], present);
            if constexpr (Fold == fold::absolute) {
                _mm256_storeu_ps(sums + row * 8, _mm256_add_ps(sum, _mm256_and_ps(p, magnitude)));
            } else {
                const __m256 other = some.load(x.data + row * x.row + column);
                _mm256_storeu_ps(sums + row * 8, _mm256_fmadd_ps(p, other, sum));
            }
        }
    }
}

// sums [rows][8] of all panels.
template <fold Fold>
KVTRIM_TARGET_AVX2 inline void fold_matrix(const matrix_in& x, index_t rows, const float* packed,
                                           index_t inner, index_t columns, float* sums) {
    std::fill_n(sums, rows * 8, 0.0f);
    for (index_t c = 0; c < columns; c += panel_columns) {
        const float* const panel = packed + c * inner;
        index_t r = 0;
        for (; r + 6 <= rows; r += 6) { fold_products<Fold, 6>(x, panel, inner, c, columns, r, sums); }
        for (; r + 2 <= rows; r += 2) { fold_products<Fold, 2>(x, panel, inner, c, columns, r, sums); }
        if (r < rows) { fold_products<Fold, 1>(x, panel, inner, c, columns, r, sums); }
    }
}

KVTRIM_TARGET_AVX2 inline void add_l1(const float* x, index_t x_stride, index_t rows, const float* packed,
                                      index_t inner, index_t columns, float* scratch, float* norms) {
    fold_matrix<fold::absolute>({x, x_stride, 1}, rows, packed, inner, columns, scratch);
    for (index_t r = 0; r < rows; ++r) { norms[r] += sum_of_lanes(_mm256_loadu_ps(scratch + r * 8)); }
}

KVTRIM_TARGET_AVX2 inline void add_gram_l2(const float* x, index_t x_stride, index_t rows,
                                           const float* packed, index_t dim, float* scratch, float* norms) {
    fold_matrix<fold::times_row>({x, x_stride, 1}, rows, packed, dim, dim, scratch);
    for (index_t r = 0; r < rows; ++r) {
        norms[r] += std::sqrt(std::max(sum_of_lanes(_mm256_loadu_ps(scratch + r * 8)), 0.0f));
    }
}

} // namespace kvtrim::kernels::avx2

#endif // KVTRIM_HAS_X86
