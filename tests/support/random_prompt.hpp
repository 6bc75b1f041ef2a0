// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Prefill chunks of the random test layers, prune plans that no estimate would choose, and the definition of what
// attention over such a plan is.

#include "support/checks.hpp"
#include "support/cpu_levels.hpp"

#include <kvtrim/plan/prune_plan.hpp>

namespace support {

// A layer whose queries are the tokens of the chunk [first_token, shape.tokens).
struct chunk_data {
    layer_data layer;
    index_t first_token = 0;

    [[nodiscard]] auto inputs() const {
        return kvtrim::layer(layer.keys(), layer.values()).with_queries(layer.queries());
    }
    [[nodiscard]] kvtrim::segment_grid grid(index_t segment_tokens, index_t block_tokens) const {
        return {segment_tokens, block_tokens, first_token, layer.shape.tokens};
    }
};

inline chunk_data random_chunk(layer_shape shape, index_t first_token, std::uint64_t seed) {
    shape.queries = shape.tokens - first_token;
    return {random_layer(shape, seed), first_token};
}

// Any subset of the allowed blocks in every row.
inline kvtrim::prune_plan random_prune_plan(random& r, const kvtrim::segment_grid& grid, index_t kv_heads,
                                            double density) {
    std::vector<std::vector<std::int32_t>> rows;
    std::vector<index_t> counts;
    for (index_t g = 0; g < kv_heads; ++g) {
        for (index_t s = 0; s < grid.segments(); ++s) {
            auto& row = rows.emplace_back();
            for (index_t b = 0; b < grid.allowed_blocks(s); ++b) {
                if (r.chance(density)) { row.push_back(static_cast<std::int32_t>(b)); }
            }
            counts.push_back(std::ssize(row));
        }
    }
    kvtrim::prune_plan plan;
    if (!plan.reset(grid, kv_heads, counts).ok()) { throw std::logic_error("reset failed"); }
    for (std::size_t i = 0; i < rows.size(); ++i) {
        const auto row = static_cast<index_t>(i);
        std::copy(rows[i].begin(), rows[i].end(),
                  plan.writable_row(row / grid.segments(), row % grid.segments()).begin());
    }
    return plan;
}

struct attention_result {
    oracle::tensor out;         // [q_heads][queries][value_dim]
    oracle::matrix log_sum_exp; // [q_heads][queries]
};

// The definition, in double: a query attends the planned blocks of its segment and its segment up to itself.
template <class Inputs>
attention_result attention_over(const Inputs& in, const kvtrim::prune_plan& plan,
                                const kvtrim::attention_options& options) {
    const oracle::tensor keys = to_oracle(in.keys), values = to_oracle(in.values),
                         queries = to_oracle(in.queries);
    const kvtrim::segment_grid& grid = plan.grid();
    const std::size_t group = queries.size() / keys.size();
    attention_result result;
    for (std::size_t h = 0; h < queries.size(); ++h) {
        oracle::matrix rows;
        oracle::row sums;
        for (std::size_t i = 0; i < queries[h].size(); ++i) {
            const auto own = grid.first_token + static_cast<index_t>(i);
            const index_t segment = static_cast<index_t>(i) / grid.segment_tokens;
            std::vector<index_t> tokens;
            for (const auto b : plan.row(static_cast<index_t>(h / group), segment)) {
                for (index_t t = b * grid.block_tokens; t < (b + 1) * grid.block_tokens; ++t) {
                    tokens.push_back(t);
                }
            }
            for (index_t t = grid.begin(segment); t <= own; ++t) { tokens.push_back(t); }
            double total =
                options.sink_logits.empty() ? 0.0 : std::exp(static_cast<double>(options.sink_logits[h]));
            oracle::row out(values[0].empty() ? 0 : values[0][0].size(), 0.0);
            for (const index_t t : tokens) {
                if (options.sliding_window > 0 && own - t >= options.sliding_window) { continue; }
                const auto& key = keys[h / group][static_cast<std::size_t>(t)];
                double logit = oracle::dot(queries[h][i], key);
                logit *= options.scale > 0 ? static_cast<double>(options.scale)
                                           : 1.0 / std::sqrt(static_cast<double>(key.size()));
                const auto cap = static_cast<double>(options.soft_cap);
                if (cap > 0) { logit = cap * std::tanh(logit / cap); }
                const double weight = std::exp(logit);
                total += weight;
                for (std::size_t d = 0; d < out.size(); ++d) {
                    out[d] += weight * values[h / group][static_cast<std::size_t>(t)][d];
                }
            }
            for (double& x : out) { x = total > 0 ? x / total : 0.0; }
            rows.push_back(out);
            sums.push_back(std::log(total));
        }
        result.out.push_back(rows);
        result.log_sum_exp.push_back(sums);
    }
    return result;
}

// The largest distance of a view [heads, rows, columns] from the oracle's tensor.
template <class View>
double distance(const View& got, const oracle::tensor& expected) {
    double largest = 0;
    for (std::size_t h = 0; h < expected.size(); ++h) {
        for (std::size_t i = 0; i < expected[h].size(); ++i) {
            for (std::size_t d = 0; d < expected[h][i].size(); ++d) {
                const auto x = static_cast<double>(kvtrim::to_float(kvtrim::at(
                    got, static_cast<index_t>(h), static_cast<index_t>(i), static_cast<index_t>(d))));
                largest = std::max(largest, std::abs(x - expected[h][i][d]));
                if (std::isnan(x)) { return std::numeric_limits<double>::infinity(); }
            }
        }
    }
    return largest;
}

} // namespace support
