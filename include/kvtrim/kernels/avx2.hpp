// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What the AVX2 kernels are made of: lanes of memory, 2^x, the soft cap, and one small matrix product.
//
//   C [rows][n] = (or +=) A [rows][inner] * B [inner][16],  n <= 16
//
// As in kernels/avx512.hpp, A is read where it is, each element broadcast to all lanes, and B is a packed panel in the
// first level cache. Six rows of C are in 12 of the 16 registers at a time: 12 multiply-adds for 8 loads.
//
// Numerics: each element of C is one chain of fused multiply-adds in the order of `inner`, whatever rows are computed with
// it, so results do not depend on how a cache is cut into tiles.

#include <kvtrim/base/status.hpp>
#include <kvtrim/kernels/panel_product.hpp>
#include <kvtrim/simd/cpu.hpp>

#include <algorithm>
#include <cstddef>
#include <limits>

#if KVTRIM_HAS_X86

#include <immintrin.h>

#define KVTRIM_INLINE_AVX2 __attribute__((always_inline)) KVTRIM_TARGET_AVX2 inline

namespace kvtrim::kernels {

namespace tile_avx2 {

inline constexpr index_t panel_columns = 16;
inline constexpr float log2_e = 1.44269504f;
inline constexpr float ln_2 = 0.693147181f;

// How eight lanes reach memory: all of them, or the first few, the others reading 0 and writing nothing. A loop is
// compiled for each, because masked stores are slow, and slow to read again.
struct all_lanes {
    [[nodiscard]] KVTRIM_INLINE_AVX2 __m256 load(const float* from) const { return _mm256_loadu_ps(from); }
    KVTRIM_INLINE_AVX2 void store(float* to, __m256 x) const { _mm256_storeu_ps(to, x); }
    [[nodiscard]] static constexpr index_t count() { return 8; }
};

class first_lanes {
  public:
    // All of them from 8 on, none below 1.
    explicit first_lanes(index_t count) : count_(std::clamp<index_t>(count, 0, 8)) {}

    [[nodiscard]] KVTRIM_INLINE_AVX2 __m256i mask() const {
        const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count_)), lane);
    }
    [[nodiscard]] KVTRIM_INLINE_AVX2 __m256 load(const float* from) const {
        return _mm256_maskload_ps(from, mask());
    }
    KVTRIM_INLINE_AVX2 void store(float* to, __m256 x) const { _mm256_maskstore_ps(to, mask(), x); }
    [[nodiscard]] index_t count() const { return count_; }

  private:
    index_t count_;
};

KVTRIM_INLINE_AVX2 float sum_of_lanes(__m256 x) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

KVTRIM_INLINE_AVX2 float highest_of_lanes(__m256 x) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

// 2^x for -126 < x < 127, anything elsewhere, NaN for NaN; relative error 1.5e-7. x = whole + fraction, fraction in
// [0, 1); the whole part is added to the exponent's bits.
KVTRIM_INLINE_AVX2 __m256 exp2(__m256 x) {
    const __m256 whole = _mm256_floor_ps(x);
    const __m256 fraction = _mm256_sub_ps(x, whole);
    __m256 p = _mm256_set1_ps(0.00187757661f);
    p = _mm256_fmadd_ps(p, fraction, _mm256_set1_ps(0.00898934025f));
    p = _mm256_fmadd_ps(p, fraction, _mm256_set1_ps(0.0558263179f));
    p = _mm256_fmadd_ps(p, fraction, _mm256_set1_ps(0.240153617f));
    p = _mm256_fmadd_ps(p, fraction, _mm256_set1_ps(0.693153073f));
    p = _mm256_fmadd_ps(p, fraction, _mm256_set1_ps(0.999999925f));
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
}

// 2^(logit - maximum), 0 for NaN and below e^-75; the logit at most the largest float.
KVTRIM_INLINE_AVX2 __m256 power_of_two(__m256 logit, __m256 maximum) {
    const __m256 largest = _mm256_set1_ps(std::numeric_limits<float>::max());
    const __m256 x =
        _mm256_sub_ps(_mm256_min_ps(largest, logit), maximum); // min gives its second operand for NaN
    return _mm256_and_ps(exp2(x), _mm256_cmp_ps(x, _mm256_set1_ps(-108.0f), _CMP_GT_OQ));
}

// cap * tanh(logit / cap) of eight logits as in kernels/avx512.hpp; what comes out is multiplied by `unit`.
struct logit_cap {
    float soft_cap, unit;

