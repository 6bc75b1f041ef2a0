// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET {

using namespace simd::KVTRIM_TARGET;

// Keys, or vectors of values, whose sums for four queries fit in registers.
inline constexpr index_t decode_width = product_registers >= 16 ? 4 : 2;
inline constexpr index_t two_vectors = 2 * lanes;
inline constexpr index_t value_channels = decode_width * lanes;

// The index at which load_two() leaves a channel.
template <class Element>
[[nodiscard]] constexpr index_t place_of(index_t channel) {
    const index_t lane = channel % two_vectors;
    return splits_pairs<Element> ? channel - lane + lane % 2 * lanes + lane / 2 : channel;
}

// Prefetches the cache lines of a row's elements [at, at + Count), the first of which is `from`, each line once.
template <index_t Count, class Element>
KVTRIM_INLINE void prefetch_lines(const Element* from, index_t at) {
    constexpr index_t line = 64 / static_cast<index_t>(sizeof(Element));
    if constexpr (Count < line) {
        if (at % line == 0) { simd::prefetch_to_l2(from); }
    } else {
        KVTRIM_UNROLL
        for (index_t i = 0; i < Count; i += line) { simd::prefetch_to_l2(from + i); }
    }
}

// sum [key][query] += the products of keys and queries in two vectors of channels; load_key(k, first, second).
template <class Load>
KVTRIM_INLINE void add_products(const Load& load_key, const float* queries,
                                registers<4 * decode_width>& sum) {
    registers<decode_width> first, second;
    KVTRIM_UNROLL
    for (index_t k = 0; k < decode_width; ++k) { load_key(k, first[k], second[k]); }
    KVTRIM_UNROLL
    for (index_t r = 0; r < 4; ++r) {
        const floats low = load(queries + two_vectors * r), high = load(queries + two_vectors * r + lanes);
        KVTRIM_UNROLL
        for (index_t k = 0; k < decode_width; ++k) {
            sum[4 * k + r] = fma(first[k], low, sum[4 * k + r]);
            sum[4 * k + r] = fma(second[k], high, sum[4 * k + r]);
        }
    }
}

// logits [decode_width][4] of so many rows. The row that is used after each lies `next` elements behind it and is
// prefetched.
template <class Key>
KVTRIM_INLINE void decode_logits(const Key* const* rows, index_t next, index_t head_dim, const float* queries,
                                 float* logits) {
    registers<4 * decode_width> sum;
    KVTRIM_UNROLL
    for (index_t n = 0; n < 4 * decode_width; ++n) { sum[n] = broadcast(0.0f); }
    index_t d = 0;
    for (; d + two_vectors <= head_dim; d += two_vectors, queries += 4 * two_vectors) {
        const auto whole = [&](index_t k, floats& first, floats& second) KVTRIM_INLINED {
            load_two(rows[k] + d, first, second);
            prefetch_lines<two_vectors>(rows[k] + d + next, d);
        };
        add_products(whole, queries, sum);
    }
    if (d < head_dim) {
        const auto part = [&](index_t k, floats& first, floats& second) KVTRIM_INLINED {
            load_first_of_two(rows[k] + d, head_dim - d, first, second);
            prefetch_lines<two_vectors>(rows[k] + d + next, d);
        };
        add_products(part, queries, sum);
    }
    KVTRIM_UNROLL
    for (index_t n = 0; n < 4 * decode_width; n += lanes) { store(logits + n, sums_of_lanes(sum + n)); }
}

// Raises the maximum of each query to `found`, at most the largest float, and returns it. sum and out are rescaled to it.
inline floats raise_queries(const decode_tile& tile, floats found) {
    const floats old = load(tile.maximum);
    const raised_maximum raised(old, found);
    if (!any(raised.rose)) { return raised.highest; }
    float factors[lanes];
    store(factors, raised.rescale(binary_weight_of(old, raised.highest)));
    for (index_t r = 0; r < 4; ++r) {
        tile.sum[r] *= static_cast<double>(factors[r]);
        for (float* o = tile.out_of(r); o != tile.out_of(r + 1); o += lanes) {
            store(o, load(o) * broadcast(factors[r]));
        }
    }
    store(tile.maximum, raised.highest);
    return raised.highest;
}

// Turns logits into weights 2^(logit - maximum), in place, and adds them to the sums.
inline void make_decode_weights(const decode_tile& tile, index_t keys) {
    const index_t end = decode_tile::padded(4 * keys, lanes);
    std::fill(tile.logits + 4 * keys, tile.logits + end, masked_logit);
    floats highest = broadcast(masked_logit);
    for (index_t i = 0; i < end; i += lanes) { // max returns its second operand for NaN
        highest = max(load(tile.logits + i), highest);
    }
    const floats maximum = raise_queries(tile, highest_of_fours(highest));
    floats sum = broadcast(0.0f);
    for (index_t i = 0; i < end; i += lanes) {
        const floats weight = binary_weight_of(load(tile.logits + i), maximum);
        store(tile.logits + i, weight);
        sum = sum + weight;
    }
    float sums[lanes];
    store(sums, sum_of_fours(sum));
    for (index_t r = 0; r < 4; ++r) { tile.sum[r] += static_cast<double>(sums[r]); }
}

