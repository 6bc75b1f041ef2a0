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

class query_tile_avx512 {
  public:
    using element = float;
    static constexpr index_t max_queries = tile_avx512::lanes;
    [[nodiscard]] static constexpr index_t max_keys(index_t) { return 64; }
    [[nodiscard]] static constexpr index_t own_floats(index_t head_dim, index_t value_dim) {
        return max_queries * head_dim + tile_avx512::lane_softmax::floats(value_dim);
    }
    [[nodiscard]] static constexpr index_t shared_floats(index_t, index_t value_dim) {
        return max_queries * max_keys(0) + max_keys(0) * value_dim;
    }

    // own is aligned for doubles.
    query_tile_avx512(float* own, float* shared, index_t head_dim, index_t value_dim)
        : head_dim_(head_dim), softmax_(own, value_dim),
          queries_(own + tile_avx512::lane_softmax::floats(value_dim)), logits_(shared),
          finite_(shared + max_queries * max_keys(0)) {}

    static void pack(const key_tile&, float*, index_t, index_t) {}

    KVTRIM_TARGET_AVX512 void begin(const float* queries, index_t query_stride, index_t count,
                                    float sink_logit, const logit_rules& rules) {
        // With a soft cap the logits stay natural until they are capped.
        const float scale = rules.soft_cap > 0 ? rules.scale : rules.scale * tile_avx512::log2_e;
        for (index_t d = 0; d < head_dim_; ++d) {
            for (index_t r = 0; r < max_queries; ++r) { // lanes without a query repeat the last one
                queries_[d * max_queries + r] = scale * queries[std::min(r, count - 1) * query_stride + d];
            }
        }
        softmax_.begin(sink_logit);
    }

    KVTRIM_TARGET_AVX512 void attend(const key_tile& tile, const logit_rules& rules, query_range queries) {
        tile_avx512::multiply_rows<false>({tile.keys, tile.key_stride, 1}, queries_, head_dim_,
                                          {logits_, max_queries, max_queries}, tile.count);
        if (rules.soft_cap > 0) {
            tile_avx512::cap_logits(logits_, tile.count * max_queries, rules.soft_cap, tile_avx512::log2_e);
        }
        const bool masked = !all_visible(tile, rules, queries);
        if (masked) { tile_avx512::mask_logits(logits_, tile.count, tile.first_position, rules, queries); }
        exponentials(tile.count, 0);
        exponentials(tile.count, 16);
        if (masked && !all_finite(tile)) {
            copy_finite_values(tile, softmax_.value_dim, finite_);
            add_values(finite_, softmax_.value_dim, tile.count);
            add_other_values(tile, softmax_.value_dim, {logits_, max_queries, 1}, max_queries,
                             {softmax_.out, max_queries, 1});
        } else {
            add_values(tile.values, tile.value_stride, tile.count);
        }
    }

    void finish(index_t count, float* out, float* log_sum_exp) const {
        softmax_.finish(count, softmax_.value_dim, out, log_sum_exp);
    }

  private:
    KVTRIM_TARGET_AVX512 void add_values(const float* values, index_t stride, index_t keys) {
        tile_avx512::multiply_rows<true>({values, 1, stride}, logits_, keys,
                                         {softmax_.out, max_queries, max_queries}, softmax_.value_dim);
    }

    [[nodiscard]] KVTRIM_TARGET_AVX512 bool all_finite(const key_tile& tile) const {
        __mmask16 others = 0; // x - x is 0 or NaN
        for (index_t t = 0; t < tile.count; ++t) {
            const float* const row = tile.values + t * tile.value_stride;
            for (index_t d = 0; d < softmax_.value_dim; d += 16) {
                const __m512 x =
                    _mm512_maskz_loadu_ps(tile_avx512::first_lanes(softmax_.value_dim - d), row + d);
                others |= _mm512_cmp_ps_mask(_mm512_sub_ps(x, x), x, _CMP_UNORD_Q);
            }
        }
        return others == 0;
    }

    // Sixteen lanes of logits [keys] become weights.
    KVTRIM_TARGET_AVX512 void exponentials(index_t keys, index_t half) {
        float* const logits = logits_ + half;
        const __m512 maximum = softmax_.raise(half, tile_avx512::highest_of(logits, keys));
        __m512 sum = _mm512_setzero_ps();
        for (index_t t = 0; t < keys; ++t) {
            const __m512 p = tile_avx512::weight_of(_mm512_loadu_ps(logits + t * max_queries), maximum);
            _mm512_storeu_ps(logits + t * max_queries, p);
            sum = _mm512_add_ps(sum, p);
        }
        softmax_.add(half, sum);
    }

    index_t head_dim_;
    tile_avx512::lane_softmax softmax_;
    float* queries_; // [head_dim][32], scaled
    float* logits_;  // [max_keys][32]
    float* finite_;  // [max_keys][value_dim], where some values are not
};

} // namespace kvtrim::kernels

#endif // KVTRIM_HAS_X86
