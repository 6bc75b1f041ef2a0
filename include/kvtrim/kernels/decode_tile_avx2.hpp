// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// decode_tile in AVX2, for four queries: as kernels/decode_tile_avx512.hpp, keys and values are read once, as they are, and
// widened in registers while the rows of the next tile are fetched.
//
//   queries [block of 8 channels][4][8]      logits [keys][4]      out [4][value_dim in blocks of 16]
//
// Logits: 2 keys times 4 queries are 8 sums along the channels, folded into one vector of 8 logits. Values: 4 queries times
// 16 channels are in registers while the keys of the tile pass.
//
// Measured: see bench/NOTES.md. Numerics: as kernels/query_tile.hpp; each query's result depends on no other query.

#include <kvtrim/base/element.hpp>
#include <kvtrim/kernels/avx2.hpp>
#include <kvtrim/kernels/decode_tile.hpp>

#if KVTRIM_HAS_X86

namespace kvtrim::kernels {

namespace tile_avx2 {

KVTRIM_INLINE_AVX2 __m256 load_eight(const float* from) {
    return _mm256_loadu_ps(from);
}
KVTRIM_INLINE_AVX2 __m256 load_eight(const bf16* from) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
KVTRIM_INLINE_AVX2 __m256 load_eight(const f16* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

// The first `count` of eight elements, and zeros.
template <class Element>
KVTRIM_INLINE_AVX2 __m256 load_first(const Element* from, index_t count) {
    Element part[8] = {};
    std::copy_n(from, std::clamp<index_t>(count, 0, 8), part);
    return load_eight(part);
}

// Brings near the line that the elements [index, index + 8) of a row begin.
template <class Element>
KVTRIM_INLINE_AVX2 void prefetch_line(const Element* row, index_t index) {
    if (index % (64 / static_cast<index_t>(sizeof(Element))) == 0) { _mm_prefetch(row + index, _MM_HINT_T1); }
}

// Two rows, and how far behind each of them the row lies that will take its place in the next tile.
template <class Element>
struct two_rows {
    const Element* data[2];
    index_t next;
};

// Logits [2 keys][4 queries].
template <class Key>
KVTRIM_INLINE_AVX2 __m256 logits_of(const two_rows<Key>& rows, index_t head_dim, const float* queries) {
    __m256 sum[2][4];
    KVTRIM_UNROLL
    for (std::size_t i = 0; i < 8; ++i) { sum[i / 4][i % 4] = _mm256_setzero_ps(); }
    const auto add = [&](__m256 first, __m256 second) KVTRIM_TARGET_AVX2 __attribute__((always_inline)) {
        KVTRIM_UNROLL
        for (std::size_t r = 0; r < 4; ++r) {
            const __m256 query = _mm256_loadu_ps(queries + 8 * r);
            sum[0][r] = _mm256_fmadd_ps(first, query, sum[0][r]);
            sum[1][r] = _mm256_fmadd_ps(second, query, sum[1][r]);
        }
    };
    index_t d = 0;
    for (; d + 8 <= head_dim; d += 8, queries += 32) {
        prefetch_line(rows.data[0] + rows.next, d);
        prefetch_line(rows.data[1] + rows.next, d);
        add(load_eight(rows.data[0] + d), load_eight(rows.data[1] + d));
    }
    if (d < head_dim) {
        add(load_first(rows.data[0] + d, head_dim - d), load_first(rows.data[1] + d, head_dim - d));
    }
    __m256 key[2]; // halves of the sums of four queries
    KVTRIM_UNROLL
    for (std::size_t k = 0; k < 2; ++k) {
        key[k] = _mm256_hadd_ps(_mm256_hadd_ps(sum[k][0], sum[k][1]), _mm256_hadd_ps(sum[k][2], sum[k][3]));
    }
    return _mm256_add_ps(_mm256_permute2f128_ps(key[0], key[1], 0x20),
                         _mm256_permute2f128_ps(key[0], key[1], 0x31));
}

KVTRIM_INLINE_AVX2 __m256 swap_halves(__m256 x) {
    return _mm256_permute2f128_ps(x, x, 0x01);
}

} // namespace tile_avx2

class decode_tile_avx2 {
  public:
    static constexpr index_t max_queries = 4;
    template <class Element>
    static constexpr bool reads =
        std::is_same_v<Element, float> || std::is_same_v<Element, f16> || std::is_same_v<Element, bf16>;

