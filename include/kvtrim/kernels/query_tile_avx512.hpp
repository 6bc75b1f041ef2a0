// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// query_tile in AVX-512: 32 queries side by side in the lanes of two vectors.
//
//   queries [head_dim][32], logits [keys][32], out [value_dim][32]
//
// Both products are then the same small kernel, C[8][32] += A[8][n] * B[n][32] with A broadcast element by element: keys
// and values are read where they are, unpacked and untransposed; statistics and exponentials are vertical. Logits are
// kept in units of log 2 (the scale of the queries contains log2 e), so that the exponential is one of base 2.
//
// Measured: see bench/NOTES.md. Numerics: as kernels/query_tile.hpp; 2^x is a polynomial with relative error 1.5e-7.

#include <kvtrim/kernels/cpu.hpp>
#include <kvtrim/kernels/query_tile.hpp>

#if KVTRIM_HAS_X86

#include <immintrin.h>

#if defined(__clang__)
#define KVTRIM_UNROLL _Pragma("clang loop unroll(full)")
#else
#define KVTRIM_UNROLL _Pragma("GCC unroll 16")
#endif
#define KVTRIM_INLINE_AVX512 __attribute__((always_inline)) KVTRIM_TARGET_AVX512 inline

namespace kvtrim::kernels {

namespace avx512 {

inline constexpr std::size_t lanes = 32;

// With a mask of all lanes: the plain intrinsics make GCC 12 warn about its own headers.
KVTRIM_INLINE_AVX512 __m512 max(__m512 a, __m512 b) {
    return _mm512_maskz_max_ps(0xffff, a, b);
}
KVTRIM_INLINE_AVX512 __m512 min(__m512 a, __m512 b) {
    return _mm512_maskz_min_ps(0xffff, a, b);
}

// 2^x for x <= 0 and above -126; relative error 1.5e-7. x = whole + fraction, fraction in [0, 1).
KVTRIM_INLINE_AVX512 __m512 exp2(__m512 x) {
    const __m512 fraction = _mm512_maskz_reduce_ps(0xffff, x, 0x09);
    __m512 p = _mm512_set1_ps(0.00187757661f);
    p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(0.00898934025f));
    p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(0.0558263179f));
    p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(0.240153617f));
    p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(0.693153073f));
    p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(0.999999925f));
    return _mm512_maskz_scalef_ps(0xffff, p, x);
}

// C [Rows][32] = (or +=) A [Rows][inner] * B [inner][32]; A(i, k) is a[i * a_row + k * a_step]. The product is summed
// before it is added to C: thousands of small terms added to one large float one by one would drift.
template <std::size_t Rows, bool Accumulate>
KVTRIM_TARGET_AVX512 inline void multiply(const float* a, index_t a_row, index_t a_step, const float* b,
                                          index_t inner, float* c) {
    __m512 low[Rows], high[Rows];
    const float* rows[Rows];
    KVTRIM_UNROLL
    for (std::size_t i = 0; i < Rows; ++i) {
        rows[i] = a + static_cast<index_t>(i) * a_row;
        low[i] = _mm512_setzero_ps();
        high[i] = _mm512_setzero_ps();
    }
    for (index_t k = 0; k < inner; ++k) {
        const __m512 b_low = _mm512_loadu_ps(b + k * static_cast<index_t>(lanes));
        const __m512 b_high = _mm512_loadu_ps(b + k * static_cast<index_t>(lanes) + 16);
        KVTRIM_UNROLL
        for (std::size_t i = 0; i < Rows; ++i) {
            const __m512 x = _mm512_set1_ps(rows[i][k * a_step]);
            low[i] = _mm512_fmadd_ps(x, b_low, low[i]);
            high[i] = _mm512_fmadd_ps(x, b_high, high[i]);
        }
    }
    KVTRIM_UNROLL
    for (std::size_t i = 0; i < Rows; ++i) {
        float* const to = c + i * lanes;
        _mm512_storeu_ps(to, Accumulate ? _mm512_add_ps(_mm512_loadu_ps(to), low[i]) : low[i]);
        _mm512_storeu_ps(to + 16, Accumulate ? _mm512_add_ps(_mm512_loadu_ps(to + 16), high[i]) : high[i]);
    }
}

// The same for any number of rows of C.
template <bool Accumulate>
KVTRIM_TARGET_AVX512 inline void multiply_rows(const float* a, index_t a_row, index_t a_step, const float* b,
                                               index_t inner, float* c, index_t rows) {
    index_t r = 0;
    for (; r + 8 <= rows; r += 8) {
        multiply<8, Accumulate>(a + r * a_row, a_row, a_step, b, inner, c + r * static_cast<index_t>(lanes));
    }
    for (; r < rows; ++r) {
        multiply<1, Accumulate>(a + r * a_row, a_row, a_step, b, inner, c + r * static_cast<index_t>(lanes));
    }
}

} // namespace avx512

class query_tile_avx512 {
  public:
    static constexpr index_t max_queries = 32;
    [[nodiscard]] static constexpr index_t max_keys(index_t) { return 64; }
    [[nodiscard]] static constexpr index_t own_floats(index_t head_dim, index_t value_dim) {
        return max_queries * (head_dim + value_dim + 3);
    }
    [[nodiscard]] static constexpr index_t shared_floats(index_t, index_t) {
        return max_queries * max_keys(0);
    }

    // own is aligned for doubles.
    query_tile_avx512(float* own, float* shared, index_t head_dim, index_t value_dim)
        : head_dim_(head_dim), value_dim_(value_dim), queries_(own), out_(own + max_queries * head_dim),
          maximum_(out_ + max_queries * value_dim), sum_(reinterpret_cast<double*>(maximum_ + max_queries)),
          logits_(shared) {}

    KVTRIM_TARGET_AVX512 void begin(const float* queries, index_t query_stride, index_t count,
                                    float sink_logit, const logit_rules& rules) {
        // With a soft cap the logits stay natural until they are capped.
        const float scale = rules.soft_cap > 0 ? rules.scale : rules.scale * log2_e;
        for (index_t d = 0; d < head_dim_; ++d) {
            for (index_t r = 0; r < max_queries; ++r) { // lanes without a query repeat the last one
                queries_[d * max_queries + r] = scale * queries[std::min(r, count - 1) * query_stride + d];
            }
        }
        std::fill_n(maximum_, max_queries, sink_logit * log2_e);
        std::fill_n(sum_, max_queries, sink_logit == masked_logit ? 0.0 : 1.0);
        std::fill_n(out_, value_dim_ * max_queries, 0.0f);
    }

    KVTRIM_TARGET_AVX512 void attend(const key_tile& tile, const logit_rules& rules, query_range queries) {
        avx512::multiply_rows<false>(tile.keys, tile.key_stride, 1, queries_, head_dim_, logits_, tile.count);
        if (rules.soft_cap > 0) { cap(tile.count, rules.soft_cap); }
        if (!all_visible(tile, rules, queries)) { mask(tile, rules, queries); }
        exponentials(tile.count, 0);
        exponentials(tile.count, 16);
        avx512::multiply_rows<true>(tile.values, 1, tile.value_stride, logits_, tile.count, out_, value_dim_);
    }

    KVTRIM_TARGET_AVX512 void finish(index_t count, float* out, float* log_sum_exp) const {
        for (index_t r = 0; r < count; ++r) {
            const auto weight = static_cast<float>(sum_[r] > 0 ? 1.0 / sum_[r] : 0.0);
            for (index_t d = 0; d < value_dim_; ++d) {
                out[r * value_dim_ + d] = weight * out_[d * max_queries + r];
            }
            if (log_sum_exp != nullptr) {
                log_sum_exp[r] =
                    sum_[r] > 0 ? maximum_[r] * ln_2 + static_cast<float>(std::log(sum_[r])) : masked_logit;
            }
        }
    }

  private:
    static constexpr float log2_e = 1.44269504f;
    static constexpr float ln_2 = 0.693147181f;

    // logits = log2 e * cap * tanh(logits / cap), with tanh x = 1 - 2 / (e^2x + 1); for small x, where that is mostly
    // rounding, x - x^3 / 3 + 2 x^5 / 15 - 17 x^7 / 315.
    KVTRIM_TARGET_AVX512 void cap(index_t keys, float soft_cap) {
        const __m512 inward = _mm512_set1_ps(2 * log2_e / soft_cap);
        const __m512 outward = _mm512_set1_ps(log2_e * soft_cap);
        const __m512 limit = _mm512_set1_ps(60.0f); // e^2x beyond it changes nothing
        const __m512 one = _mm512_set1_ps(1.0f);
        const __m512 small = _mm512_set1_ps(0.2f);
        const __m512 shrink = _mm512_set1_ps(1.0f / soft_cap);
        for (float* l = logits_; l != logits_ + keys * max_queries; l += 16) {
            const __m512 logit = _mm512_loadu_ps(l);
            const __m512 x = _mm512_mul_ps(logit, inward);
            const __m512 inside =
                avx512::max(_mm512_sub_ps(_mm512_setzero_ps(), limit), avx512::min(limit, x));
            const __m512 power = avx512::exp2(inside);
            const __m512 tanh =
                _mm512_sub_ps(one, _mm512_div_ps(_mm512_set1_ps(2.0f), _mm512_add_ps(power, one)));
            const __m512 ratio = _mm512_mul_ps(logit, shrink);
            const __m512 square = _mm512_mul_ps(ratio, ratio);
            __m512 series = _mm512_fmadd_ps(square, _mm512_set1_ps(-17.0f / 315), _mm512_set1_ps(2.0f / 15));
            series = _mm512_fmadd_ps(square, series, _mm512_set1_ps(-1.0f / 3));
            series = _mm512_fmadd_ps(square, series, one);
            const __mmask16 is_small = _mm512_cmp_ps_mask(square, _mm512_mul_ps(small, small), _CMP_LT_OQ);
            _mm512_storeu_ps(l, _mm512_mask_mul_ps(_mm512_mul_ps(outward, tanh), is_small,
                                                   _mm512_mul_ps(logit, _mm512_set1_ps(log2_e)), series));
        }
    }

