// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What the tests of prefill pruning and block-sparse attention have in common: prompts and chunks of them, plans of
// any blocks, and the library's options in the oracle's words.

#include "oracle/prefill.hpp"
#include "support/catch.hpp"
#include "support/checks.hpp"
#include "support/random_layer.hpp"

#include <kvtrim/plan/prune_plan.hpp>
#include <kvtrim/prefill/block_pruner.hpp>

#include <vector>

namespace support {

// ---- Prompts ----------------------------------------------------------------------------------------------

// A prompt with a query for each token.
inline layer_data random_prompt(const layer_shape& shape, std::uint64_t seed) {
    layer_shape all = shape;
    all.queries = shape.tokens;
    all.hidden = 1;
    return random_layer(all, seed);
}

// Rows [begin, end) of every head.
inline view rows_of(const view& v, index_t begin, index_t end) {
    return {v.data_handle() + begin * v.stride(1),
            {v.extent(0), end - begin, v.extent(2)},
            {v.stride(0), v.stride(1), v.stride(2)}};
}

// ---- Plans ------------------------------------------------------------------------------------------------

// A plan that nothing else makes: what an error must leave alone.
inline kvtrim::prune_plan planned_before() {
    kvtrim::prune_plan plan;
    const std::vector<index_t> counts{0, 1};
    if (!plan.reset({.segment_tokens = 4, .block_tokens = 2, .first_token = 0, .end_token = 7}, 1, counts)
             .ok()) {
        throw std::logic_error("reset failed");
    }
    plan.writable_row(0, 1)[0] = 1;
    return plan;
}

inline kvtrim::prune_plan plan_of(const kvtrim::segment_grid& grid, const oracle::plan_rows& rows) {
    std::vector<index_t> counts;
    for (const auto& head : rows) {
        for (const auto& row : head) { counts.push_back(static_cast<index_t>(row.size())); }
    }
    kvtrim::prune_plan plan;
    if (!plan.reset(grid, static_cast<index_t>(rows.size()), counts).ok()) {
        throw std::logic_error("reset failed");
    }
    for (std::size_t g = 0; g < rows.size(); ++g) {
        for (std::size_t s = 0; s < rows[g].size(); ++s) {
            const auto out = plan.writable_row(static_cast<index_t>(g), static_cast<index_t>(s));
            std::transform(rows[g][s].begin(), rows[g][s].end(), out.begin(),
                           [](std::size_t b) { return static_cast<std::int32_t>(b); });
        }
    }
    return plan;
}

inline oracle::plan_rows rows_of(const kvtrim::prune_plan& plan) {
    oracle::plan_rows rows(static_cast<std::size_t>(plan.kv_heads()));
    for (index_t g = 0; g < plan.kv_heads(); ++g) {
        for (index_t s = 0; s < plan.grid().segments(); ++s) {
            rows[static_cast<std::size_t>(g)].emplace_back(plan.row(g, s).begin(), plan.row(g, s).end());
        }
    }
    return rows;
}

// Each allowed block with the probability of a row, which is 0 and 1 for some of them.
inline kvtrim::prune_plan random_plan(const kvtrim::segment_grid& grid, index_t kv_heads, random& r) {
    oracle::plan_rows rows(static_cast<std::size_t>(kv_heads));
    for (auto& head : rows) {
        for (index_t s = 0; s < grid.segments(); ++s) {
            const double share = r.one_of({0.0, 0.2, 0.5, 0.8, 1.0});
            head.emplace_back();
            for (index_t b = 0; b < grid.allowed_blocks(s); ++b) {
                if (r.chance(share)) { head.back().push_back(static_cast<std::size_t>(b)); }
            }
        }
    }
    return plan_of(grid, rows);
}

// ---- Pruning ----------------------------------------------------------------------------------------------

// Small enough for the oracle; nothing is dense but what must be.
constexpr kvtrim::pruning_options small_options{.segment_tokens = 12,
                                                .block_tokens = 4,
                                                .budget_tokens = 12,
                                                .dense_below_tokens = 0,
                                                .dense_layers = 0,
                                                .dense_last_segment = false,
                                                .sink_blocks = 0,
                                                .local_blocks = 0};

inline kvtrim::pruning_options random_options(random& r) {
    kvtrim::pruning_options o = small_options;
    o.block_tokens = r.between(1, 6);
    o.segment_tokens = o.block_tokens * r.between(1, 4);
    o.budget_tokens = o.block_tokens * r.between(1, 7) + r.between(0, o.block_tokens - 1);
    o.dense_below_tokens = r.chance(0.3) ? r.between(0, 60) : 0;
    o.dense_layers = r.chance(0.3) ? 1 : 0;
    o.dense_last_segment = r.chance(0.5);
    o.sink_blocks = r.chance(0.5) ? r.between(0, o.budget_blocks()) : 0;
    o.local_blocks = r.chance(0.5) ? r.between(0, o.budget_blocks() - o.sink_blocks) : 0;
    return o;
}

inline oracle::reduction to_oracle(kvtrim::group_reduction g) {
    return g == kvtrim::group_reduction::mean  ? oracle::reduction::mean
           : g == kvtrim::group_reduction::sum ? oracle::reduction::sum
                                               : oracle::reduction::maximum;
}

template <class Estimator, class Allocator>
oracle::prefill_setup to_oracle(const kvtrim::block_pruner<Estimator, Allocator>& policy) {
    const auto size = [](index_t x) { return static_cast<std::size_t>(x); };
    const kvtrim::pruning_options& o = policy.options;
    oracle::prefill_setup s{.segment = size(o.segment_tokens),
                            .block = size(o.block_tokens),
                            .budget_tokens = size(o.budget_tokens),
                            .dense_below = size(o.dense_below_tokens),
                            .dense_layers = size(o.dense_layers),
                            .dense_last = o.dense_last_segment,
                            .sinks = size(o.sink_blocks),
                            .locals = size(o.local_blocks),
                            .corner = std::is_same_v<Estimator, kvtrim::corner_query>,
                            .scale = static_cast<double>(policy.criticality.scale),
                            .group = to_oracle(policy.criticality.group),
                            .previous_weight = policy.fusion.previous_weight,
                            .first_fused_layer = size(policy.fusion.first_fused_layer)};
    if constexpr (requires { policy.allocator.safeguard_ratio; }) {
        s.adaptive = true;
        s.safeguard_ratio = policy.allocator.safeguard_ratio;
    }
    return s;
}

// Plans with exactly the workspace that the pruner asks for.
template <class Pruner, class Queries, class Keys, class Executor = kvtrim::serial_executor>
kvtrim::status plan_in_bytes(const Pruner& policy, const Queries& queries, const Keys& keys,
                             const kvtrim::prefill_chunk& chunk, kvtrim::layer_fusion& state,
                             kvtrim::prune_plan& out, Executor ex = {}) {
    std::vector<std::byte> memory(static_cast<std::size_t>(policy.workspace_bytes(queries, keys, chunk, ex)));
    kvtrim::workspace scratch(memory);
    return policy.plan(queries, keys, chunk, state, out, scratch, ex);
}

// The plan of a whole prompt's first layer.
template <class Pruner>
kvtrim::prune_plan plan_prompt(const Pruner& policy, const layer_data& layer) {
    kvtrim::layer_fusion state;
    kvtrim::prune_plan plan;
    const kvtrim::status s = plan_in_bytes(policy, layer.queries(), layer.keys(), {}, state, plan);
    if (!s.ok()) { throw std::runtime_error(s.what()); }
    return plan;
}

} // namespace support