    [[nodiscard]] KVTRIM_INLINE_AVX2 __m256 operator()(__m256 logit) const {
        const __m256 one = _mm256_set1_ps(1.0f);
        const __m256 limit = _mm256_set1_ps(60.0f); // e^2x beyond it changes nothing
        const __m256 x = _mm256_mul_ps(logit, _mm256_set1_ps(2 * 1.44269504f / soft_cap));
        const __m256 power = exp2(_mm256_max_ps(_mm256_set1_ps(-60.0f), _mm256_min_ps(limit, x)));
        const __m256 tanh =
            _mm256_sub_ps(one, _mm256_div_ps(_mm256_set1_ps(2.0f), _mm256_add_ps(power, one)));
        const __m256 ratio = _mm256_mul_ps(logit, _mm256_set1_ps(1.0f / soft_cap));
        const __m256 square = _mm256_mul_ps(ratio, ratio);
        __m256 series = _mm256_fmadd_ps(square, _mm256_set1_ps(-17.0f / 315), _mm256_set1_ps(2.0f / 15));
        series = _mm256_fmadd_ps(square, series, _mm256_set1_ps(-1.0f / 3));
        series = _mm256_fmadd_ps(square, series, one);
        const __m256 is_small = _mm256_cmp_ps(square, _mm256_set1_ps(0.04f), _CMP_LT_OQ);
        const __m256 large = _mm256_mul_ps(_mm256_set1_ps(unit * soft_cap), tanh);
        const __m256 small = _mm256_mul_ps(_mm256_mul_ps(logit, _mm256_set1_ps(unit)), series);
        return _mm256_blendv_ps(large, small, is_small);
    }
};

KVTRIM_TARGET_AVX2 inline void cap_logits(float* logits, index_t count, float soft_cap, float unit) {
    const logit_cap cap{soft_cap, unit};
    index_t i = 0;
    for (; i + 8 <= count; i += 8) { all_lanes{}.store(logits + i, cap(all_lanes{}.load(logits + i))); }
    const first_lanes rest(count - i);
    rest.store(logits + i, cap(rest.load(logits + i)));
}

// sum [v][i] = A [i][inner] * B [inner][8 * v ...], for Rows rows from `first_row` on.
template <std::size_t Rows, std::size_t Vectors>
KVTRIM_INLINE_AVX2 void products(const matrix_in& a, index_t first_row, const float* b, index_t inner,
                                 __m256 (&sum)[Vectors][Rows]) {
    KVTRIM_UNROLL
    for (std::size_t i = 0; i < Rows; ++i) {
        for (std::size_t v = 0; v < Vectors; ++v) { sum[v][i] = _mm256_setzero_ps(); }
    }
    const float* column = a.data + first_row * a.row;
    const index_t row = a.row, step = a.step;
    for (index_t k = 0; k < inner; ++k, column += step, b += panel_columns) {
        __m256 panel[Vectors];
        for (std::size_t v = 0; v < Vectors; ++v) { panel[v] = _mm256_loadu_ps(b + 8 * v); }
        KVTRIM_UNROLL
        for (std::size_t i = 0; i < Rows; ++i) {
            const __m256 x = _mm256_broadcast_ss(column + static_cast<index_t>(i) * row);
            for (std::size_t v = 0; v < Vectors; ++v) { sum[v][i] = _mm256_fmadd_ps(x, panel[v], sum[v][i]); }
        }
    }
}

// The product is summed before it is added to C: thousands of small terms added to one large float one by one would drift.
template <bool Accumulate, std::size_t Rows, std::size_t Vectors>
KVTRIM_TARGET_AVX2 inline void multiply(const matrix_in& a, const float* b, index_t inner, const panel_out& c,
                                        index_t first_row) {
    __m256 sum[Vectors][Rows];
    products<Rows, Vectors>(a, first_row, b, inner, sum);
    for (std::size_t v = 0; v < Vectors; ++v) {
        const auto column = static_cast<index_t>(8 * v);
        const first_lanes some(c.columns - column);
        KVTRIM_UNROLL
        for (std::size_t i = 0; i < Rows; ++i) {
            float* const to = c.data + (first_row + static_cast<index_t>(i)) * c.row + column;
            __m256 x = sum[v][i];
            if (some.count() == 8) {
                if constexpr (Accumulate) { x = _mm256_add_ps(x, _mm256_loadu_ps(to)); }
                _mm256_storeu_ps(to, x);
            } else {
                if constexpr (Accumulate) { x = _mm256_add_ps(x, some.load(to)); }
                some.store(to, x);
            }
        }
    }
}

template <bool Accumulate, std::size_t Vectors>
KVTRIM_TARGET_AVX2 inline void multiply_rows_of(const matrix_in& a, const float* b, index_t inner,
                                                const panel_out& c, index_t rows) {
    index_t r = 0;
    for (; r + 6 <= rows; r += 6) { multiply<Accumulate, 6, Vectors>(a, b, inner, c, r); }
    for (; r + 2 <= rows; r += 2) { multiply<Accumulate, 2, Vectors>(a, b, inner, c, r); }
    if (r < rows) { multiply<Accumulate, 1, Vectors>(a, b, inner, c, r); }
}

// C = (or +=) A * B for any number of rows.
template <bool Accumulate>
KVTRIM_TARGET_AVX2 inline void multiply_rows(const matrix_in& a, const float* b, index_t inner,
                                             const panel_out& c, index_t rows) {
    if (c.columns > 8) {
        multiply_rows_of<Accumulate, 2>(a, b, inner, c, rows);
    } else {
        multiply_rows_of<Accumulate, 1>(a, b, inner, c, rows);
    }
}

} // namespace tile_avx2

} // namespace kvtrim::kernels

#endif // KVTRIM_HAS_X86
