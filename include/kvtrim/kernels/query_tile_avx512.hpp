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

#include <kvtrim/kernels/avx512.hpp>
#include <kvtrim/kernels/query_tile.hpp>

#if KVTRIM_HAS_X86

namespace kvtrim::kernels {

class query_tile_avx512 {
  public:
    static constexpr index_t max_queries = 32;
    [[nodiscard]] static constexpr index_t max_keys(index_t) { return 64; }
    [[nodiscard]] static constexpr index_t own_floats(index_t head_dim, index_t value_dim) {
        return max_queries * (head_dim + value_dim + 3);
    }
    [[nodiscard]] static constexpr index_t shared_floats(index_t, index_t value_dim) {
        return max_queries * max_keys(0) + max_keys(0) * value_dim;
    }

    // own is aligned for doubles.
    query_tile_avx512(float* own, float* shared, index_t head_dim, index_t value_dim)
        : head_dim_(head_dim), value_dim_(value_dim), queries_(own), out_(own + max_queries * head_dim),
          maximum_(out_ + max_queries * value_dim), sum_(reinterpret_cast<double*>(maximum_ + max_queries)),
          logits_(shared), finite_(shared + max_queries * max_keys(0)) {}

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
        avx512::multiply_rows<false>({tile.keys, tile.key_stride, 1}, queries_, head_dim_,
                                     {logits_, max_queries, max_queries}, tile.count);
        if (rules.soft_cap > 0) {
            avx512::cap_logits(logits_, tile.count * max_queries, rules.soft_cap, log2_e);
        }
        const bool masked = !all_visible(tile, rules, queries);
        if (masked) { mask(tile, rules, queries); }
        exponentials(tile.count, 0);
        exponentials(tile.count, 16);
        if (masked && !all_finite(tile)) {
            copy_finite_values(tile, value_dim_, finite_);
            add_values(finite_, value_dim_, tile.count);
            add_other_values(tile, value_dim_, {logits_, max_queries, 1}, max_queries,
                             {out_, max_queries, 1});
        } else {
            add_values(tile.values, tile.value_stride, tile.count);
        }
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

    KVTRIM_TARGET_AVX512 void add_values(const float* values, index_t stride, index_t keys) {
        avx512::multiply_rows<true>({values, 1, stride}, logits_, keys, {out_, max_queries, max_queries},
                                    value_dim_);
    }

    [[nodiscard]] KVTRIM_TARGET_AVX512 bool all_finite(const key_tile& tile) const {
        __mmask16 others = 0; // x - x is 0 or NaN
        for (index_t t = 0; t < tile.count; ++t) {
            const float* const row = tile.values + t * tile.value_stride;
            for (index_t d = 0; d < value_dim_; d += 16) {
                const __m512 x = _mm512_maskz_loadu_ps(avx512::first_lanes(value_dim_ - d), row + d);
                others |= _mm512_cmp_ps_mask(_mm512_sub_ps(x, x), x, _CMP_UNORD_Q);
            }
        }
        return others == 0;
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
    float* finite_;  // [max_keys][value_dim], where some values are not
};

} // namespace kvtrim::kernels

#endif // KVTRIM_HAS_X86
