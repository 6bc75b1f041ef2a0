// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET {

using namespace simd::KVTRIM_TARGET;

// Masks, in logits [keys][panel] of the keys at cache rows [first_key, ...), what the queries do not see.
inline void mask_logits(float* logits, index_t keys, index_t first_key, const logit_rules& rules,
                        query_range queries) {
    for (index_t t = 0; t < keys; ++t, logits += panel_columns) {
        const index_t distance = queries.first_position - (first_key + t); // from the query of lane 0
        const bool window_ends = rules.sliding_window > 0 && distance + panel_columns > rules.sliding_window;
        const index_t end =
            window_ends ? std::max<index_t>(0, rules.sliding_window - distance) : panel_columns;
        const index_t begin = std::clamp<index_t>(-distance, 0, end);
        std::fill(logits, logits + begin, masked_logit);
        std::fill(logits + end, logits + panel_columns, masked_logit);
    }
}

// The highest logit of each lane; NaN counts as masked.
KVTRIM_INLINE floats highest_of(const float* logits, index_t keys) {
    floats highest = broadcast(masked_logit), other = highest; // max returns its second operand for NaN
    index_t t = 0;
    for (; t + 2 <= keys; t += 2) {
        highest = max(load(logits + t * panel_columns), highest);
        other = max(load(logits + (t + 1) * panel_columns), other);
    }
    for (; t < keys; ++t) { highest = max(load(logits + t * panel_columns), highest); }
    return max(highest, other);
}

// Softmax statistics and outputs of a panel of queries over the keys so far, a view of scratch. Each step is for the vector
// that begins at a lane.
struct panel_softmax {
    float* maximum; // [panel], units of log 2
    double* sum;    // [panel]
    float* out;     // [value_dim][panel]
    index_t value_dim;

    [[nodiscard]] static constexpr index_t memory_floats(index_t columns) {
        return panel_columns * (columns + 3);
    }

    // memory [memory_floats(columns)] is aligned for doubles.
    panel_softmax(float* memory, index_t columns)
        : maximum(memory), sum(reinterpret_cast<double*>(memory + panel_columns)),
          out(memory + 3 * panel_columns), value_dim(columns) {}

    void begin(float sink_logit) const {
        std::fill_n(maximum, panel_columns, sink_logit * log2_e);
        std::fill_n(sum, panel_columns, sink_logit == masked_logit ? 0.0 : 1.0);
        std::fill_n(out, value_dim * panel_columns, 0.0f);
    }

    // Raises the maximum to `found`, at most the largest float, and returns it. sum and out are rescaled to it.
    [[nodiscard]] KVTRIM_INLINE floats raise(index_t lane, floats found) const {
        const floats old = load(maximum + lane);
        const floats highest = min(max(found, old), broadcast(largest_logit));
        const mask higher = greater(highest, old);
        if (!any(higher)) { return highest; }
        // Lanes that have seen no key have sums of 0, so any factor is right. Lanes whose maximum stays get exactly 1,
        // because a computed 2^0 would round each time that another lane's maximum rises.
        const floats factor = select(higher, binary_weight_of(old, highest), broadcast(1.0f));
        float factors[lanes];
        store(factors, factor);
        for (index_t r = 0; r < lanes; ++r) { sum[lane + r] *= static_cast<double>(factors[r]); }
        for (float* o = out + lane; o != out + lane + value_dim * panel_columns; o += panel_columns) {
            store(o, load(o) * factor);
        }
        store(maximum + lane, highest);
        return highest;
    }

    // Adds the weights of a key tile, summed in float.
    KVTRIM_INLINE void add(index_t lane, floats weights) const {
        float sums[lanes];
        store(sums, weights);
        for (index_t r = 0; r < lanes; ++r) { sum[lane + r] += static_cast<double>(sums[r]); }
    }

    // to [count, columns], columns <= value_dim; log_sum_exp [count] unless null.
    void finish(index_t count, index_t columns, float* to, float* log_sum_exp) const {
        for (index_t r = 0; r < count; ++r) {
            const auto weight = static_cast<float>(sum[r] > 0 ? 1.0 / sum[r] : 0.0);
            for (index_t d = 0; d < columns; ++d) {
                to[r * columns + d] = weight * out[d * panel_columns + r];
            }
            if (log_sum_exp == nullptr) { continue; }
            log_sum_exp[r] =
                sum[r] > 0 ? maximum[r] * ln_2 + static_cast<float>(std::log(sum[r])) : masked_logit;
        }
    }
};

// A view of the tile's memory; cheap to construct whenever it is needed.
class query_tile {
  public:
    using element = float; // of queries, keys and values
    static constexpr index_t max_queries = panel_columns;
    [[nodiscard]] static constexpr index_t max_keys(index_t) { return most_keys; }
    // Scratch of one tile, and what all tiles of a thread share.
    [[nodiscard]] static constexpr index_t own_floats(index_t head_dim, index_t value_dim) {
        return panel_columns * head_dim + panel_softmax::memory_floats(value_dim);
    }
    [[nodiscard]] static constexpr index_t shared_floats(index_t, index_t value_dim) {
        return most_keys * (panel_columns + value_dim);
    }

    // own is aligned for doubles.
    query_tile(float* own, float* shared, index_t head_dim, index_t value_dim)
        : head_dim_(head_dim), softmax_(own, value_dim),
          queries_(own + panel_softmax::memory_floats(value_dim)), logits_(shared),
          finite_(shared + panel_columns * most_keys) {}

    // Packs keys and values in `shared`, to be called before attend() of a new key tile. Nothing is packed here.
    static void pack(const key_tile&, float*, index_t, index_t) {}

    // Takes queries [count, head_dim], count <= max_queries. A model with an attention sink passes its logit, others
    // masked_logit.
    void begin(const float* queries, index_t query_stride, index_t count, float sink_logit,
               const logit_rules& rules) {
        // With a soft cap logits are in natural units until they are capped, else in units of log 2.
        const float scale = rules.soft_cap > 0 ? rules.scale : rules.scale * log2_e;
        for (index_t d = 0; d < head_dim_; ++d) {
            for (index_t r = 0; r < panel_columns; ++r) { // lanes without a query repeat the last one
                queries_[d * panel_columns + r] = scale * queries[std::min(r, count - 1) * query_stride + d];
            }
        }
        softmax_.begin(sink_logit);
    }

    // Requires tile.count <= max_keys(head_dim), and the tile or a longer one packed.
    void attend(const key_tile& tile, const logit_rules& rules, query_range queries) {
        multiply_rows<false>({tile.keys, tile.key_stride, 1}, queries_, head_dim_,
                             {logits_, panel_columns, panel_columns}, tile.count);
        if (rules.soft_cap > 0) {
            cap_logits(logits_, tile.count * panel_columns, logit_cap{rules.soft_cap, log2_e});
        }
        const bool masked = !all_visible(tile, rules, queries);
        if (masked) { mask_logits(logits_, tile.count, tile.first_position, rules, queries); }
        for (index_t lane = 0; lane < panel_columns; lane += lanes) { make_weights(tile.count, lane); }
        const index_t value_dim = softmax_.value_dim;
        if (masked && !all_finite(tile)) {
            copy_finite_values(tile, value_dim, finite_);
            add_values(finite_, value_dim, tile.count);
            add_other_values(tile, value_dim, {logits_, panel_columns, 1}, panel_columns,
                             {softmax_.out, panel_columns, 1});
        } else {
            add_values(tile.values, tile.value_stride, tile.count);
        }
    }

    // out [count, value_dim]; log_sum_exp [count] unless null.
    void finish(index_t count, float* out, float* log_sum_exp) const {
        softmax_.finish(count, softmax_.value_dim, out, log_sum_exp);
    }

  private:
    static constexpr index_t most_keys = 64;

    void add_values(const float* values, index_t stride, index_t keys) {
        multiply_rows<true>({values, 1, stride}, logits_, keys, {softmax_.out, panel_columns, panel_columns},
                            softmax_.value_dim);
    }

    [[nodiscard]] bool all_finite(const key_tile& tile) const {
        floats others = broadcast(0.0f); // x - x is 0 or NaN
        for (index_t t = 0; t < tile.count; ++t) {
            const float* const row = tile.values + t * tile.value_stride;
            for_each_vector(softmax_.value_dim, [&](index_t d, auto some) KVTRIM_INLINED {
                const floats x = some.load(row + d);
                others = others + (x - x);
            });
        }
        return sum_of_lanes(others) == 0;
    }

    // Turns a vector of logits [keys] into weights, in place.
    void make_weights(index_t keys, index_t lane) {
        float* const logits = logits_ + lane;
        const floats maximum = softmax_.raise(lane, highest_of(logits, keys));
        floats sum = broadcast(0.0f);
        for (index_t t = 0; t < keys; ++t) {
            const floats weight = binary_weight_of(load(logits + t * panel_columns), maximum);
            store(logits + t * panel_columns, weight);
            sum = sum + weight;
        }
        softmax_.add(lane, sum);
    }

    index_t head_dim_;
    panel_softmax softmax_;
    float* queries_; // [head_dim][panel], scaled
    float* logits_;  // [max_keys][panel]
    float* finite_;  // [max_keys][value_dim], where some values are not
};

// Calls fn<Tile>() with this target's class, for KVTRIM_CHOOSE.
template <class Fn>
decltype(auto) call_with_query_tile(Fn& fn) {
    return fn.template operator()<query_tile>();
}

} // namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET
