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

} // namespace support
