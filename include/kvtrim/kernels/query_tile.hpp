// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A tile of consecutive queries of one head and its attention over the key tiles so far: flash attention, one step at a
// time.
//
//   o[r] = sum over keys t seen of exp(l[r, t] - m[r]) v[t],  z[r] = sum of exp(l[r, t] - m[r]),  m[r] = max of l[r, t]
//   l[r, t] = cap(<scale * q[r], k[t]>);  result o / z and m + log z
//
//   queries [head_dim][panel], logits [keys][panel], out [value_dim][panel]    a panel of queries: kernels/panel_product.hpp
//
// Each target has a class query_tile in its namespace: begin(), attend() for every key tile in any order, finish(). Each
// lane is a query, so both products are the same small kernel, which reads keys and values in place, unpacked and
// untransposed, and statistics and exponentials are vertical. Other products with the same class around them need keys and
// values in an order of their own (query_tile_amx.hpp): they are packed in pack(), once for all query tiles that attend to a
// key tile.
//
// Numerics: products and exponentials in float, z in double across tiles; 2^x with relative error 1.5e-7 (2.2e-7 on the
// baseline of x86-64); a NaN logit counts as masked, +infinity as the largest float. A row that sees nothing gives 0 and
// -infinity. A key that a query does not see changes no bit of its result, whatever its elements (in AMX's products: unless
// its value is not finite); a NaN or infinite value of one that it sees makes only the channels that it is in NaN or infinite.
// Cost per attend: 2 * rows * keys * (head_dim + value_dim) flops, rows * keys exponentials. Measured: see bench/NOTES.md.

#include <kvtrim/kernels/logits.hpp>
#include <kvtrim/kernels/panel_product.hpp>
#include <kvtrim/kernels/vector_loops.hpp>

#include <cmath>

namespace KVTRIM_NAMESPACE::kernels {

/// Keys and values of consecutive cache rows; row t of each starts at t * stride.
template <class Element>
struct basic_key_tile {
    const Element* keys;    ///< [count, head_dim]
    index_t key_stride;     ///< elements from key to key
    const Element* values;  ///< [count, value_dim]
    index_t value_stride;   ///< elements from value to value
    index_t count;          ///< keys, and values
    index_t first_position; ///< cache row of the first key
};
/// Keys and values of floats.
using key_tile = basic_key_tile<float>;

/// The queries of a tile: `count` of them, at cache rows [first_position, ...).
struct query_range {
    index_t count;          ///< queries
    index_t first_position; ///< cache row of the first query's own token
};

/// Whether every query sees every key of the tile.
template <class Element>
[[nodiscard]] bool all_visible(const basic_key_tile<Element>& tile, const logit_rules& rules,
                               query_range queries) {
    const bool causal = tile.first_position + tile.count - 1 <= queries.first_position;
    return causal &&
           (rules.sliding_window == 0 ||
            queries.first_position + queries.count - 1 - tile.first_position < rules.sliding_window);
}

/// finite [count, value_dim] = the values, with 0 for those that are not finite. In a masked tile a weight of 0 must hide
/// any value, but 0 * NaN is NaN: so values that are not finite are left out of the product, and add_other_values() adds
/// them for the queries that see them.
template <class = void>
void copy_finite_values(const key_tile& tile, index_t value_dim, float* finite) {
    for (index_t t = 0; t < tile.count; ++t) {
        for (index_t d = 0; d < value_dim; ++d) {
            const float x = tile.values[t * tile.value_stride + d];
            *finite++ = std::isfinite(x) ? x : 0.0f;
        }
    }
}

/// A table whose element (i, r) of query r is data[i * step + r * query_step].
template <class T>
struct query_table {
    T* data;            ///< element (0, 0)
    index_t step;       ///< from row to row
    index_t query_step; ///< from query to query
};

/// out (d, r) += weights (t, r) * value (t, d) for the values that are not finite and the weights that are not 0.
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

} // namespace KVTRIM_NAMESPACE::kernels

#define KVTRIM_BODY <kvtrim/kernels/panel_softmax.inl>
#include <kvtrim/simd/for_each_target.inl>

#define KVTRIM_BODY <kvtrim/kernels/query_products.inl>
#include <kvtrim/simd/for_each_target.inl>

#define KVTRIM_BODY <kvtrim/kernels/query_tile.inl>
#include <kvtrim/simd/for_each_target.inl>
