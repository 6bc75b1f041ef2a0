// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A tile of consecutive queries of one head and its attention over the key tiles it has been shown so far: flash
// attention, one step at a time. The portable version, and the readable one of all others.
//
//   o[r] = sum over keys t seen of exp(l[r, t] - m[r]) v[t],  z[r] = sum of exp(l[r, t] - m[r]),  m[r] = max of l[r, t]
//   l[r, t] = cap(<scale * q[r], k[t]>);  result o / z and m + log z
//
// begin(), attend() for every key tile in any order, finish(). Other versions have the same members; one that keeps keys
// and values in an order of its own does so in pack(), once for all query tiles that attend to a key tile.
// Numerics: products and exponentials in float, z in double across tiles; a NaN logit counts as masked, +infinity as
// the largest float. A row that sees nothing gives 0 and -infinity. A key that a query does not see changes no bit of its
// result, whatever its elements; a NaN or infinite value of one that it sees spoils the channels that it is in.
// Cost per attend: 2 * rows * keys * (head_dim + value_dim) flops, rows * keys exponentials.

#include <kvtrim/kernels/tile_ops.hpp>

#include <cmath>
#include <cstring>

namespace kvtrim::kernels {

// Keys and values of consecutive cache rows; row t of each starts at t * stride.
template <class Element>
struct basic_key_tile {
    const Element* keys;
    index_t key_stride;
    const Element* values;
    index_t value_stride;
    index_t count;
    index_t first_position; // cache row of the first key
};
using key_tile = basic_key_tile<float>;

// The queries of a tile: `count` of them, at cache rows [first_position, ...).
struct query_range {
    index_t count;
    index_t first_position;
};

// Whether every query sees every key of the tile.
template <class Element>
[[nodiscard]] bool all_visible(const basic_key_tile<Element>& tile, const logit_rules& rules,
                               query_range queries) {
    const bool causal = tile.first_position + tile.count - 1 <= queries.first_position;
    return causal &&
           (rules.sliding_window == 0 ||
            queries.first_position + queries.count - 1 - tile.first_position < rules.sliding_window);
}

// Where a tile is masked, a weight of 0 must hide any value, but 0 * NaN is NaN. So values that are not finite are left out
// of the product and added to the queries that see them. finite [count, value_dim] is the rest of the values.
template <class = void>
void copy_finite_values(const key_tile& tile, index_t value_dim, float* finite) {
    for (index_t t = 0; t < tile.count; ++t) {
        for (index_t d = 0; d < value_dim; ++d) {
            const float x = tile.values[t * tile.value_stride + d];
            *finite++ = std::isfinite(x) ? x : 0.0f;
        }
    }
}

// A table whose element (i, r) of query r is data[i * step + r * query_step].
template <class T>
struct query_table {
    T* data;
    index_t step;
    index_t query_step;
};

// out (d, r) += weights (t, r) * value (t, d) for the values that are not finite and the weights that are not 0.
template <class = void>
void add_other_values(const key_tile& tile, index_t value_dim, query_table<const float> weights,
                      index_t queries, query_table<float> out) {
    for (index_t t = 0; t < tile.count; ++t) {
        for (index_t d = 0; d < value_dim; ++d) {
            const float x = tile.values[t * tile.value_stride + d];
            if (std::isfinite(x)) { continue; }
            for (index_t r = 0; r < queries; ++r) {
                const float weight = weights.data[t * weights.step + r * weights.query_step];
                if (weight != 0) { out.data[d * out.step + r * out.query_step] += weight * x; }
            }
        }
    }
}

// A view on the tile's memory; construct it anew whenever it is needed.
class query_tile {
  public:
    using element = float; // of queries, keys and values
    static constexpr index_t max_queries = tile_query_rows;
    [[nodiscard]] static constexpr index_t max_keys(index_t head_dim) { return tile_tokens(head_dim); }
    // Scratch of one tile, and what all tiles of a thread share.
    [[nodiscard]] static constexpr index_t own_floats(index_t head_dim, index_t value_dim) {
        return max_queries * (head_dim + value_dim + 2) + 2 * max_queries;
    }
    [[nodiscard]] static constexpr index_t shared_floats(index_t head_dim, index_t value_dim) {
        return max_queries * (max_keys(head_dim) + 1) + max_keys(head_dim) * value_dim;
    }

