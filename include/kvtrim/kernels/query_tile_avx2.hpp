// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// query_tile in AVX2: as kernels/query_tile_avx512.hpp, with 16 queries side by side in the lanes of two vectors.
//
//   queries [head_dim][16], logits [keys][16], out [value_dim][16], maximum [16], sum [16]
//
// Logits are in units of log 2. Statistics and exponentials are vertical, one half of 8 lanes at a time; a half is the
// lane that it starts with, 0 or 8.
// Measured: see bench/NOTES.md. Numerics: as kernels/query_tile.hpp; 2^x with relative error 1.5e-7.

#include <kvtrim/kernels/avx2.hpp>
#include <kvtrim/kernels/query_tile.hpp>

#if KVTRIM_HAS_X86

namespace kvtrim::kernels {

class query_tile_avx2 {
  public:
    using element = float;
    static constexpr index_t max_queries = tile_avx2::panel_columns;
    [[nodiscard]] static constexpr index_t max_keys(index_t) { return 64; }
    [[nodiscard]] static constexpr index_t own_floats(index_t head_dim, index_t value_dim) {
        return max_queries * (head_dim + value_dim + 3);
    }
    [[nodiscard]] static constexpr index_t shared_floats(index_t, index_t value_dim) {
        return max_keys(0) * (max_queries + value_dim);
    }

    // own is aligned for doubles.
    query_tile_avx2(float* own, float* shared, index_t head_dim, index_t value_dim)
        : head_dim_(head_dim), value_dim_(value_dim), maximum_(own),
          sum_(reinterpret_cast<double*>(own + max_queries)), out_(own + 3 * max_queries),
          queries_(out_ + value_dim * max_queries), logits_(shared),
          finite_(shared + max_keys(0) * max_queries) {}

    static void pack(const key_tile&, float*, index_t, index_t) {}

    void begin(const float* queries, index_t query_stride, index_t count, float sink_logit,
               const logit_rules& rules) {
        // With a soft cap the logits stay natural until they are capped.
        const float scale = rules.soft_cap > 0 ? rules.scale : rules.scale * tile_avx2::log2_e;
        for (index_t d = 0; d < head_dim_; ++d) {
            for (index_t r = 0; r < max_queries; ++r) { // lanes without a query repeat the last one
                queries_[d * max_queries + r] = scale * queries[std::min(r, count - 1) * query_stride + d];
            }
        }
        std::fill_n(maximum_, max_queries, sink_logit * tile_avx2::log2_e);
        std::fill_n(sum_, max_queries, sink_logit == masked_logit ? 0.0 : 1.0);
        std::fill_n(out_, value_dim_ * max_queries, 0.0f);
    }

    KVTRIM_TARGET_AVX2 void attend(const key_tile& tile, const logit_rules& rules, query_range queries) {
        tile_avx2::multiply_rows<false>({tile.keys, tile.key_stride, 1}, queries_, head_dim_,
                                        {logits_, max_queries, max_queries}, tile.count);
        if (rules.soft_cap > 0) {
            tile_avx2::cap_logits(logits_, tile.count * max_queries, rules.soft_cap, tile_avx2::log2_e);
        }
        const bool masked = !all_visible(tile, rules, queries);
        if (masked) { mask(tile, rules, queries); }
        make_weights(tile.count, 0);
        make_weights(tile.count, 8);
        if (masked && !all_finite(tile)) {
            copy_finite_values(tile, value_dim_, finite_);
            add_values(finite_, value_dim_, tile.count);
            add_other_values(tile, value_dim_, {logits_, max_queries, 1}, max_queries,
                             {out_, max_queries, 1});
        } else {
            add_values(tile.values, tile.value_stride, tile.count);
        }
    }

    void finish(index_t count, float* out, float* log_sum_exp) const {
        for (index_t r = 0; r < count; ++r) {
            const auto weight = static_cast<float>(sum_[r] > 0 ? 1.0 / sum_[r] : 0.0);
            for (index_t d = 0; d < value_dim_; ++d) {
                out[r * value_dim_ + d] = weight * out_[d * max_queries + r];
            }
            if (log_sum_exp != nullptr) {
                log_sum_exp[r] = sum_[r] > 0
                                     ? maximum_[r] * tile_avx2::ln_2 + static_cast<float>(std::log(sum_[r]))
                                     : masked_logit;
            }
        }
    }

  private:
    KVTRIM_TARGET_AVX2 void add_values(const float* values, index_t stride, index_t keys) {
        tile_avx2::multiply_rows<true>({values, 1, stride}, logits_, keys, {out_, max_queries, max_queries},
                                       value_dim_);
    }

