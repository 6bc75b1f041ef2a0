// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The queries of one token that share a KV head, and their attention over the tiles of keys shown so far: what a
// decode step does with every row of its cache. The portable version, which is query_tile with all keys in sight.
//
//   begin(), attend() for every tile of keys, finish(): o / z and m + log z as in kernels/query_tile.hpp
//
// Versions differ in the elements that they read where they lie: this one reads floats.
// Numerics and cost: kernels/query_tile.hpp.

#include <kvtrim/base/row_source.hpp>
#include <kvtrim/kernels/query_tile.hpp>

#include <type_traits>

namespace kvtrim::kernels {

// A view on the tile's memory; construct it anew whenever it is needed.
class decode_tile {
  public:
    static constexpr index_t max_queries = query_tile::max_queries;
    template <class Element>
    static constexpr bool reads = std::is_same_v<Element, float>;

    [[nodiscard]] static constexpr index_t max_keys(index_t head_dim) {
        return query_tile::max_keys(head_dim);
    }
    // Scratch of one tile, and what all tiles of a thread share.
    [[nodiscard]] static constexpr index_t own_floats(index_t head_dim, index_t value_dim) {
        return query_tile::own_floats(head_dim, value_dim);
    }
    [[nodiscard]] static constexpr index_t shared_floats(index_t head_dim, index_t value_dim) {
        return query_tile::shared_floats(head_dim, value_dim);
    }

    // own is aligned for doubles.
    decode_tile(float* own, float* shared, index_t head_dim, index_t value_dim)
        : tile_(own, shared, head_dim, value_dim) {}

    // Takes queries [count, head_dim], count <= max_queries, for keys of such elements.
    template <class Key>
    void begin(const float* queries, index_t query_stride, index_t count, const logit_rules& rules) {
        tile_.begin(queries, query_stride, count, masked_logit, rules);
    }

    // Shows `keys` rows, keys <= max_keys(head_dim), to all queries. `ahead` more rows of both follow in memory and will
    // be shown next.
    void attend(element_rows<float> key_rows, element_rows<float> value_rows, index_t keys, index_t queries,
                const logit_rules& rules, index_t ahead) {
        static_cast<void>(ahead);
        const key_tile tile{key_rows.data, key_rows.stride, value_rows.data, value_rows.stride, keys, 0};
        tile_.attend(tile, {rules.scale, rules.soft_cap, 0}, {queries, keys});
    }

    // out [count, value_dim], log_sum_exp [count]; values of such elements were shown.
    template <class Value>
    void finish(index_t count, float* out, float* log_sum_exp) const {
        tile_.finish(count, out, log_sum_exp);
    }

  private:
    query_tile tile_;
};

} // namespace kvtrim::kernels