// out [4][d, d + value_channels) += weights * values. The products of the tile are summed before they are added to out.
template <bool Whole, class Value>
inline void add_decode_values(const decode_tile& tile, element_rows<Value> values, index_t d, index_t keys,
                              index_t ahead) {
    const index_t channels = tile.value_dim - d;
    const float* weights = tile.logits;
    registers<4 * decode_width> sum;
    KVTRIM_UNROLL
    for (index_t n = 0; n < 4 * decode_width; ++n) { sum[n] = broadcast(0.0f); }
    const Value* row = values.data + d;
    for (index_t t = 0; t < keys; ++t, row += values.stride, weights += 4) {
        const Value* const next = row + (t < ahead ? keys * values.stride : 0);
        prefetch_lines<value_channels>(next, d);
        registers<decode_width> value;
        KVTRIM_UNROLL
        for (index_t v = 0; v < decode_width; v += 2) {
            if constexpr (Whole) {
                load_two(row + v * lanes, value[v], value[v + 1]);
            } else {
                load_first_of_two(row + v * lanes, channels - v * lanes, value[v], value[v + 1]);
            }
        }
        KVTRIM_UNROLL
        for (index_t r = 0; r < 4; ++r) {
            const floats weight = broadcast(weights[r]);
            KVTRIM_UNROLL
            for (index_t v = 0; v < decode_width; ++v) {
                sum[decode_width * r + v] = fma(weight, value[v], sum[decode_width * r + v]);
            }
        }
    }
    KVTRIM_UNROLL
    for (index_t n = 0; n < 4 * decode_width; ++n) {
        float* const to = tile.out_of(n / decode_width) + d + n % decode_width * lanes;
        store(to, load(to) + sum[n]);
    }
}

template <class Key>
void begin_decode(const decode_tile& tile, const float* queries, index_t query_stride, index_t count,
                  const logit_rules& rules) {
    // With a soft cap logits are in natural units until they are capped, else in units of log 2.
    const float scale = rules.soft_cap > 0 ? rules.scale : rules.scale * log2_e;
    std::fill(tile.maximum, tile.maximum + lanes, masked_logit);
    std::fill(tile.queries, tile.out_of(4), 0.0f);
    std::fill(tile.sum, tile.sum + 4, 0.0);
    for (index_t r = 0; r < count; ++r) {
        for (index_t d = 0; d < tile.head_dim; ++d) {
            const index_t place = place_of<Key>(d), lane = place % two_vectors;
            tile.queries[4 * (place - lane) + r * two_vectors + lane] = scale * queries[r * query_stride + d];
        }
    }
}

template <class Key, class Value>
void attend_decode(const decode_tile& tile, element_rows<Key> key_rows, element_rows<Value> value_rows,
                   index_t keys, const logit_rules& rules, index_t ahead) {
    // Behind the end the last key is repeated; its logits are not used.
    for (index_t t = 0; t < keys; t += decode_width) {
        const Key* rows[decode_width];
        KVTRIM_UNROLL
        for (index_t k = 0; k < decode_width; ++k) {
            rows[k] = key_rows.from(std::min(t + k, keys - 1)).data;
        }
        decode_logits(rows, t + decode_width <= ahead ? keys * key_rows.stride : 0, tile.head_dim,
                      tile.queries, tile.logits + 4 * t);
    }
    if (rules.soft_cap > 0) { cap_logits(tile.logits, 4 * keys, logit_cap{rules.soft_cap, log2_e}); }
    make_decode_weights(tile, keys);
    for (index_t d = 0; d < tile.value_dim; d += value_channels) {
        if (d + value_channels <= tile.value_dim) {
            add_decode_values<true>(tile, value_rows, d, keys, ahead);
        } else {
            add_decode_values<false>(tile, value_rows, d, keys, ahead);
        }
    }
}

template <class Value>
void finish_decode(const decode_tile& tile, index_t count, float* out, float* log_sum_exp) {
    for (index_t r = 0; r < count; ++r) {
        const double sum = tile.sum[r];
        const auto weight = static_cast<float>(sum > 0 ? 1.0 / sum : 0.0);
        for (index_t d = 0; d < tile.value_dim; ++d) {
            out[r * tile.value_dim + d] = weight * tile.out_of(r)[place_of<Value>(d)];
        }
        log_sum_exp[r] = sum > 0 ? tile.maximum[r] * ln_2 + static_cast<float>(std::log(sum)) : masked_logit;
    }
}

template <class Key, class Value>
inline constexpr decode_kernels<Key, Value> decode_table{begin_decode<Key>, attend_decode<Key, Value>,
                                                         finish_decode<Value>};

} // namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET
