// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// What holds of any prefill, whatever its shape: chunks are worth the whole, executors decide nothing, a budget of
// everything is dense attention.

#include "support/prefill.hpp"
#include "support/cpu_levels.hpp"

#include <kvtrim/policy/critiprefill.hpp>
#include <kvtrim/prefill/block_sparse_attention.hpp>

#include <cmath>
#include <vector>

using namespace kvtrim;
using namespace support;

namespace {

// Integers: every product is exact and ties are common, so a different order of sums would not show, but a
// different rule for ties would.
void make_whole(layer_data& layer) {
    for (auto* values : {&layer.q, &layer.k}) {
        for (float& x : *values) { x = std::round(2 * x); }
    }
}

struct chunk_range {
    index_t begin, end;
};

std::vector<chunk_range> random_chunks(support::random& r, index_t tokens, index_t segment) {
    std::vector<chunk_range> chunks;
    for (index_t at = 0; at < tokens;) {
        const index_t end = std::min(tokens, at + segment * r.between(1, 12));
        chunks.push_back({at, end});
        at = end;
    }
    return chunks;
}

// Plans of four layers, layer by layer for each chunk, as an engine does.
template <class Pruner, class Executor = serial_executor>
std::vector<oracle::plan_rows> planned(const Pruner& policy, const std::vector<layer_data>& layers,
                                       const std::vector<chunk_range>& chunks, Executor ex = {}) {
    const index_t tokens = layers[0].shape.tokens;
    std::vector<oracle::plan_rows> rows(
        layers.size(), oracle::plan_rows(static_cast<std::size_t>(layers[0].shape.kv_heads)));
    layer_fusion state;
    for (const chunk_range& chunk : chunks) {
        for (std::size_t l = 0; l < layers.size(); ++l) {
            prune_plan plan;
            const prefill_chunk at{.layer = static_cast<index_t>(l),
                                   .first_token = chunk.begin,
                                   .ends_prompt = chunk.end == tokens};
            REQUIRE(plan_in_bytes(policy, rows_of(layers[l].queries(), chunk.begin, chunk.end),
                                  rows_of(layers[l].keys(), 0, chunk.end), at, state, plan, ex)
                        .ok());
            const oracle::plan_rows part = rows_of(plan);
            for (std::size_t g = 0; g < part.size(); ++g) {
                rows[l][g].insert(rows[l][g].end(), part[g].begin(), part[g].end());
            }
        }
    }
    return rows;
}

// Calls check(policy, layers, random) for random prompts of up to some panels of segments.
template <class Check>
void for_random_prompts(std::uint64_t seed, int cases, Check&& check) {
    support::random r(seed);
    for (int n = 0; n < cases; ++n) {
        const layer_shape shape{.kv_heads = r.between(1, 3),
                                .group = r.between(1, 3),
                                .tokens = r.between(1, 320),
                                .head_dim = r.one_of({3, 8, 64})};
        const bool whole = r.chance(0.4);
        std::vector<layer_data> layers;
        for (int l = 0; l < 4; ++l) {
            layers.push_back(random_prompt(shape, r.bits()));
            if (whole) { make_whole(layers.back()); }
        }
        const auto with = [&](auto policy) {
            policy.options = random_options(r);
            policy.fusion.previous_weight = r.chance(0.5) ? 0.25 : 0;
            policy.criticality.scale = whole ? 1.0f : 0.0f;
            CAPTURE(n, shape.tokens, policy.options.segment_tokens, policy.options.block_tokens);
            check(policy, layers, r);
        };
        with(critiprefill());
        with(critiprefill_bound());
        with(ada_critiprefill());
    }
}

} // namespace

TEST_CASE("a prompt in chunks of whole segments gets the rows that it gets in one piece", "[properties]") {
    for_random_prompts(
        141, 12, [](const auto& policy, const std::vector<layer_data>& layers, support::random& r) {
            const index_t tokens = layers[0].shape.tokens;
            const auto in_one = planned(policy, layers, {{0, tokens}});
            for (int n = 0; n < 2; ++n) {
                CHECK(planned(policy, layers, random_chunks(r, tokens, policy.options.segment_tokens)) ==
                      in_one);
            }
        });
}

TEST_CASE("executors decide nothing about a prefill", "[properties]") {
    for_random_prompts(142, 6,
                       [](const auto& policy, const std::vector<layer_data>& layers, support::random&) {
                           const std::vector<chunk_range> all{{0, layers[0].shape.tokens}};
                           const auto expected = planned(policy, layers, all);
                           CHECK(planned(policy, layers, all, thread_executor{4}) == expected);
                           CHECK(planned(policy, layers, all, shuffling_executor{3}) == expected);
                       });
}

TEST_CASE("interleaved prefills of two requests are what they are alone", "[properties]") {
    for_random_prompts(143, 4,
                       [](const auto& policy, const std::vector<layer_data>& layers, support::random&) {
                           layer_fusion mine, yours, mine_alone, yours_alone;
                           const auto plan_of = [&](std::size_t layer, index_t number, layer_fusion& state) {
                               prune_plan plan;
                               REQUIRE(plan_in_bytes(policy, layers[layer].queries(), layers[layer].keys(),
                                                     {.layer = number}, state, plan)
                                           .ok());
                               return plan;
                           };
                           std::vector<prune_plan> interleaved, alone;
                           for (index_t l = 0; l < 3; ++l) {
                               interleaved.push_back(plan_of(static_cast<std::size_t>(l), l, mine));
                               interleaved.push_back(plan_of(static_cast<std::size_t>(l + 1), l, yours));
                           }
                           for (index_t l = 0; l < 3; ++l) {
                               alone.push_back(plan_of(static_cast<std::size_t>(l), l, mine_alone));
                           }
                           for (index_t l = 0; l < 3; ++l) {
                               alone.insert(alone.begin() + 2 * l + 1,
                                            plan_of(static_cast<std::size_t>(l + 1), l, yours_alone));
                           }
                           CHECK(interleaved == alone);
                       });
}

TEST_CASE("attention in chunks under a plan is attention in one piece", "[properties]") {
    support::random r(144);
    const layer_data layer = random_prompt({.kv_heads = 2, .group = 2, .tokens = 150, .head_dim = 16}, 1);
    const block_pruner<mid_query, uniform> policy{.options = small_options, .fusion = {.previous_weight = 0}};
    const auto attend = [&](const std::vector<chunk_range>& chunks) {
        std::vector<float> out = zeros(4 * 150 * 16), lse = zeros(4 * 150);
        for (const chunk_range& c : chunks) {
            layer_fusion state;
            prune_plan plan;
            growing_workspace memory;
            const view queries = rows_of(layer.queries(), c.begin, c.end);
            const view keys = rows_of(layer.keys(), 0, c.end), values = rows_of(layer.values(), 0, c.end);
            REQUIRE(policy.plan(queries, keys, {.first_token = c.begin}, state, plan, memory).ok());
            REQUIRE(block_sparse_attention(kvtrim::layer(keys, values).with_queries(queries), plan, {},
                                           strided<float, 3>(out.data() + c.begin * 16,
                                                             {4, c.end - c.begin, 16}, {150 * 16, 16, 1}),
                                           {}, memory)
                        .ok());
        }
        return out;
    };
    at_each_cpu_level([&] {
        const std::vector<float> in_one = attend({{0, 150}});
        for (int n = 0; n < 3; ++n) { CHECK(attend(random_chunks(r, 150, 12)) == in_one); }
    });
}

TEST_CASE("a budget of everything is the dense plan", "[properties]") {
    for_random_prompts(145, 3, [](auto policy, const std::vector<layer_data>& layers, support::random&) {
        policy.options.budget_tokens = 1000;
        policy.options.sink_blocks = policy.options.local_blocks = 1;
        const prune_plan plan = plan_prompt(policy, layers[0]);
        prune_plan dense;
        REQUIRE(plan_dense(plan.grid(), plan.kv_heads(), dense).ok());
        CHECK(plan == dense);
    });
}
