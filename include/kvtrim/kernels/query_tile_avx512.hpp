// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// query_tile in AVX-512: 32 queries side by side in the lanes of two vectors.
//
//   queries [head_dim][32], logits [keys][32], out [value_dim][32]
//
// Both products are then the same small kernel, C[8][32] += A[8][n] * B[n][32] with A broadcast element by element: keys
// and values are read where they are, unpacked and untransposed; statistics and exponentials are vertical
// (kernels/lanes_avx512.hpp). The scale of the queries contains log2 e.
//
// Measured: see bench/NOTES.md. Numerics: as kernels/query_tile.hpp.

#include <kvtrim/kernels/lanes_avx512.hpp>

#if KVTRIM_HAS_X86

namespace kvtrim::kernels {

namespace avx512 {

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
        const __m512 b_low = _mm512_loadu_ps(b + k * lanes);
        const __m512 b_high = _mm512_loadu_ps(b + k * lanes + 16);
        KVTRIM_UNROLL
        for (std::size_t i = 0; i < Rows; ++i) {
            const __m512 x = _mm512_set1_ps(rows[i][k * a_step]);
            low[i] = _mm512_fmadd_ps(x, b_low, low[i]);
            high[i] = _mm512_fmadd_ps(x, b_high, high[i]);
        }
    }
    KVTRIM_UNROLL
    for (std::size_t i = 0; i < Rows; ++i) {
        float* const to = c + static_cast<index_t>(i) * lanes;
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
        multiply<8, Accumulate>(a + r * a_row, a_row, a_step, b, inner, c + r * lanes);
    }
    for (; r < rows; ++r) { multiply<1, Accumulate>(a + r * a_row, a_row, a_step, b, inner, c + r * lanes); }
}

} // namespace avx512

class query_tile_avx512 {
  public:
    using element = float;
    static constexpr index_t max_queries = avx512::lanes;
    [[nodiscard]] static constexpr index_t max_keys(index_t) { return 64; }
    [[nodiscard]] static constexpr index_t own_floats(index_t head_dim, index_t value_dim) {
        return max_queries * head_dim + avx512::lane_softmax::floats(value_dim);
    }
    [[nodiscard]] static constexpr index_t shared_floats(index_t, index_t) {
        return max_queries * max_keys(0);
    }

    // own is aligned for doubles.
    query_tile_avx512(float* own, float* shared, index_t head_dim, index_t value_dim)
        : head_dim_(head_dim), softmax_(own, value_dim),
          queries_(own + avx512::lane_softmax::floats(value_dim)), logits_(shared) {}

    static void pack(const key_tile&, float*, index_t, index_t) {}

    KVTRIM_TARGET_AVX512 void begin(const float* queries, index_t query_stride, index_t count,
                                    float sink_logit, const logit_rules& rules) {
        // With a soft cap the logits stay natural until they are capped.
        const float scale = rules.soft_cap > 0 ? rules.scale : rules.scale * avx512::log2_e;
        for (index_t d = 0; d < head_dim_; ++d) {
            for (index_t r = 0; r < max_queries; ++r) { // lanes without a query repeat the last one
                queries_[d * max_queries + r] = scale * queries[std::min(r, count - 1) * query_stride + d];
            }
        }
        softmax_.begin(sink_logit);
    }

    KVTRIM_TARGET_AVX512 void attend(const key_tile& tile, const logit_rules& rules, query_range queries) {
        avx512::multiply_rows<false>(tile.keys, tile.key_stride, 1, queries_, head_dim_, logits_, tile.count);
        if (rules.soft_cap > 0) { avx512::cap_logits(logits_, tile.count, 1.0f, rules.soft_cap); }
        if (!all_visible(tile, rules, queries)) {
            avx512::mask_logits(logits_, tile.count, tile.first_position, rules, queries);
        }
        exponentials(tile.count, 0);
        exponentials(tile.count, 16);
        avx512::multiply_rows<true>(tile.values, 1, tile.value_stride, logits_, tile.count, softmax_.out,
                                    softmax_.value_dim);
    }

    void finish(index_t count, float* out, float* log_sum_exp) const {
        softmax_.finish(count, softmax_.value_dim, out, log_sum_exp);
    }

  private:
    // Sixteen lanes of logits [keys] become weights.
    KVTRIM_TARGET_AVX512 void exponentials(index_t keys, index_t half) {
        float* const logits = logits_ + half;
        const __m512 maximum = softmax_.raise(half, avx512::highest_of(logits, keys));
        __m512 sum = _mm512_setzero_ps();
        for (index_t t = 0; t < keys; ++t) {
            const __m512 p = avx512::weight_of(_mm512_loadu_ps(logits + t * max_queries), maximum);
            _mm512_storeu_ps(logits + t * max_queries, p);
            sum = _mm512_add_ps(sum, p);
        }
        softmax_.add(half, sum);
    }

    index_t head_dim_;
    avx512::lane_softmax softmax_;
    float* queries_; // [head_dim][32], scaled
    float* logits_;  // [max_keys][32]
};

} // namespace kvtrim::kernels

#endif // KVTRIM_HAS_X86
