// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Online softmax of 32 queries side by side in the lanes of two AVX-512 vectors: what query_tile_avx512 and
// query_tile_amx have in common.
//
//   logits [keys][32], out [value_dim][32], maximum [32], sum [32]
//
// All of it is vertical, one half of 16 lanes at a time. Logits are in units of log 2, so that the exponential is one of
// base 2. Numerics: as kernels/query_tile.hpp; 2^x with relative error 1.5e-7.

#include <kvtrim/kernels/avx512.hpp>
#include <kvtrim/kernels/query_tile.hpp>

#if KVTRIM_HAS_X86

namespace kvtrim::kernels::tile_avx512 {

inline constexpr index_t lanes = panel_columns;
inline constexpr float log2_e = 1.44269504f;
inline constexpr float ln_2 = 0.693147181f;

// Masks, in logits [keys][32] of the keys at cache rows [first_key, ...), what the queries do not see.
KVTRIM_TARGET_AVX512 inline void mask_logits(float* logits, index_t keys, index_t first_key,
                                             const logit_rules& rules, query_range queries) {
    const __m512 masked = _mm512_set1_ps(masked_logit);
    for (index_t t = 0; t < keys; ++t, logits += lanes) {
        const index_t distance = queries.first_position - (first_key + t); // from the query of lane 0
        const bool window_ends = rules.sliding_window > 0 && distance + lanes > rules.sliding_window;
        const index_t end = window_ends ? std::max<index_t>(0, rules.sliding_window - distance) : lanes;
        const index_t begin = std::clamp<index_t>(-distance, 0, end);
        const std::uint64_t hidden = ~((std::uint64_t{1} << end) - (std::uint64_t{1} << begin));
        _mm512_mask_storeu_ps(logits, static_cast<__mmask16>(hidden), masked);
        _mm512_mask_storeu_ps(logits + 16, static_cast<__mmask16>(hidden >> 16), masked);
    }
}

// The highest logit of each of 16 lanes; NaN counts for nothing.
KVTRIM_INLINE_AVX512 __m512 highest_of(const float* logits, index_t keys) {
    __m512 highest = _mm512_set1_ps(masked_logit), other = highest; // max returns its second operand for NaN
    index_t t = 0;
    for (; t + 2 <= keys; t += 2) {
        highest = max(_mm512_loadu_ps(logits + t * lanes), highest);
        other = max(_mm512_loadu_ps(logits + (t + 1) * lanes), other);
    }
    for (; t < keys; ++t) { highest = max(_mm512_loadu_ps(logits + t * lanes), highest); }
    return max(highest, other);
}

// 2^(logit - maximum), the logit at most the largest float. A weight below e^-75 is exactly 0: nothing to a float sum,
// and denormals would be slow. So are the weights of masked logits and of NaN.
KVTRIM_INLINE_AVX512 __m512 weight_of(__m512 logit, __m512 maximum) {
    const __m512 largest = _mm512_set1_ps(std::numeric_limits<float>::max());
    const __m512 x = _mm512_sub_ps(min(largest, logit), maximum);
    const __mmask16 counts = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-108.0f), _CMP_GT_OQ); // false for NaN
    return exp2(x, counts);
}

// What 32 queries know of the keys seen so far, a view. A half is the lane that 16 lanes start with: 0 or 16.
struct lane_softmax {
    float* maximum; // [32], units of log 2
    double* sum;    // [32]
    float* out;     // [value_dim][32]
    index_t value_dim;

    [[nodiscard]] static constexpr index_t floats(index_t value_dim) { return lanes * (value_dim + 3); }

    // memory [floats(value_dim)] is aligned for doubles.
    lane_softmax(float* memory, index_t columns)
        : maximum(memory), sum(reinterpret_cast<double*>(memory + lanes)), out(memory + 3 * lanes),
          value_dim(columns) {}

    void begin(float sink_logit) const {
        std::fill_n(maximum, lanes, sink_logit * log2_e);
        std::fill_n(sum, lanes, sink_logit == masked_logit ? 0.0 : 1.0);
        std::fill_n(out, value_dim * lanes, 0.0f);
    }

    // Raises the maximum of a half to what was found, the largest float at most, and returns it; sum and out follow.
    KVTRIM_INLINE_AVX512 __m512 raise(index_t half, __m512 found) const {
        const __m512 old = _mm512_loadu_ps(maximum + half);
        const __m512 highest = min(max(found, old), _mm512_set1_ps(std::numeric_limits<float>::max()));
        const __mmask16 higher = _mm512_cmp_ps_mask(highest, old, _CMP_GT_OQ);
        if (higher == 0) { return highest; }
        // Lanes that have seen nothing (-infinity) have nothing to rescale; those that stay must not lose the
        // rounding of 2^0 each time that another one rises.
        const __mmask16 seen = _mm512_cmp_ps_mask(old, _mm512_set1_ps(masked_logit), _CMP_GT_OQ);
        const __m512 distance = _mm512_maskz_sub_ps(seen, old, highest);
        const __m512 power = exp2(max(distance, _mm512_set1_ps(-200.0f)));
        const __m512 factor = _mm512_mask_mov_ps(_mm512_set1_ps(1.0f), higher, power);
        alignas(64) float factors[16];
        _mm512_store_ps(factors, factor);
        for (index_t r = 0; r < 16; ++r) { sum[half + r] *= static_cast<double>(factors[r]); }
        for (float* o = out + half; o != out + half + value_dim * lanes; o += lanes) {
            _mm512_storeu_ps(o, _mm512_mul_ps(_mm512_loadu_ps(o), factor));
        }
        _mm512_storeu_ps(maximum + half, highest);
        return highest;
    }

    // Adds the weights of a key tile, summed in float.
    KVTRIM_INLINE_AVX512 void add(index_t half, __m512 weights) const {
        alignas(64) float sums[16];
        _mm512_store_ps(sums, weights);
        for (index_t r = 0; r < 16; ++r) { sum[half + r] += static_cast<double>(sums[r]); }
    }

    // to [count, columns], columns <= value_dim; log_sum_exp [count] unless null.
    void finish(index_t count, index_t columns, float* to, float* log_sum_exp) const {
        for (index_t r = 0; r < count; ++r) {
            const auto weight = static_cast<float>(sum[r] > 0 ? 1.0 / sum[r] : 0.0);
            for (index_t d = 0; d < columns; ++d) { to[r * columns + d] = weight * out[d * lanes + r]; }
            if (log_sum_exp != nullptr) {
                log_sum_exp[r] =
                    sum[r] > 0 ? maximum[r] * ln_2 + static_cast<float>(std::log(sum[r])) : masked_logit;
            }
        }
    }
};

} // namespace kvtrim::kernels::tile_avx512

#endif // KVTRIM_HAS_X86