    // own is aligned for doubles.
    query_tile(float* own, float* shared, index_t head_dim, index_t value_dim)
        : head_dim_(head_dim), value_dim_(value_dim), sum_(reinterpret_cast<double*>(own)),
          maximum_(own + 2 * max_queries), queries_(maximum_ + max_queries),
          out_(queries_ + max_queries * head_dim), logits_(shared),
          rescale_(shared + max_queries * max_keys(head_dim)), finite_(rescale_ + max_queries) {}

    // To be called before attend() whenever `shared` is about to see other keys. Nothing is packed here.
    static void pack(const key_tile&, float*, index_t, index_t) {}

    // Takes queries [count, head_dim], count <= max_queries. A model with an attention sink passes its logit, others
    // masked_logit.
    void begin(const float* queries, index_t query_stride, index_t count, float sink_logit,
               const logit_rules& rules) {
        for (index_t r = 0; r < count; ++r) {
            for (index_t d = 0; d < head_dim_; ++d) {
                queries_[r * head_dim_ + d] = rules.scale * queries[r * query_stride + d];
            }
        }
        std::fill_n(maximum_, count, sink_logit);
        std::fill_n(sum_, count, sink_logit == masked_logit ? 0.0 : 1.0);
        std::fill_n(out_, count * value_dim_, 0.0f);
    }

    // Requires tile.count <= max_keys(head_dim), and the tile or a longer one packed.
    void attend(const key_tile& tile, const logit_rules& rules, query_range queries) {
        const index_t count = queries.count;
        logits(tile.keys, tile.key_stride, tile.count, queries_, count, head_dim_, logits_);
        condition_logits(logits_, tile.count * count, rules.soft_cap);
        const bool masked = !all_visible(tile, rules, queries);
        if (masked) { mask(tile, rules, queries); }
        accumulate_statistics(logits_, tile.count, count, {maximum_, sum_}, rescale_);
        for (index_t r = 0; r < count; ++r) {
            if (rescale_[r] == 1.0f) { continue; }
            for (index_t d = 0; d < value_dim_; ++d) { out_[r * value_dim_ + d] *= rescale_[r]; }
        }
        add_over_tokens(logits_, tile.count, count, sum_);
        if (masked && !all_finite(tile)) {
            copy_finite_values(tile, value_dim_, finite_);
            add_weighted_values(logits_, tile.count, count, finite_, value_dim_, value_dim_, out_);
            add_other_values(tile, value_dim_, {logits_, count, 1}, count, {out_, 1, value_dim_});
        } else {
            add_weighted_values(logits_, tile.count, count, tile.values, tile.value_stride, value_dim_, out_);
        }
    }

    // out [count, value_dim]; log_sum_exp [count] unless null.
    void finish(index_t count, float* out, float* log_sum_exp) const {
        for (index_t r = 0; r < count; ++r) {
            const auto weight = static_cast<float>(sum_[r] > 0 ? 1.0 / sum_[r] : 0.0);
            for (index_t d = 0; d < value_dim_; ++d) {
                out[r * value_dim_ + d] = weight * out_[r * value_dim_ + d];
            }
            if (log_sum_exp != nullptr) {
                log_sum_exp[r] =
                    sum_[r] > 0 ? maximum_[r] + static_cast<float>(std::log(sum_[r])) : masked_logit;
            }
        }
    }

  private:
    // 0 * x is 0 where x is finite, and NaN where it is not.
    [[nodiscard]] bool all_finite(const key_tile& tile) const {
        float sum = 0;
        for (index_t t = 0; t < tile.count; ++t) {
            const float* const row = tile.values + t * tile.value_stride;
            for (index_t d = 0; d < value_dim_; ++d) { sum += row[d] * 0.0f; }
        }
        return sum == 0;
    }

    void mask(const key_tile& tile, const logit_rules& rules, query_range queries) {
        for (index_t t = 0; t < tile.count; ++t) {
            for (index_t r = 0; r < queries.count; ++r) {
                const index_t distance = queries.first_position + r - (tile.first_position + t);
                if (distance < 0 || (rules.sliding_window > 0 && distance >= rules.sliding_window)) {
                    logits_[t * queries.count + r] = masked_logit;
                }
            }
        }
    }

    index_t head_dim_;
    index_t value_dim_;
    double* sum_;    // [max_queries]
    float* maximum_; // [max_queries]
    float* queries_; // [max_queries, head_dim], scaled
    float* out_;     // [max_queries, value_dim]
    float* logits_;  // [max_keys, count]
    float* rescale_; // [max_queries]
    float* finite_;  // [max_keys, value_dim], where some values are not
};

} // namespace kvtrim::kernels
