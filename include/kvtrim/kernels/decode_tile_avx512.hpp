// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// decode_tile in AVX-512, for four queries: a decode step is bound by memory, so keys and values are read once, as they
// are, and widened in registers while the rows of the next tile are fetched.
//
//   queries [block of 32 channels][4][32]      logits [keys / 4][4 keys][4]      out [4][value_dim in blocks of 64]
//
// Logits: 4 keys times 4 queries are 16 sums along the channels, which a tree of shuffles folds into one vector of 16
// logits. Values: 4 queries times 64 channels are in registers while the keys of the tile pass. A vector of 32 bf16 is
// widened in two operations, into its even and its odd elements; queries and out are kept in that order.
//
// Measured: see bench/NOTES.md. Numerics: as kernels/query_tile.hpp; each query's result depends on no other query.

#include <kvtrim/base/element.hpp>
#include <kvtrim/kernels/decode_tile.hpp>
#include <kvtrim/kernels/lanes_avx512.hpp>

#if KVTRIM_HAS_X86

namespace kvtrim::kernels {

namespace tile_avx512 {

inline constexpr index_t block_channels = 32;

// Where the channel of a block is after widening.
template <class Element>
[[nodiscard]] constexpr index_t lane_of(index_t channel) {
    return std::is_same_v<Element, bf16> ? channel % 2 * 16 + channel / 2 : channel;
}

struct wide_block {
    __m512 low, high;
};

// The channels [0, 32) of a row that `wanted` has; others are 0.
template <bool Whole>
KVTRIM_INLINE_AVX512 wide_block load_block(const float* from, __mmask32 wanted) {
    if constexpr (Whole) { return {_mm512_loadu_ps(from), _mm512_loadu_ps(from + 16)}; }
    return {_mm512_maskz_loadu_ps(static_cast<__mmask16>(wanted), from),
            _mm512_maskz_loadu_ps(static_cast<__mmask16>(wanted >> 16), from + 16)};
}

template <bool Whole>
KVTRIM_INLINE_AVX512 wide_block load_block(const bf16* from, __mmask32 wanted) {
    const __m512i bits = Whole ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi16(wanted, from);
    const __m512i odd = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    return {_mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, bits, 16)),
            _mm512_castsi512_ps(_mm512_and_si512(bits, odd))};
}

template <bool Whole>
KVTRIM_INLINE_AVX512 wide_block load_block(const f16* from, __mmask32 wanted) {
    const __mmask16 masks[2] = {static_cast<__mmask16>(Whole ? 0xffff : wanted),
                                static_cast<__mmask16>(Whole ? 0xffff : wanted >> 16)};
    return {_mm512_maskz_cvtph_ps(0xffff, _mm256_maskz_loadu_epi16(masks[0], from)),
            _mm512_maskz_cvtph_ps(0xffff, _mm256_maskz_loadu_epi16(masks[1], from + 16))};
}

// All channels of a block, or the last of a row.
[[nodiscard]] inline __mmask32 first_channels(index_t count) {
    return static_cast<__mmask32>((std::uint64_t{1} << std::clamp<index_t>(count, 0, 32)) - 1);
}

// The lines of one block of channels.
template <class Element>
KVTRIM_INLINE_AVX512 void prefetch_block(const Element* from) {
    _mm_prefetch(from, _MM_HINT_T1);
    if constexpr (sizeof(Element) == 4) { _mm_prefetch(from + 16, _MM_HINT_T1); }
}

// Neighbouring lanes of a and b added: twice applied, each 128-bit lane holds one sum of each of four vectors.
KVTRIM_INLINE_AVX512 __m512 fold_pairs(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_maskz_unpacklo_ps(0xffff, a, b), _mm512_maskz_unpackhi_ps(0xffff, a, b));
}
KVTRIM_INLINE_AVX512 __m512 fold_fours(__m512 a, __m512 b) {
    const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
    return _mm512_add_ps(_mm512_castpd_ps(_mm512_maskz_unpacklo_pd(0xff, x, y)),
                         _mm512_castpd_ps(_mm512_maskz_unpackhi_pd(0xff, x, y)));
}
// Pairs of 128-bit lanes of a and b added.
KVTRIM_INLINE_AVX512 __m512 fold_quarters(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_maskz_shuffle_f32x4(0xffff, a, b, 0x88),
                         _mm512_maskz_shuffle_f32x4(0xffff, a, b, 0xdd));
}

