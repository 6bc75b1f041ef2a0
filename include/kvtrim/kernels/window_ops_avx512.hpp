// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// window_ops in AVX-512: query rows side by side in the lanes, 32 of them (a packed panel [head_dim][32]) per product,
// 64 in every other step; keys are read where they are. Lanes behind the last row are masked off.
//
// Numerics: as kernels/window_ops.hpp; the exponential is 2^(x log2 e) with relative error 3e-7 for x > -10 and
// 6e-8 |x| beyond. NaN logits stay in the tile; every step skips them.

#include <kvtrim/kernels/avx512.hpp>
#include <kvtrim/kernels/window_ops.hpp>

#if KVTRIM_HAS_X86

namespace kvtrim::kernels::avx512 {

// e^(logit - maximum), 0 for NaN and below e^-75. The constants of a loop.
struct exponential {
    __m512 log2_e, cutoff, largest;
};

KVTRIM_INLINE_AVX512 exponential make_exponential() {
    return {_mm512_set1_ps(1.44269504f), _mm512_set1_ps(-75.0f),
            _mm512_set1_ps(std::numeric_limits<float>::max())};
}

KVTRIM_INLINE_AVX512 __m512 weight_of(const exponential& e, __m512 logit, __m512 maximum) {
    const __m512 x = _mm512_sub_ps(min(e.largest, logit), maximum);
    const __mmask16 counts = _mm512_cmp_ps_mask(x, e.cutoff, _CMP_GT_OQ); // false for NaN
    return _mm512_maskz_mov_ps(counts, exp2(_mm512_mul_ps(x, e.log2_e)));
}

// A row that has seen masked logits only has no finite maximum; relative to 0 its weights are 0.
KVTRIM_INLINE_AVX512 __m512 finite_or_zero(__m512 maximum) {
    const __mmask16 seen = _mm512_cmp_ps_mask(maximum, _mm512_set1_ps(masked_logit), _CMP_GT_OQ);
    return _mm512_maskz_mov_ps(seen, maximum);
}

KVTRIM_INLINE_AVX512 float highest_of_lanes(__m512 x) {
    return avx2::highest_of_lanes(
        _mm256_max_ps(_mm512_maskz_extractf32x8_ps(0xff, x, 0), _mm512_maskz_extractf32x8_ps(0xff, x, 1)));
}

// ---- 16 * Vectors rows from `first` on ----

template <std::size_t Vectors>
KVTRIM_TARGET_AVX512 inline void raise_maximum(const float* tile, index_t tokens, index_t rows, index_t first,
                                               float* maximum, float* rescale) {
    __m512 old[Vectors], highest[Vectors];
    __mmask16 mask[Vectors];
    KVTRIM_UNROLL
    for (std::size_t v = 0; v < Vectors; ++v) {
        const index_t row = first + static_cast<index_t>(16 * v);
        mask[v] = first_lanes(rows - row);
        old[v] = highest[v] = _mm512_mask_loadu_ps(_mm512_set1_ps(masked_logit), mask[v], maximum + row);
    }
    for (index_t t = 0; t < tokens; ++t) {
        KVTRIM_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) { // max gives its second operand for NaN
            const float* const from = tile + t * rows + first + static_cast<index_t>(16 * v);
            highest[v] = max(_mm512_maskz_loadu_ps(mask[v], from), highest[v]);
        }
    }
    const exponential e = make_exponential();
    KVTRIM_UNROLL
    for (std::size_t v = 0; v < Vectors; ++v) {
        const index_t row = first + static_cast<index_t>(16 * v);
        highest[v] = min(highest[v], e.largest);
        // A maximum that stays must not lose the rounding of 2^0 each time.
        const __mmask16 higher = _mm512_cmp_ps_mask(highest[v], old[v], _CMP_GT_OQ);
        const __m512 factor =
            _mm512_mask_mov_ps(_mm512_set1_ps(1.0f), higher, weight_of(e, old[v], highest[v]));
        _mm512_mask_storeu_ps(maximum + row, mask[v], highest[v]);
        _mm512_mask_storeu_ps(rescale + row, mask[v], factor);
    }
}

template <std::size_t Vectors>
KVTRIM_TARGET_AVX512 inline void add_exponentials(const float* tile, index_t tokens, index_t rows,
                                                  index_t first, const float* maximum, double* sums) {
    const exponential e = make_exponential();
    __m512 highest[Vectors], sum[Vectors];
    __mmask16 mask[Vectors];
    KVTRIM_UNROLL
    for (std::size_t v = 0; v < Vectors; ++v) {
        const index_t row = first + static_cast<index_t>(16 * v);
        mask[v] = first_lanes(rows - row);
        highest[v] = finite_or_zero(_mm512_maskz_loadu_ps(mask[v], maximum + row));
        sum[v] = _mm512_setzero_ps();
    }
    for (index_t t = 0; t < tokens; ++t) {
        KVTRIM_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) {
            const float* const from = tile + t * rows + first + static_cast<index_t>(16 * v);
            sum[v] = _mm512_add_ps(sum[v], weight_of(e, _mm512_maskz_loadu_ps(mask[v], from), highest[v]));
        }
    }
    for (std::size_t v = 0; v < Vectors; ++v) {
        alignas(64) float partial[16];
        _mm512_store_ps(partial, sum[v]);
        const index_t row = first + static_cast<index_t>(16 * v);
        for (index_t r = 0; r < std::min<index_t>(16, rows - row); ++r) {
            sums[row + r] += static_cast<double>(partial[r]);
        }
    }
}

