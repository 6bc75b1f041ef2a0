// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/critiprefill.hpp>

#include "support/prefill.hpp"

#include <cmath>
#include <type_traits>

using namespace kvtrim;
using namespace support;

TEST_CASE("critiprefill: its defaults are the authors' but for scale, sink and local block", "[policy]") {
    const auto policy = critiprefill();
    CHECK(policy.options.segment_tokens == 512);
    CHECK(policy.options.budget_tokens == 2048);
    CHECK(policy.criticality.scale == 0);
    CHECK(policy.criticality.group == group_reduction::mean);
    CHECK(policy.fusion.previous_weight == 0.25);
    CHECK(policy.fusion.first_fused_layer == 2);
    CHECK(ada_critiprefill().allocator.safeguard_ratio == adaptive{}.safeguard_ratio);
    CHECK(ada_critiprefill({}, adaptive{.safeguard_ratio = 0.5}).allocator.safeguard_ratio == 0.5);
    static_assert(std::is_same_v<decltype(critiprefill_bound().estimator), corner_query>);
    static_assert(sizeof(critiprefill()) == sizeof(critiprefill_bound()));
}

TEST_CASE("critiprefill: it attends the block that a segment looks for", "[policy]") {
    // The queries of segment 6 look at a direction that only the keys of block 5 have.
    layer_data layer = random_prompt({.kv_heads = 2, .group = 2, .tokens = 96, .head_dim = 8}, 1);
    for (index_t h = 0; h < 4; ++h) {
        for (index_t t = 72; t < 84; ++t) {
            for (index_t d = 0; d < 8; ++d) {
                layer.q[static_cast<std::size_t>((h * 96 + t) * 8 + d)] = d == 3 ? 20.0f : 0.0f;
            }
        }
    }
    for (index_t g = 0; g < 2; ++g) {
        for (index_t t = 0; t < 96; ++t) { layer.key(g, t)[3] = t / 4 == 5 ? 8.0f : 0.0f; }
    }
    const auto check = [&](auto policy) {
        policy.options = small_options;
        const prune_plan plan = plan_prompt(policy, layer);
        for (index_t g = 0; g < 2; ++g) {
            const auto row = plan.row(g, 6);
            CHECK(std::binary_search(row.begin(), row.end(), 5));
        }
    };
    check(critiprefill());
    check(critiprefill_bound());
    check(ada_critiprefill());
}

TEST_CASE("critiprefill_bound: without a budget for all, it skips no block that could hold the largest logit",
          "[policy]") {
    // The block of the largest true logit can only be skipped for blocks whose bound is above that logit.
    const layer_data layer = random_prompt({.kv_heads = 1, .group = 2, .tokens = 96, .head_dim = 8}, 2);
    block_pruner<corner_query, uniform> policy{.options = small_options,
                                               .criticality = {.group = group_reduction::maximum},
                                               .fusion = {.previous_weight = 0}};
    const oracle::prefill_setup setup = to_oracle(policy);
    const auto queries = to_oracle(layer.queries());
    const auto keys = to_oracle(layer.keys());
    const prune_plan plan = plan_prompt(policy, layer);
    for (std::size_t s = 2; s < 8; ++s) {
        const auto row = plan.row(0, static_cast<index_t>(s));
        const oracle::row bounds =
            oracle::block_logits(setup, queries, keys[0], 0, 2, 12 * s, 12 * s + 12, 3 * s);
        double least = std::numeric_limits<double>::infinity();
        for (const auto b : row) { least = std::min(least, bounds[static_cast<std::size_t>(b)]); }
        for (std::size_t b = 0; b < 3 * s; ++b) {
            if (std::binary_search(row.begin(), row.end(), static_cast<std::int32_t>(b))) { continue; }
            for (std::size_t t = 4 * b; t < 4 * b + 4; ++t) {
                for (std::size_t i = 12 * s; i < 12 * s + 12; ++i) {
                    for (const auto& head : queries) {
                        CHECK(oracle::dot(head[i], keys[0][t]) / std::sqrt(8.0) <= least + 1e-5);
                    }
                }
            }
        }
    }
}
