// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What the AVX-512 kernels are made of: 2^x, the soft cap, and one small matrix product.
//
//   C [rows][n] = (or +=) A [rows][inner] * B [inner][32],  n <= 32
//
// A is read where it is, element by element, each broadcast to all lanes; B is a packed panel of 32 columns, in the first
// level cache at head_dim 128 (16 KiB). Eight rows of C are in registers at a time: 16 multiply-adds for 10 loads.
//
// Numerics: each element of C is one chain of fused multiply-adds in the order of `inner`, whatever rows are computed with
// it, so results do not depend on how a cache is cut into tiles.

#include <kvtrim/kernels/amx_blocks.hpp>
#include <kvtrim/kernels/avx2.hpp>

#if KVTRIM_HAS_X86

namespace kvtrim::kernels::tile_avx512 {

inline constexpr index_t panel_columns = 32;

// With a mask of all lanes: the plain intrinsics make GCC 12 warn about its own headers.
KVTRIM_INLINE_AVX512 __m512 max(__m512 a, __m512 b) {
    return _mm512_maskz_max_ps(0xffff, a, b);
}
KVTRIM_INLINE_AVX512 __m512 min(__m512 a, __m512 b) {
    return _mm512_maskz_min_ps(0xffff, a, b);
}

// The first `count` of 16 lanes; all of them from 16 on, none below 1.
[[nodiscard]] inline __mmask16 first_lanes(index_t count) {
    return static_cast<__mmask16>((1u << std::clamp<index_t>(count, 0, 16)) - 1u);
}

KVTRIM_INLINE_AVX512 float sum_of_lanes(__m512 x) {
    return tile_avx2::sum_of_lanes(
        _mm256_add_ps(_mm512_maskz_extractf32x8_ps(0xff, x, 0), _mm512_maskz_extractf32x8_ps(0xff, x, 1)));
}

// 2^x for x <= 0 and above -126, 0 in lanes that are not wanted; relative error 1.5e-7. x = whole + fraction, fraction
// in [0, 1).
KVTRIM_INLINE_AVX512 __m512 exp2(__m512 x, __mmask16 wanted = 0xffff) {
    const __m512 fraction = _mm512_maskz_reduce_ps(0xffff, x, 0x09);
    __m512 p = _mm512_set1_ps(0.00187757661f);
    p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(0.00898934025f));
    p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(0.0558263179f));
    p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(0.240153617f));
    p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(0.693153073f));
    p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(0.999999925f));
    return _mm512_maskz_scalef_ps(wanted, p, x);
}

// logits = cap * tanh(logits / cap), with tanh x = 1 - 2 / (e^2x + 1); for small x, where that is mostly rounding,
// x - x^3 / 3 + 2 x^5 / 15 - 17 x^7 / 315. What goes in is multiplied by `scale`, what comes out by `unit`.
KVTRIM_TARGET_AVX512 inline void cap_logits(float* logits, index_t count, float soft_cap, float unit,
                                            float scale = 1.0f) {
    const __m512 inward = _mm512_set1_ps(2 * 1.44269504f / soft_cap * scale);
    const __m512 outward = _mm512_set1_ps(unit * soft_cap);
    const __m512 limit = _mm512_set1_ps(60.0f); // e^2x beyond it changes nothing
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 small = _mm512_set1_ps(0.2f);
    const __m512 shrink = _mm512_set1_ps(1.0f / soft_cap * scale);
    for (index_t i = 0; i < count; i += 16) {
        const __mmask16 mask = first_lanes(count - i);
        const __m512 logit = _mm512_maskz_loadu_ps(mask, logits + i);
        const __m512 x = _mm512_mul_ps(logit, inward);
        const __m512 inside = max(_mm512_sub_ps(_mm512_setzero_ps(), limit), min(limit, x));
        const __m512 power = exp2(inside);
        const __m512 tanh =
            _mm512_sub_ps(one, _mm512_div_ps(_mm512_set1_ps(2.0f), _mm512_add_ps(power, one)));
        const __m512 ratio = _mm512_mul_ps(logit, shrink);
        const __m512 square = _mm512_mul_ps(ratio, ratio);
        __m512 series = _mm512_fmadd_ps(square, _mm512_set1_ps(-17.0f / 315), _mm512_set1_ps(2.0f / 15));
        series = _mm512_fmadd_ps(square, series, _mm512_set1_ps(-1.0f / 3));
        series = _mm512_fmadd_ps(square, series, one);
        const __mmask16 is_small = _mm512_cmp_ps_mask(square, _mm512_mul_ps(small, small), _CMP_LT_OQ);
        const __m512 capped = _mm512_mask_mul_ps(_mm512_mul_ps(outward, tanh), is_small,
                                                 _mm512_mul_ps(logit, _mm512_set1_ps(unit * scale)), series);
        _mm512_mask_storeu_ps(logits + i, mask, capped);
    }
}