// Four rows, and how far behind each of them the row lies that will take its place in the next tile.
template <class Element>
struct four_rows {
    const Element* data[4];
    index_t next;
};

// sum [key][query] += the products of four keys and four queries in one block of channels.
template <bool Whole, class Key>
KVTRIM_INLINE_AVX512 void add_products(const four_rows<Key>& rows, index_t channel, __mmask32 wanted,
                                       const float* queries, __m512 (&sum)[4][4]) {
    wide_block keys[4];
    KVTRIM_UNROLL
    for (std::size_t k = 0; k < 4; ++k) {
        keys[k] = load_block<Whole>(rows.data[k] + channel, wanted);
        prefetch_block(rows.data[k] + channel + rows.next);
    }
    KVTRIM_UNROLL
    for (std::size_t r = 0; r < 4; ++r) {
        const __m512 low = _mm512_loadu_ps(queries + block_channels * static_cast<index_t>(r));
        const __m512 high = _mm512_loadu_ps(queries + block_channels * static_cast<index_t>(r) + 16);
        KVTRIM_UNROLL
        for (std::size_t k = 0; k < 4; ++k) {
            sum[k][r] = _mm512_fmadd_ps(keys[k].low, low, sum[k][r]);
            sum[k][r] = _mm512_fmadd_ps(keys[k].high, high, sum[k][r]);
        }
    }
}

// Four logits of each of four keys, whose rows may repeat.
template <class Key>
KVTRIM_INLINE_AVX512 __m512 logits_of(const four_rows<Key>& rows, index_t head_dim, const float* queries) {
    __m512 sum[4][4];
    KVTRIM_UNROLL
    for (std::size_t i = 0; i < 16; ++i) { sum[i / 4][i % 4] = _mm512_setzero_ps(); }
    index_t channel = 0;
    for (; channel + block_channels <= head_dim; channel += block_channels, queries += 4 * block_channels) {
        add_products<true>(rows, channel, 0, queries, sum);
    }
    if (channel < head_dim) {
        add_products<false>(rows, channel, first_channels(head_dim - channel), queries, sum);
    }
    __m512 key[4];
    KVTRIM_UNROLL
    for (std::size_t k = 0; k < 4; ++k) {
        key[k] = fold_fours(fold_pairs(sum[k][0], sum[k][1]), fold_pairs(sum[k][2], sum[k][3]));
    }
    return fold_quarters(fold_quarters(key[0], key[1]), fold_quarters(key[2], key[3]));
}

// A query's lanes stand at the same place in every 128-bit lane; afterwards each holds the result of all four.
KVTRIM_INLINE_AVX512 __m512 max_over_keys(__m512 x) {
    x = max(x, _mm512_maskz_shuffle_f32x4(0xffff, x, x, 0x4e));
    return max(x, _mm512_maskz_shuffle_f32x4(0xffff, x, x, 0xb1));
}
KVTRIM_INLINE_AVX512 __m512 sum_over_keys(__m512 x) {
    x = _mm512_add_ps(x, _mm512_maskz_shuffle_f32x4(0xffff, x, x, 0x4e));
    return _mm512_add_ps(x, _mm512_maskz_shuffle_f32x4(0xffff, x, x, 0xb1));
}

} // namespace tile_avx512

class decode_tile_avx512 {
  public:
    static constexpr index_t max_queries = 4;
    template <class Element>
    static constexpr bool reads =
        std::is_same_v<Element, float> || std::is_same_v<Element, f16> || std::is_same_v<Element, bf16>;

    [[nodiscard]] static constexpr index_t max_keys(index_t) { return 64; }
    [[nodiscard]] static constexpr index_t own_floats(index_t head_dim, index_t value_dim) {
        return 32 + 4 * (padded(head_dim, tile_avx512::block_channels) + padded(value_dim, value_channels));
    }
    [[nodiscard]] static constexpr index_t shared_floats(index_t, index_t) {
        return max_keys(0) * max_queries;
    }

