// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET {

using namespace simd::KVTRIM_TARGET;

// The products of a query tile, for floats: queries are packed and scaled, keys and values read in place, and weights take the
// place of logits. A view of the tile's memory; products of other elements have the same members.
struct query_products {
    using element = float; // of queries, keys and values
    static constexpr index_t max_keys = 64;
    static constexpr index_t keys_together = 1;  // whose weights put_weights() takes
    static constexpr bool scales_queries = true; // else logits are to be scaled
    // Keys of a tile, or rows of its output, in whole steps of the products.
    [[nodiscard]] static constexpr index_t padded(index_t count) { return count; }

    // Memory of one tile, aligned for doubles, and what all tiles of a thread share.
    [[nodiscard]] static constexpr index_t own_floats(index_t head_dim) { return panel_columns * head_dim; }
    [[nodiscard]] static constexpr index_t shared_floats(index_t, index_t value_dim) {
        return max_keys * (panel_columns + value_dim);
    }

    index_t head_dim, value_dim;
    float* queries; // [head_dim][panel]
    float* logits;  // [max_keys][panel]
    float* finite;  // [max_keys][value_dim], where some values are not

    query_products(float* own, float* shared, index_t head_size, index_t value_size)
        : head_dim(head_size), value_dim(value_size), queries(own), logits(shared),
          finite(shared + panel_columns * max_keys) {}

    // Before the products with the keys of a new tile. Nothing is packed here.
    void pack(const key_tile&) const {}

    void take_queries(const float* from, index_t stride, index_t count, float scale) const {
        for (index_t d = 0; d < head_dim; ++d) {
            for (index_t r = 0; r < panel_columns; ++r) { // lanes without a query repeat the last one
                queries[d * panel_columns + r] = scale * from[std::min(r, count - 1) * stride + d];
            }
        }
    }

    // logits [padded(keys)][panel] = K * queries
    void multiply_keys(const key_tile& tile) const {
        multiply_rows<false>({tile.keys, tile.key_stride, 1}, queries, head_dim,
                             {logits, panel_columns, panel_columns}, tile.count);
    }

    // Of keys [t, t + keys_together) and a vector of queries.
    KVTRIM_INLINE void put_weights(const registers<keys_together>& weights, index_t t, index_t lane) const {
        store(logits + t * panel_columns + lane, weights[0]);
    }

    // out [padded(value_dim)][panel] += V^T * weights
    void add_values(const key_tile& tile, bool masked, float* out) const {
        if (masked && !all_finite(tile)) {
            copy_finite_values(tile, value_dim, finite);
            multiply_values(finite, value_dim, tile.count, out);
            add_other_values(tile, value_dim, {logits, panel_columns, 1}, panel_columns,
                             {out, panel_columns, 1});
        } else {
            multiply_values(tile.values, tile.value_stride, tile.count, out);
        }
    }

  private:
    void multiply_values(const float* values, index_t stride, index_t keys, float* out) const {
        multiply_rows<true>({values, 1, stride}, logits, keys, {out, panel_columns, panel_columns},
                            value_dim);
    }

    [[nodiscard]] bool all_finite(const key_tile& tile) const {
        floats others = broadcast(0.0f); // x - x is 0 or NaN
        for (index_t t = 0; t < tile.count; ++t) {
            const float* const row = tile.values + t * tile.value_stride;
            for_each_vector(value_dim, [&](index_t d, auto some) KVTRIM_INLINED {
                const floats x = some.load(row + d);
                others = others + (x - x);
            });
        }
        return sum_of_lanes(others) == 0;
    }
};

} // namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET
