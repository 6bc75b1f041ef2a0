// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// window_ops in AVX2: as kernels/window_ops_avx512.hpp, with 8 query rows in a vector, 16 in a packed panel
// [head_dim][16], and 32 in every step but the product. Rows behind the last whole eight take masked loads and stores.
//
// Numerics: as kernels/window_ops_avx512.hpp.

#include <kvtrim/kernels/avx2.hpp>
#include <kvtrim/kernels/window_ops.hpp>

#if KVTRIM_HAS_X86

namespace kvtrim::kernels::avx2 {

// e^(logit - maximum), 0 for NaN and below e^-75.
KVTRIM_INLINE_AVX2 __m256 weight_of(__m256 logit, __m256 maximum) {
    const __m256 largest = _mm256_set1_ps(std::numeric_limits<float>::max());
    const __m256 x =
        _mm256_sub_ps(_mm256_min_ps(largest, logit), maximum); // min gives its second operand for NaN
    const __m256 counts = _mm256_cmp_ps(x, _mm256_set1_ps(-75.0f), _CMP_GT_OQ);
    return _mm256_and_ps(counts, exp2(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f))));
}

// A row that has seen masked logits only has no finite maximum; relative to 0 its weights are 0.
KVTRIM_INLINE_AVX2 __m256 finite_or_zero(__m256 maximum) {
    return _mm256_and_ps(maximum, _mm256_cmp_ps(maximum, _mm256_set1_ps(masked_logit), _CMP_GT_OQ));
}

// Calls step.run<Vectors>(first row, lanes) until all rows are done: four vectors at a time, one, and what is left.
template <class Step>
KVTRIM_INLINE_AVX2 void for_all_rows(index_t rows, const Step& step) {
    index_t r = 0;
    for (; r + 32 <= rows; r += 32) { step.template run<4>(r, all_lanes{}); }
    for (; r + 8 <= rows; r += 8) { step.template run<1>(r, all_lanes{}); }
    if (r < rows) { step.template run<1>(r, first_lanes(rows - r)); }
}

struct maximum_step {
    const float* tile;
    index_t tokens, rows;
    float* maximum;
    float* rescale;

    template <std::size_t Vectors, class Lanes>
    KVTRIM_TARGET_AVX2 void run(index_t first, Lanes lanes) const {
        __m256 highest[Vectors];
        for (std::size_t v = 0; v < Vectors; ++v) { highest[v] = _mm256_set1_ps(masked_logit); }
        for (index_t t = 0; t < tokens; ++t) {
            KVTRIM_UNROLL
            for (std::size_t v = 0; v < Vectors; ++v) { // max gives its second operand for NaN
                const float* const from = tile + t * rows + first + static_cast<index_t>(8 * v);
                highest[v] = _mm256_max_ps(lanes.load(from), highest[v]);
            }
        }
        const __m256 largest = _mm256_set1_ps(std::numeric_limits<float>::max());
        for (std::size_t v = 0; v < Vectors; ++v) {
            const index_t row = first + static_cast<index_t>(8 * v);
            const __m256 old = lanes.load(maximum + row);
            highest[v] = _mm256_min_ps(_mm256_max_ps(highest[v], old), largest);
            // A maximum that stays must not lose the rounding of 2^0 each time.
            const __m256 higher = _mm256_cmp_ps(highest[v], old, _CMP_GT_OQ);
            const __m256 factor = _mm256_blendv_ps(_mm256_set1_ps(1.0f), weight_of(old, highest[v]), higher);
            lanes.store(maximum + row, highest[v]);
            lanes.store(rescale + row, factor);
        }
    }
};

struct exponentials_step {
    const float* tile;
    index_t tokens, rows;
    const float* maximum;
    double* sums;

    template <std::size_t Vectors, class Lanes>
    KVTRIM_TARGET_AVX2 void run(index_t first, Lanes lanes) const {
        __m256 highest[Vectors], sum[Vectors];
        KVTRIM_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) {
            highest[v] = finite_or_zero(lanes.load(maximum + first + static_cast<index_t>(8 * v)));
            sum[v] = _mm256_setzero_ps();
        }
        for (index_t t = 0; t < tokens; ++t) {
            KVTRIM_UNROLL
            for (std::size_t v = 0; v < Vectors; ++v) {
                const float* const from = tile + t * rows + first + static_cast<index_t>(8 * v);
                sum[v] = _mm256_add_ps(sum[v], weight_of(lanes.load(from), highest[v]));
            }
        }
        for (std::size_t v = 0; v < Vectors; ++v) {
            alignas(32) float partial[8];
            _mm256_store_ps(partial, sum[v]);
            double* const to = sums + first + static_cast<index_t>(8 * v);
            for (index_t r = 0; r < lanes.count(); ++r) { to[r] += static_cast<double>(partial[r]); }
        }
    }
};

struct attention_step {
    const float* tile;
    index_t tokens, rows;
    const float* maximum;
    const float* weight;
    float* out;