    [[nodiscard]] static constexpr index_t max_keys(index_t) { return 64; }
    [[nodiscard]] static constexpr index_t own_floats(index_t head_dim, index_t value_dim) {
        return 16 + 4 * (padded(head_dim, 8) + padded(value_dim, value_channels));
    }
    [[nodiscard]] static constexpr index_t shared_floats(index_t, index_t) {
        return max_keys(0) * max_queries;
    }

    // own is aligned for doubles.
    decode_tile_avx2(float* own, float* shared, index_t head_dim, index_t value_dim)
        : head_dim_(head_dim), value_dim_(value_dim), sum_(reinterpret_cast<double*>(own)), maximum_(own + 8),
          queries_(own + 16), out_(queries_ + 4 * padded(head_dim, 8)), logits_(shared) {}

    template <class Key>
    void begin(const float* queries, index_t query_stride, index_t count, const logit_rules& rules) {
        const float scale = rules.soft_cap > 0 ? rules.scale : rules.scale * tile_avx2::log2_e;
        std::fill(queries_, out_, 0.0f);
        for (index_t r = 0; r < count; ++r) {
            for (index_t d = 0; d < head_dim_; ++d) {
                queries_[(d / 8 * 4 + r) * 8 + d % 8] = scale * queries[r * query_stride + d];
            }
        }
        std::fill_n(maximum_, 8, masked_logit);
        std::fill_n(sum_, 4, 0.0);
        std::fill_n(out_, 4 * padded(value_dim_, value_channels), 0.0f);
    }

    template <class Key, class Value>
    KVTRIM_TARGET_AVX2 void attend(element_rows<Key> key_rows, element_rows<Value> value_rows, index_t keys,
                                   index_t, const logit_rules& rules, index_t ahead) {
        for (index_t t = 0; t < keys;
             t += 2) { // the last key of an odd number stands in for the one that is not there
            const tile_avx2::two_rows<Key> rows{
                {key_rows.from(t).data, key_rows.from(std::min(t + 1, keys - 1)).data},
                t + 2 <= ahead ? keys * key_rows.stride : 0};
            _mm256_storeu_ps(logits_ + 4 * t, tile_avx2::logits_of(rows, head_dim_, queries_));
        }
        if (rules.soft_cap > 0) {
            tile_avx2::cap_logits(logits_, 4 * keys, rules.soft_cap, tile_avx2::log2_e);
        }
        std::fill(logits_ + 4 * keys, logits_ + 4 * padded(keys, 2), masked_logit);
        make_weights(keys);
        for (index_t d = 0; d < value_dim_; d += value_channels) {
            if (d + value_channels <= value_dim_) {
                add_values<true>(value_rows, d, keys, ahead);
            } else {
                add_values<false>(value_rows, d, keys, ahead);
            }
        }
    }

    template <class Value>
    void finish(index_t count, float* out, float* log_sum_exp) const {
        for (index_t r = 0; r < count; ++r) {
            const auto weight = static_cast<float>(sum_[r] > 0 ? 1.0 / sum_[r] : 0.0);
            for (index_t d = 0; d < value_dim_; ++d) { out[r * value_dim_ + d] = weight * row_of(r)[d]; }
            log_sum_exp[r] = sum_[r] > 0
                                 ? maximum_[r] * tile_avx2::ln_2 + static_cast<float>(std::log(sum_[r]))
                                 : masked_logit;
        }
    }

  private:
    static constexpr index_t value_channels = 16;

    [[nodiscard]] static constexpr index_t padded(index_t count, index_t multiple) {
        return (count + multiple - 1) / multiple * multiple;
    }
    [[nodiscard]] float* row_of(index_t query) const {
        return out_ + query * padded(value_dim_, value_channels);
    }