    // own is aligned for doubles.
    decode_tile_avx512(float* own, float* shared, index_t head_dim, index_t value_dim)
        : head_dim_(head_dim), value_dim_(value_dim), sum_(reinterpret_cast<double*>(own)),
          maximum_(own + 16), queries_(own + 32),
          out_(queries_ + 4 * padded(head_dim, tile_avx512::block_channels)), logits_(shared) {}

    template <class Key>
    void begin(const float* queries, index_t query_stride, index_t count, const logit_rules& rules) {
        const float scale = rules.soft_cap > 0 ? rules.scale : rules.scale * tile_avx512::log2_e;
        std::fill(queries_, out_, 0.0f);
        for (index_t r = 0; r < count; ++r) {
            for (index_t d = 0; d < head_dim_; ++d) {
                const index_t block = d / tile_avx512::block_channels;
                const index_t lane = tile_avx512::lane_of<Key>(d % tile_avx512::block_channels);
                queries_[(4 * block + r) * tile_avx512::block_channels + lane] =
                    scale * queries[r * query_stride + d];
            }
        }
        std::fill_n(maximum_, 16, masked_logit);
        std::fill_n(sum_, 4, 0.0);
        std::fill_n(out_, 4 * padded(value_dim_, value_channels), 0.0f);
    }