    template <std::size_t Vectors, class Lanes>
    KVTRIM_TARGET_AVX2 void run(index_t first, Lanes lanes) const {
        __m256 highest[Vectors], weights[Vectors];
        KVTRIM_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) {
            const index_t row = first + static_cast<index_t>(8 * v);
            highest[v] = lanes.load(maximum + row);
            weights[v] = lanes.load(weight + row);
        }
        for (index_t t = 0; t < tokens; ++t) {
            KVTRIM_UNROLL
            for (std::size_t v = 0; v < Vectors; ++v) {
                const index_t at = t * rows + first + static_cast<index_t>(8 * v);
                const __m256 x = weight_of(lanes.load(tile + at), highest[v]);
                lanes.store(out + at, _mm256_mul_ps(x, weights[v]));
            }
        }
    }
};

// ---- The kernels ----

KVTRIM_TARGET_AVX2 inline void pack_queries(const float* queries, index_t first_row, index_t count,
                                            index_t head_dim, float scale, float* packed) {
    for (index_t i = 0; i < count; ++i) {
        const index_t row = first_row + i;
        float* const to = packed + row / panel_columns * panel_columns * head_dim + row % panel_columns;
        for (index_t d = 0; d < head_dim; ++d) { to[d * panel_columns] = scale * queries[i * head_dim + d]; }
    }
}

KVTRIM_TARGET_AVX2 inline void logits(const float* keys, index_t key_stride, index_t tokens,
                                      const float* packed, index_t rows, index_t head_dim, float soft_cap,
                                      float* out, soon_read next) {
    // What comes next is brought near evenly over all panels, as in AVX-512.
    constexpr index_t line_bytes = 64, step_tokens = 12;
    const index_t steps =
        (rows + panel_columns - 1) / panel_columns * ((tokens + step_tokens - 1) / step_tokens);
    const index_t step_bytes = (next.bytes / steps + line_bytes) / line_bytes * line_bytes;
    const char* line = static_cast<const char*>(next.data);
    const char* const end = line + next.bytes;
    for (index_t r = 0; r < rows; r += panel_columns) {
        for (index_t t = 0; t < tokens; t += step_tokens) {
            for (const char* stop = line + std::min<index_t>(step_bytes, end - line); line < stop;
                 line += line_bytes) {
                _mm_prefetch(line, _MM_HINT_T1);
            }
            multiply_rows<false>({keys + t * key_stride, key_stride, 1}, packed + r * head_dim, head_dim,
                                 {out + t * rows + r, rows, std::min(panel_columns, rows - r)},
                                 std::min(step_tokens, tokens - t));
        }
    }
    if (soft_cap > 0) { cap_logits(out, tokens * rows, soft_cap, 1.0f); }
}

KVTRIM_TARGET_AVX2 inline void raise_maximum(const float* tile, index_t tokens, index_t rows, float* maximum,
                                             float* rescale) {
    for_all_rows(rows, maximum_step{tile, tokens, rows, maximum, rescale});
}

KVTRIM_TARGET_AVX2 inline void add_exponentials(const float* tile, index_t tokens, index_t rows,
                                                const float* maximum, double* sums) {
    for_all_rows(rows, exponentials_step{tile, tokens, rows, maximum, sums});
}

KVTRIM_TARGET_AVX2 inline void attention(const float* tile, index_t tokens, index_t rows,
                                         const float* maximum, const float* weight, float* out) {
    for_all_rows(rows, attention_step{tile, tokens, rows, maximum, weight, out});
}

KVTRIM_TARGET_AVX2 inline void add_row_sums(const float* attention, index_t tokens, index_t rows,
                                            index_t begin, index_t end, float* sums) {
    for (index_t t = 0; t < tokens; ++t) {
        const float* const row = attention + t * rows;
        __m256 sum = _mm256_setzero_ps();
        index_t r = begin;
        for (; r + 8 <= end; r += 8) { sum = _mm256_add_ps(sum, _mm256_loadu_ps(row + r)); }
        if (r < end) { sum = _mm256_add_ps(sum, first_lanes(end - r).load(row + r)); }
        sums[t] += sum_of_lanes(sum);
    }
}

// The sum over rows [first, end) of attention [.., rows] times a factor, 8 columns of it.
template <class Lanes>
KVTRIM_INLINE_AVX2 __m256 pooled_rows(const float* attention, index_t first, index_t end, index_t rows,
                                      const float* factor, Lanes lanes) {
    __m256 sum = _mm256_setzero_ps();
    for (index_t j = first; j < end; ++j) { sum = _mm256_add_ps(sum, lanes.load(attention + j * rows)); }
    return _mm256_mul_ps(sum, lanes.load(factor));
}

KVTRIM_TARGET_AVX2 inline void raise_to_pooled(const float* attention, index_t tokens, index_t before,
                                               index_t after, index_t half, index_t rows, const float* factor,
                                               float* best) {
    for (index_t t = 0; t < tokens; ++t) {
        const index_t first = std::max(t - half, -before);
        const index_t end = std::min(t + half + 1, tokens + after);
        __m256 highest = _mm256_setzero_ps(); // attention is not negative
        index_t r = 0;
        for (; r + 8 <= rows; r += 8) {
            highest =
                _mm256_max_ps(pooled_rows(attention + r, first, end, rows, factor + r, all_lanes{}), highest);
        }
        if (r < rows) {
            const first_lanes some(rows - r);
            highest = _mm256_max_ps(pooled_rows(attention + r, first, end, rows, factor + r, some), highest);
        }
        best[t] = std::max(best[t], highest_of_lanes(highest));
    }
}

} // namespace kvtrim::kernels::avx2

#endif // KVTRIM_HAS_X86