    // Logits become weights.
    KVTRIM_TARGET_AVX2 void make_weights(index_t keys) {
        __m256 highest = _mm256_set1_ps(masked_logit);
        for (index_t t = 0; t < keys; t += 2) { // max returns its second operand for NaN
            highest = _mm256_max_ps(_mm256_loadu_ps(logits_ + 4 * t), highest);
        }
        const __m256 maximum = raise(_mm256_max_ps(highest, tile_avx2::swap_halves(highest)));
        __m256 sum = _mm256_setzero_ps();
        for (index_t t = 0; t < keys; t += 2) {
            const __m256 p = tile_avx2::power_of_two(_mm256_loadu_ps(logits_ + 4 * t), maximum);
            _mm256_storeu_ps(logits_ + 4 * t, p);
            sum = _mm256_add_ps(sum, p);
        }
        alignas(32) float sums[8];
        _mm256_store_ps(sums, _mm256_add_ps(sum, tile_avx2::swap_halves(sum)));
        for (index_t r = 0; r < 4; ++r) { sum_[r] += static_cast<double>(sums[r]); }
    }

    // Raises the maximum of each query to what was found, the largest float at most, and returns it; sum and out follow.
    KVTRIM_TARGET_AVX2 __m256 raise(__m256 found) {
        const __m256 old = _mm256_loadu_ps(maximum_);
        const __m256 largest = _mm256_set1_ps(std::numeric_limits<float>::max());
        const __m256 highest = _mm256_min_ps(_mm256_max_ps(found, old), largest);
        const __m256 higher = _mm256_cmp_ps(highest, old, _CMP_GT_OQ);
        if (_mm256_movemask_ps(higher) == 0) { return highest; }
        alignas(32) float factors[8]; // a maximum that stays must not lose the rounding of 2^0 each time
        _mm256_store_ps(
            factors, _mm256_blendv_ps(_mm256_set1_ps(1.0f), tile_avx2::power_of_two(old, highest), higher));
        for (index_t r = 0; r < 4; ++r) {
            sum_[r] *= static_cast<double>(factors[r]);
            const __m256 factor = _mm256_set1_ps(factors[r]);
            for (float* o = row_of(r); o != row_of(r + 1); o += 8) {
                _mm256_storeu_ps(o, _mm256_mul_ps(_mm256_loadu_ps(o), factor));
            }
        }
        _mm256_storeu_ps(maximum_, highest);
        return highest;
    }

    // out [4][d, d + 16) += weights * values, the tile's sum first.
    template <bool Whole, class Value>
    KVTRIM_TARGET_AVX2 void add_values(element_rows<Value> values, index_t d, index_t keys, index_t ahead) {
        const index_t channels = value_dim_ - d;
        __m256 sum[4][2];
        KVTRIM_UNROLL
        for (std::size_t i = 0; i < 8; ++i) { sum[i / 2][i % 2] = _mm256_setzero_ps(); }
        const Value* row = values.data + d;
        for (index_t t = 0; t < keys; ++t, row += values.stride) {
            const Value* const next = row - d + (t < ahead ? keys * values.stride : 0);
            tile_avx2::prefetch_line(next, d);
            const __m256 first = Whole ? tile_avx2::load_eight(row) : tile_avx2::load_first(row, channels);
            const __m256 second =
                Whole ? tile_avx2::load_eight(row + 8) : tile_avx2::load_first(row + 8, channels - 8);
            KVTRIM_UNROLL
            for (std::size_t r = 0; r < 4; ++r) {
                const __m256 weight = _mm256_broadcast_ss(logits_ + 4 * t + r);
                sum[r][0] = _mm256_fmadd_ps(weight, first, sum[r][0]);
                sum[r][1] = _mm256_fmadd_ps(weight, second, sum[r][1]);
            }
        }
        KVTRIM_UNROLL
        for (std::size_t i = 0; i < 8; ++i) {
            float* const to = row_of(static_cast<index_t>(i / 2)) + d + static_cast<index_t>(i % 2 * 8);
            _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), sum[i / 2][i % 2]));
        }
    }

    index_t head_dim_;
    index_t value_dim_;
    double* sum_;    // [4]
    float* maximum_; // [2][4]: a query's stands in each half; units of log 2
    float* queries_; // [head_dim / 8][4][8], scaled
    float* out_;     // [4][value_dim], padded
    float* logits_;  // [max_keys][4]
};

} // namespace kvtrim::kernels

#endif // KVTRIM_HAS_X86