    [[nodiscard]] KVTRIM_TARGET_AVX2 bool all_finite(const key_tile& tile) const {
        __m256 others = _mm256_setzero_ps(); // x - x is 0 or NaN
        for (index_t t = 0; t < tile.count; ++t) {
            const float* const row = tile.values + t * tile.value_stride;
            for (index_t d = 0; d < value_dim_; d += 8) {
                const __m256 x = tile_avx2::first_lanes(value_dim_ - d).load(row + d);
                const __m256 difference = _mm256_sub_ps(x, x);
                others = _mm256_or_ps(others, _mm256_cmp_ps(difference, difference, _CMP_UNORD_Q));
            }
        }
        return _mm256_movemask_ps(others) == 0;
    }

    // Queries see a range of lanes of each key.
    void mask(const key_tile& tile, const logit_rules& rules, query_range queries) {
        for (index_t t = 0; t < tile.count; ++t) {
            const index_t distance = queries.first_position - (tile.first_position + t); // of lane 0
            const bool window_ends =
                rules.sliding_window > 0 && distance + max_queries > rules.sliding_window;
            const index_t end =
                window_ends ? std::max<index_t>(0, rules.sliding_window - distance) : max_queries;
            const index_t begin = std::clamp<index_t>(-distance, 0, end);
            float* const row = logits_ + t * max_queries;
            std::fill(row, row + begin, masked_logit);
            std::fill(row + end, row + max_queries, masked_logit);
        }
    }

    // Eight lanes of logits [keys] become weights.
    KVTRIM_TARGET_AVX2 void make_weights(index_t keys, index_t half) {
        float* const logits = logits_ + half;
        const __m256 maximum = raise(logits, keys, half);
        __m256 sum = _mm256_setzero_ps();
        for (index_t t = 0; t < keys; ++t) {
            const __m256 p = tile_avx2::power_of_two(_mm256_loadu_ps(logits + t * max_queries), maximum);
            _mm256_storeu_ps(logits + t * max_queries, p);
            sum = _mm256_add_ps(sum, p);
        }
        alignas(32) float sums[8];
        _mm256_store_ps(sums, sum);
        for (index_t r = 0; r < 8; ++r) { sum_[half + r] += static_cast<double>(sums[r]); }
    }

    // Raises the maximum of a half to that of its logits [keys], the largest float at most; sum and out follow.
    KVTRIM_INLINE_AVX2 __m256 raise(const float* logits, index_t keys, index_t half) {
        const __m256 old = _mm256_loadu_ps(maximum_ + half);
        __m256 highest = old, other = old; // max returns its second operand for NaN
        index_t t = 0;
        for (; t + 2 <= keys; t += 2) {
            highest = _mm256_max_ps(_mm256_loadu_ps(logits + t * max_queries), highest);
            other = _mm256_max_ps(_mm256_loadu_ps(logits + (t + 1) * max_queries), other);
        }
        for (; t < keys; ++t) { highest = _mm256_max_ps(_mm256_loadu_ps(logits + t * max_queries), highest); }
        highest = _mm256_max_ps(highest, other);
        highest = _mm256_min_ps(highest, _mm256_set1_ps(std::numeric_limits<float>::max()));
        const __m256 higher = _mm256_cmp_ps(highest, old, _CMP_GT_OQ);
        if (_mm256_movemask_ps(higher) == 0) { return highest; }
        // Lanes that have seen nothing (-infinity) have nothing to rescale, so any factor will do; those that stay must
        // not lose the rounding of 2^0 each time that another one rises.
        const __m256 factor =
            _mm256_blendv_ps(_mm256_set1_ps(1.0f), tile_avx2::power_of_two(old, highest), higher);
        alignas(32) float factors[8];
        _mm256_store_ps(factors, factor);
        for (index_t r = 0; r < 8; ++r) { sum_[half + r] *= static_cast<double>(factors[r]); }
        for (float* o = out_ + half; o != out_ + half + value_dim_ * max_queries; o += max_queries) {
            _mm256_storeu_ps(o, _mm256_mul_ps(_mm256_loadu_ps(o), factor));
        }
        _mm256_storeu_ps(maximum_ + half, highest);
        return highest;
    }

    index_t head_dim_;
    index_t value_dim_;
    float* maximum_; // [16], units of log 2
    double* sum_;    // [16]
    float* out_;     // [value_dim][16]
    float* queries_; // [head_dim][16], scaled
    float* logits_;  // [max_keys][16]
    float* finite_;  // [max_keys][value_dim], where some values are not
};

} // namespace kvtrim::kernels

#endif // KVTRIM_HAS_X86