template <std::size_t Vectors>
KVTRIM_TARGET_AVX512 inline void attention(const float* tile, index_t tokens, index_t rows, index_t first,
                                           const float* maximum, const float* weight, float* out) {
    const exponential e = make_exponential();
    __m512 highest[Vectors], weights[Vectors];
    __mmask16 mask[Vectors];
    KVTRIM_UNROLL
    for (std::size_t v = 0; v < Vectors; ++v) {
        const index_t row = first + static_cast<index_t>(16 * v);
        mask[v] = first_lanes(rows - row);
        highest[v] = _mm512_maskz_loadu_ps(mask[v], maximum + row);
        weights[v] = _mm512_maskz_loadu_ps(mask[v], weight + row);
    }
    for (index_t t = 0; t < tokens; ++t) {
        KVTRIM_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) {
            const index_t at = t * rows + first + static_cast<index_t>(16 * v);
            const __m512 x = weight_of(e, _mm512_maskz_loadu_ps(mask[v], tile + at), highest[v]);
            _mm512_mask_storeu_ps(out + at, mask[v], _mm512_mul_ps(x, weights[v]));
        }
    }
}

// ---- All rows ----

KVTRIM_TARGET_AVX512 inline void pack_queries(const float* queries, index_t first_row, index_t count,
                                              index_t head_dim, float scale, float* packed) {
    for (index_t i = 0; i < count; ++i) {
        const index_t row = first_row + i;
        float* const to = packed + row / panel_columns * panel_columns * head_dim + row % panel_columns;
        for (index_t d = 0; d < head_dim; ++d) { to[d * panel_columns] = scale * queries[i * head_dim + d]; }
    }
}

KVTRIM_TARGET_AVX512 inline void logits(const float* keys, index_t key_stride, index_t tokens,
                                        const float* packed, index_t rows, index_t head_dim, float soft_cap,
                                        float* out, soon_read next) {
    // The first panel alone would read the keys four times faster than memory gives them; the rest would not read at all.
    constexpr index_t line_bytes = 64, step_tokens = 8;
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

KVTRIM_TARGET_AVX512 inline void raise_maximum_of_rows(const float* tile, index_t tokens, index_t rows,
                                                       float* maximum, float* rescale) {
    index_t r = 0;
    for (; r + 64 <= rows; r += 64) { raise_maximum<4>(tile, tokens, rows, r, maximum, rescale); }
    for (; r < rows; r += 16) { raise_maximum<1>(tile, tokens, rows, r, maximum, rescale); }
}

KVTRIM_TARGET_AVX512 inline void add_exponentials_of_rows(const float* tile, index_t tokens, index_t rows,
                                                          const float* maximum, double* sums) {
    index_t r = 0;
    for (; r + 64 <= rows; r += 64) { add_exponentials<4>(tile, tokens, rows, r, maximum, sums); }
    for (; r < rows; r += 16) { add_exponentials<1>(tile, tokens, rows, r, maximum, sums); }
}

KVTRIM_TARGET_AVX512 inline void attention_of_rows(const float* tile, index_t tokens, index_t rows,
                                                   const float* maximum, const float* weight, float* out) {
    index_t r = 0;
    for (; r + 64 <= rows; r += 64) { attention<4>(tile, tokens, rows, r, maximum, weight, out); }
    for (; r < rows; r += 16) { attention<1>(tile, tokens, rows, r, maximum, weight, out); }
}

KVTRIM_TARGET_AVX512 inline void add_row_sums(const float* attention, index_t tokens, index_t rows,
                                              index_t begin, index_t end, float* sums) {
    for (index_t t = 0; t < tokens; ++t) {
        const float* const row = attention + t * rows;
        __m512 sum = _mm512_setzero_ps();
        for (index_t r = begin; r < end; r += 16) {
            sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(first_lanes(end - r), row + r));
        }
        sums[t] += sum_of_lanes(sum);
    }
}

KVTRIM_TARGET_AVX512 inline void raise_to_pooled(const float* attention, index_t tokens, index_t before,
                                                 index_t after, index_t half, index_t rows,
                                                 const float* factor, float* best) {
    for (index_t t = 0; t < tokens; ++t) {
        const index_t first = std::max(t - half, -before);
        const index_t end = std::min(t + half + 1, tokens + after);
        __m512 highest = _mm512_setzero_ps(); // attention is not negative
        for (index_t r = 0; r < rows; r += 16) {
            const __mmask16 mask = first_lanes(rows - r);
            __m512 sum = _mm512_setzero_ps();
            for (index_t j = first; j < end; ++j) {
                sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, attention + j * rows + r));
            }
            highest = max(_mm512_mul_ps(sum, _mm512_maskz_loadu_ps(mask, factor + r)), highest);
        }
        best[t] = std::max(best[t], highest_of_lanes(highest));
    }
}

} // namespace kvtrim::kernels::avx512

#endif // KVTRIM_HAS_X86