// sum [v][i] = A [i][inner] * B [inner][16 * v ...], for Rows rows from `first_row` on.
template <std::size_t Rows, std::size_t Vectors>
KVTRIM_INLINE_AVX512 void products(const matrix_in& a, index_t first_row, const float* b, index_t inner,
                                   __m512 (&sum)[Vectors][Rows]) {
    const float* rows[Rows];
    KVTRIM_UNROLL
    for (std::size_t i = 0; i < Rows; ++i) {
        rows[i] = a.data + (first_row + static_cast<index_t>(i)) * a.row;
        for (std::size_t v = 0; v < Vectors; ++v) { sum[v][i] = _mm512_setzero_ps(); }
    }
    for (index_t k = 0; k < inner; ++k) {
        __m512 panel[Vectors];
        for (std::size_t v = 0; v < Vectors; ++v) {
            panel[v] = _mm512_loadu_ps(b + k * panel_columns + static_cast<index_t>(16 * v));
        }
        KVTRIM_UNROLL
        for (std::size_t i = 0; i < Rows; ++i) {
            const __m512 x = _mm512_set1_ps(rows[i][k * a.step]);
            for (std::size_t v = 0; v < Vectors; ++v) { sum[v][i] = _mm512_fmadd_ps(x, panel[v], sum[v][i]); }
        }
    }
}

// The product is summed before it is added to C: thousands of small terms added to one large float one by one would drift.
template <bool Accumulate, std::size_t Rows, std::size_t Vectors>
KVTRIM_TARGET_AVX512 inline void multiply(const matrix_in& a, const float* b, index_t inner,
                                          const panel_out& c, index_t first_row) {
    __m512 sum[Vectors][Rows];
    products<Rows, Vectors>(a, first_row, b, inner, sum);
    for (std::size_t v = 0; v < Vectors; ++v) {
        const auto column = static_cast<index_t>(16 * v);
        const __mmask16 mask = first_lanes(c.columns - column);
        const bool is_whole = mask == 0xffff; // what a masked store wrote is slow to read again
        KVTRIM_UNROLL
        for (std::size_t i = 0; i < Rows; ++i) {
            float* const to = c.data + (first_row + static_cast<index_t>(i)) * c.row + column;
            __m512 x = sum[v][i];
            if (is_whole) {
                if constexpr (Accumulate) { x = _mm512_add_ps(x, _mm512_loadu_ps(to)); }
                _mm512_storeu_ps(to, x);
            } else {
                if constexpr (Accumulate) { x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(mask, to)); }
                _mm512_mask_storeu_ps(to, mask, x);
            }
        }
    }
}

template <bool Accumulate, std::size_t Vectors>
KVTRIM_TARGET_AVX512 inline void multiply_rows_of(const matrix_in& a, const float* b, index_t inner,
                                                  const panel_out& c, index_t rows) {
    index_t r = 0;
    for (; r + 8 <= rows; r += 8) { multiply<Accumulate, 8, Vectors>(a, b, inner, c, r); }
    for (; r < rows; ++r) { multiply<Accumulate, 1, Vectors>(a, b, inner, c, r); }
}

// C = (or +=) A * B for any number of rows.
template <bool Accumulate>
KVTRIM_TARGET_AVX512 inline void multiply_rows(const matrix_in& a, const float* b, index_t inner,
                                               const panel_out& c, index_t rows) {
    if (c.columns > 16) {
        multiply_rows_of<Accumulate, 2>(a, b, inner, c, rows);
    } else {
        multiply_rows_of<Accumulate, 1>(a, b, inner, c, rows);
    }
}

} // namespace kvtrim::kernels::tile_avx512

#endif // KVTRIM_HAS_X86