    template <class Key, class Value>
    KVTRIM_TARGET_AVX512 void attend(element_rows<Key> key_rows, element_rows<Value> value_rows, index_t keys,
                                     index_t, const logit_rules& rules, index_t ahead) {
        for (index_t t = 0; t < keys; t += 4) {
            const auto row = [&](index_t k) { return key_rows.from(std::min(t + k, keys - 1)).data; };
            const tile_avx512::four_rows<Key> rows{{row(0), row(1), row(2), row(3)},
                                                   t + 4 <= ahead ? keys * key_rows.stride : 0};
            _mm512_storeu_ps(logits_ + 4 * t, tile_avx512::logits_of(rows, head_dim_, queries_));
        }
        if (rules.soft_cap > 0) {
            tile_avx512::cap_logits(logits_, 4 * keys, rules.soft_cap, tile_avx512::log2_e);
        }
        exponentials(keys);
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
            for (index_t d = 0; d < value_dim_; ++d) {
                const index_t lane = tile_avx512::lane_of<Value>(d % tile_avx512::block_channels);
                out[r * value_dim_ + d] =
                    weight * row_of(r)[d / tile_avx512::block_channels * tile_avx512::block_channels + lane];
            }
            log_sum_exp[r] = sum_[r] > 0
                                 ? maximum_[r] * tile_avx512::ln_2 + static_cast<float>(std::log(sum_[r]))
                                 : masked_logit;
        }
    }

  private:
    static constexpr index_t value_channels = 2 * tile_avx512::block_channels;

    [[nodiscard]] static constexpr index_t padded(index_t count, index_t multiple) {
        return (count + multiple - 1) / multiple * multiple;
    }
    [[nodiscard]] float* row_of(index_t query) const {
        return out_ + query * padded(value_dim_, value_channels);
    }

    // Logits become weights.
    KVTRIM_TARGET_AVX512 void exponentials(index_t keys) {
        const __m512 masked = _mm512_set1_ps(masked_logit);
        __m512 highest = masked;
        for (index_t t = 0; t < keys; t += 4) { // max returns its second operand for NaN
            const __m512 x = _mm512_mask_loadu_ps(masked, lanes_of(keys - t), logits_ + 4 * t);
            highest = tile_avx512::max(x, highest);
        }
        const __m512 maximum = raise(tile_avx512::max_over_keys(highest));
        __m512 sum = _mm512_setzero_ps();
        for (index_t t = 0; t < keys; t += 4) {
            const __m512 x = _mm512_mask_loadu_ps(masked, lanes_of(keys - t), logits_ + 4 * t);
            const __m512 p = tile_avx512::weight_of(x, maximum);
            _mm512_storeu_ps(logits_ + 4 * t, p);
            sum = _mm512_add_ps(sum, p);
        }
        alignas(64) float sums[16];
        _mm512_store_ps(sums, tile_avx512::sum_over_keys(sum));
        for (index_t r = 0; r < 4; ++r) { sum_[r] += static_cast<double>(sums[r]); }
    }

    // The lanes of that many keys, four at most.
    [[nodiscard]] static __mmask16 lanes_of(index_t keys) { return tile_avx512::first_lanes(4 * keys); }

    // Raises the maximum of each query to what was found, the largest float at most, and returns it; sum and out follow.
    KVTRIM_TARGET_AVX512 __m512 raise(__m512 found) {
        const __m512 old = _mm512_loadu_ps(maximum_);
        const __m512 highest =
            tile_avx512::min(tile_avx512::max(found, old), _mm512_set1_ps(std::numeric_limits<float>::max()));
        const __mmask16 higher = _mm512_cmp_ps_mask(highest, old, _CMP_GT_OQ);
        if (higher == 0) { return highest; }
        const __mmask16 seen = _mm512_cmp_ps_mask(old, _mm512_set1_ps(masked_logit), _CMP_GT_OQ);
        const __m512 distance = _mm512_maskz_sub_ps(seen, old, highest);
        const __m512 power = tile_avx512::exp2(tile_avx512::max(distance, _mm512_set1_ps(-200.0f)));
        alignas(64) float factors[16];
        _mm512_store_ps(factors, _mm512_mask_mov_ps(_mm512_set1_ps(1.0f), higher, power));
        for (index_t r = 0; r < 4; ++r) {
            sum_[r] *= static_cast<double>(factors[r]);
            const __m512 factor = _mm512_set1_ps(factors[r]);
            for (float* o = row_of(r); o != row_of(r + 1); o += 16) {
                _mm512_storeu_ps(o, _mm512_mul_ps(_mm512_loadu_ps(o), factor));
            }
        }
        _mm512_storeu_ps(maximum_, highest);
        return highest;
    }

    // out [4][d, d + 64) += weights * values, the tile's sum first.
    template <bool Whole, class Value>
    KVTRIM_TARGET_AVX512 void add_values(element_rows<Value> values, index_t d, index_t keys, index_t ahead) {
        const index_t channels = std::min(value_channels, value_dim_ - d);
        const __mmask32 wanted[2] = {tile_avx512::first_channels(channels),
                                     tile_avx512::first_channels(channels - 32)};
        __m512 sum[4][4];
        KVTRIM_UNROLL
        for (std::size_t i = 0; i < 16; ++i) { sum[i / 4][i % 4] = _mm512_setzero_ps(); }
        const Value* row = values.data + d;
        for (index_t t = 0; t < keys; ++t, row += values.stride) {
            const Value* const next = row + (t < ahead ? keys * values.stride : 0);
            tile_avx512::prefetch_block(next);
            tile_avx512::prefetch_block(next + 32);
            const tile_avx512::wide_block first = tile_avx512::load_block<Whole>(row, wanted[0]);
            const tile_avx512::wide_block second = tile_avx512::load_block<Whole>(row + 32, wanted[1]);
            KVTRIM_UNROLL
            for (std::size_t r = 0; r < 4; ++r) {
                const __m512 weight = _mm512_set1_ps(logits_[4 * t + static_cast<index_t>(r)]);
                sum[r][0] = _mm512_fmadd_ps(weight, first.low, sum[r][0]);
                sum[r][1] = _mm512_fmadd_ps(weight, first.high, sum[r][1]);
                sum[r][2] = _mm512_fmadd_ps(weight, second.low, sum[r][2]);
                sum[r][3] = _mm512_fmadd_ps(weight, second.high, sum[r][3]);
            }
        }
        KVTRIM_UNROLL
        for (std::size_t i = 0; i < 16; ++i) {
            float* const to = row_of(static_cast<index_t>(i / 4)) + d + static_cast<index_t>(i % 4 * 16);
            _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), sum[i / 4][i % 4]));
        }
    }

    index_t head_dim_;
    index_t value_dim_;
    double* sum_;    // [4]
    float* maximum_; // [4][4]: a query's stands in each 128-bit lane; units of log 2
    float* queries_; // [head_dim / 32][4][32], scaled
    float* out_;     // [4][value_dim], padded
    float* logits_;  // [max_keys][4]
};

} // namespace kvtrim::kernels

#endif // KVTRIM_HAS_X86
