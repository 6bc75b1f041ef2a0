// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The L1 norms of kernels/projection_kernels.hpp by AMX, for rows and a matrix of bf16.
//
//   packed   panels of 32 columns, [inner / 32][2 halves][16 pairs of rows][16 columns][2]
//
// Rows are read in place, 64 at a time with all panels: at inner 128 these rows (16 KiB) and a panel (8 KiB) stay in the
// first level cache. Products are reduced as soon as they are stored from the tiles, while the next ones are computed.
//
// Numerics: products of bf16 are exact, their sums float; each row sums in 16 lanes. Elements below 2^-126 count as 0.
// Cost per 32 rows and 32 columns at inner 128, in cycles: 256 of products, 64 vectors of C folded; 740 measured.

#include <kvtrim/kernels/amx_products.hpp>

#if KVTRIM_HAS_X86

namespace KVTRIM_NAMESPACE::kernels::amx {

/// projection_kernels::pack_bf16. Packs two rows at a time: first_row is even, and so is count unless the matrix ends there.
KVTRIM_TARGET_AVX512 inline void pack_matrix(const float* rows, index_t stride, index_t first_row,
                                             index_t count, index_t inner, index_t columns, bf16* packed) {
    const bool is_last = first_row + count == inner; // then the padding is written, too
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    for (index_t i = first_row; i < (is_last ? whole_steps(inner) : first_row + count); i += 2) {
        const float* const even = rows + (i - first_row) * stride;
        for (index_t c = 0; c < whole_steps(columns); c += 16) {
            const auto row = [&](index_t r) KVTRIM_TARGET_AVX512 {
                const avx512::first_lanes some(r < inner ? columns - c : 0);
                return _mm512_castps_si512(some.load(even + (r - i) * stride + c));
            };
            const __m512i low = row(i), high = row(i + 1);
            const __m512i pairs =
                _mm512_or_si512(_mm512_maskz_srli_epi32(0xffff, low, 16), _mm512_and_si512(high, upper));
            _mm512_storeu_si512(packed + packed_index(inner, i, c), pairs);
        }
    }
}

/// sums [rows][16] += |c [rows][32]|, of as many columns as there are.
KVTRIM_INLINE_AVX512 void fold_absolute(const float* c, index_t rows, index_t columns, float* sums) {
    const avx512::first_lanes left(columns), right(columns - 16); // zeros elsewhere
    for (index_t t = 0; t < rows; ++t, c += step, sums += 16) {
        const __m512 sum = _mm512_loadu_ps(sums) + _mm512_abs_ps(left.load(c));
        _mm512_storeu_ps(sums, sum + _mm512_abs_ps(right.load(c + 16)));
    }
}

/// projection_kernels::add_bf16_l1. Tiles: simd::amx_tiles, or an emulation.
template <class Tiles>
KVTRIM_TARGET_AMX void add_l1(const bf16* x, index_t x_stride, index_t rows, const bf16* packed,
                              index_t inner, index_t columns, float* scratch, float* norms) {
    constexpr index_t rows_at_once = 64;
    const bf16_rows a{x, x_stride, rows, inner};
    alignas(64) float c[step * step];
    std::fill_n(scratch, rows * 16, 0.0f);
    Tiles::configure();
    for (index_t begin = 0; begin < rows; begin += rows_at_once) {
        const index_t end = std::min(begin + rows_at_once, rows);
        for (index_t column = 0; column < columns; column += step) {
            for (index_t r = begin; r < end; r += step) {
                multiply_panel<Tiles>(a, r, packed + column * whole_steps(inner));
                store_c<Tiles>(c, step * static_cast<index_t>(sizeof(float)));
                fold_absolute(c, std::min(step, end - r), columns - column, scratch + r * 16);
            }
        }
    }
    Tiles::release();
    for (index_t r = 0; r < rows; ++r) {
        norms[r] += avx512::sum_of_lanes(_mm512_loadu_ps(scratch + r * 16));
    }
}

/// The steps of a target's projection_kernels, with these products.
template <const auto& Steps>
inline constexpr auto with_norms = [] {
    auto steps = Steps;
    steps.pack_bf16 = pack_matrix;
    steps.unpack_bf16 = unpack_matrix<packed_index>;
    steps.add_bf16_l1 = add_l1<simd::amx_tiles>;
    return steps;
}();

} // namespace KVTRIM_NAMESPACE::kernels::amx

#endif // KVTRIM_HAS_X86