    KVTRIM_TARGET_AVX512 void mask(const key_tile& tile, const logit_rules& rules, query_range queries) {
        for (index_t t = 0; t < tile.count; ++t) {
            const index_t first_distance = queries.first_position - (tile.first_position + t);
            for (index_t r = 0; r < max_queries; ++r) {
                const index_t distance = first_distance + r;
                if (distance < 0 || (rules.sliding_window > 0 && distance >= rules.sliding_window)) {
                    logits_[t * max_queries + r] = masked_logit;
                }
            }
        }
    }

    // Sixteen lanes of logits [keys] become exponentials; maximum, sum and out follow.
    KVTRIM_TARGET_AVX512 void exponentials(index_t keys, index_t lane) {
        float* const logits = logits_ + lane;
        const __m512 old = _mm512_loadu_ps(maximum_ + lane);
        __m512 highest = old, other = old; // max returns its second operand for NaN
        index_t t = 0;
        for (; t + 2 <= keys; t += 2) {
            highest = avx512::max(_mm512_loadu_ps(logits + t * max_queries), highest);
            other = avx512::max(_mm512_loadu_ps(logits + (t + 1) * max_queries), other);
        }
        for (; t < keys; ++t) { highest = avx512::max(_mm512_loadu_ps(logits + t * max_queries), highest); }
        const __m512 largest = _mm512_set1_ps(std::numeric_limits<float>::max());
        highest = avx512::min(avx512::max(highest, other), largest);

        const __mmask16 higher = _mm512_cmp_ps_mask(highest, old, _CMP_GT_OQ);
        if (higher != 0) {
            // Lanes that have seen nothing (-infinity) have nothing to rescale; those that stay must not lose the
            // rounding of 2^0 each time that another one rises.
            const __mmask16 seen = _mm512_cmp_ps_mask(old, _mm512_set1_ps(masked_logit), _CMP_GT_OQ);
            const __m512 distance = _mm512_maskz_sub_ps(seen, old, highest);
            const __m512 power = avx512::exp2(avx512::max(distance, _mm512_set1_ps(-200.0f)));
            const __m512 factor = _mm512_mask_mov_ps(_mm512_set1_ps(1.0f), higher, power);
            alignas(64) float factors[16];
            _mm512_store_ps(factors, factor);
            for (index_t r = 0; r < 16; ++r) { sum_[lane + r] *= static_cast<double>(factors[r]); }
            for (float* o = out_ + lane; o != out_ + lane + value_dim_ * max_queries; o += max_queries) {
                _mm512_storeu_ps(o, _mm512_mul_ps(_mm512_loadu_ps(o), factor));
            }
            _mm512_storeu_ps(maximum_ + lane, highest);
        }
        // A weight below e^-75 is exactly 0: nothing to a float sum, and denormals would be slow.
        const __m512 cutoff = _mm512_set1_ps(-108.0f);
        __m512 sum = _mm512_setzero_ps(); // of this tile
        for (t = 0; t < keys; ++t) {
            const __m512 logit = avx512::min(largest, _mm512_loadu_ps(logits + t * max_queries));
            const __m512 x = _mm512_sub_ps(logit, highest);
            const __mmask16 counts = _mm512_cmp_ps_mask(x, cutoff, _CMP_GT_OQ); // false for NaN
            const __m512 p = _mm512_maskz_mov_ps(counts, avx512::exp2(x));
            _mm512_storeu_ps(logits + t * max_queries, p);
            sum = _mm512_add_ps(sum, p);
        }
        alignas(64) float sums[16];
        _mm512_store_ps(sums, sum);
        for (index_t r = 0; r < 16; ++r) { sum_[lane + r] += static_cast<double>(sums[r]); }
    }

    index_t head_dim_;
    index_t value_dim_;
    float* queries_; // [head_dim][32], scaled
    float* out_;     // [value_dim][32]
    float* maximum_; // [32], units of log 2
    double* sum_;    // [32]
    float* logits_;  // [max_keys][32]
};

} // namespace kvtrim::kernels

#undef KVTRIM_UNROLL
#undef KVTRIM_INLINE_AVX512

#endif // KVTRIM_HAS_X86
