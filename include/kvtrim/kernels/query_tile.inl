// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET {

// A tile whose products are those of kernels/query_products.inl, or others with the same members. A view of its memory; cheap
// to construct whenever it is needed.
template <class Products>
class basic_query_tile {
  public:
    using element = typename Products::element; // of queries, keys and values
    using key_tile = basic_key_tile<element>;
    static constexpr index_t max_queries = panel_columns;
    [[nodiscard]] static constexpr index_t max_keys(index_t) { return Products::max_keys; }
    // Scratch of one tile, and what all tiles of a thread share.
    [[nodiscard]] static constexpr index_t own_floats(index_t head_dim, index_t value_dim) {
        return panel_softmax::memory_floats(Products::padded(value_dim)) + Products::own_floats(head_dim);
    }
    [[nodiscard]] static constexpr index_t shared_floats(index_t head_dim, index_t value_dim) {
        return Products::shared_floats(head_dim, value_dim);
    }

    // own is aligned for doubles.
    basic_query_tile(float* own, float* shared, index_t head_dim, index_t value_dim)
        : softmax_(own, Products::padded(value_dim)),
          products_(own + panel_softmax::memory_floats(softmax_.value_dim), shared, head_dim, value_dim) {}

    // Packs keys and values in `shared`, to be called before attend() of a new key tile.
    static void pack(const key_tile& tile, float* shared, index_t head_dim, index_t value_dim) {
        Products(nullptr, shared, head_dim, value_dim).pack(tile);
    }

    // Takes queries [count, head_dim], count <= max_queries. A model with an attention sink passes its logit, others
    // masked_logit.
    void begin(const element* queries, index_t query_stride, index_t count, float sink_logit,
               const logit_rules& rules) {
        // With a soft cap logits are in natural units until they are capped, else in units of log 2.
        products_.take_queries(queries, query_stride, count,
                               rules.soft_cap > 0 ? rules.scale : rules.scale * log2_e);
        softmax_.begin(sink_logit);
    }

    // Requires tile.count <= max_keys(head_dim), and the tile or a longer one that begins with it packed.
    void attend(const key_tile& tile, const logit_rules& rules, query_range queries) {
        float* const logits = products_.logits;
        const index_t keys = Products::padded(tile.count);
        products_.multiply_keys(tile);
        if (rules.soft_cap > 0) {
            const float scale = Products::scales_queries ? 1.0f : rules.scale;
            cap_logits(logits, tile.count * panel_columns, logit_cap{rules.soft_cap, log2_e, scale});
        }
        const bool masked = !all_visible(tile, rules, queries);
        if (masked) { mask_logits(logits, tile.count, tile.first_position, rules, queries); }
        std::fill(logits + tile.count * panel_columns, logits + keys * panel_columns, masked_logit);
        const float unit = rules.soft_cap > 0 ? 1.0f : rules.scale * log2_e;
        for (index_t lane = 0; lane < panel_columns; lane += lanes) { make_weights(keys, lane, unit); }
        products_.add_values(tile, masked, softmax_.out);
    }

    // out [count, value_dim]; log_sum_exp [count] unless null.
    void finish(index_t count, float* out, float* log_sum_exp) const {
        softmax_.finish(count, products_.value_dim, out, log_sum_exp);
    }

  private:
    // Turns a vector of logits [keys] into weights.
    void make_weights(index_t keys, index_t lane, float unit) {
        const auto scaled = [&](floats logit) KVTRIM_INLINED {
            if constexpr (Products::scales_queries) { return logit; }
            return logit * broadcast(unit);
        };
        const float* logits = products_.logits + lane;
        const floats maximum = softmax_.raise(lane, scaled(highest_of(logits, keys)));
        constexpr index_t together = Products::keys_together;
        floats sum = broadcast(0.0f);
        for (index_t t = 0; t < keys; t += together) {
            registers<together> weights;
            KVTRIM_UNROLL
            for (index_t i = 0; i < together; ++i, logits += panel_columns) {
                weights[i] = binary_weight_of(scaled(load(logits)), maximum);
            }
            floats part = weights[0];
            KVTRIM_UNROLL
            for (index_t i = 1; i < together; ++i) { part = part + weights[i]; }
            products_.put_weights(weights, t, lane);
            sum = sum + part;
        }
        softmax_.add(lane, sum);
    }

    panel_softmax softmax_;
    Products products_;
};

// Calls fn<Tile>() with this target's class, for KVTRIM_CHOOSE.
using query_tile = basic_query_tile<query_products>;
template <class Fn>
decltype(auto) call_with_query_tile(Fn& fn) {
    return fn.template operator()<query_tile>();
}

} // namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET
