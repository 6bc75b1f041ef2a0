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
        const raised_maximum raised(old, found);
        if (!any(raised.rose)) { return raised.highest; }
        // Lanes that have seen no key have sums of 0, so any factor is right.
        const floats factor = raised.rescale(binary_weight_of(old, raised.highest));
        float factors[lanes];
        store(factors, factor);
        for (index_t r = 0; r < lanes; ++r) { sum[lane + r] *= static_cast<double>(factors[r]); }
        for (float* o = out + lane; o != out + lane + value_dim * panel_columns; o += panel_columns) {
            store(o, load(o) * factor);
        }
        store(maximum + lane, raised.highest);
        return raised.highest;
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

} // namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET
