// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Prompts shorter than what a method asks for: KVCache-Factory's issue 6 (a pyramid of a prompt shorter than its window fails).
// Whatever fits is kept whole, by every policy, over one layer, over all of them and as a cascade.

#include <kvtrim/policy/layers.hpp>

#include "support/named_policies.hpp"

using namespace kvtrim;
using namespace support;

namespace {

constexpr index_t window = 8;

layer_data prompt(index_t tokens) {
    return random_layer({.tokens = tokens, .queries = window}, 5000 + static_cast<std::uint64_t>(tokens));
}

bool keeps_all(const keep_plan& plan, const layer_data& layer) {
    for (index_t g = 0; g < plan.rows(); ++g) {
        if (plan.kept_tokens(g) != layer.shape.tokens) { return false; }
    }
    return plan.rows() == layer.shape.kv_heads;
}

constexpr index_t lengths[] = {1, 2, window - 1, window, window + 1, 2 * window};

} // namespace

TEST_CASE("a prompt within the budget is kept whole, however short: every policy", "[regression]") {
    for (const index_t tokens : lengths) {
        const layer_data layer = prompt(tokens);
        for (const named_policy& policy : named_policies()) {
            for (const index_t budget : {tokens, index_t{4 * window}}) {
                CAPTURE(policy.name, tokens, budget);
                const trace t =
                    policy(layer.inputs(), {.budget = per_head(budget),
                                            .protect = {.sink_tokens = 4, .window_tokens = window}});
                CHECK(t.answer.ok());
                CHECK(keeps_all(t.plan, layer));
            }
        }
    }
}

TEST_CASE("a prompt within the budget is kept whole, however short: over all layers, and as a cascade",
          "[regression]") {
    for (const index_t tokens : lengths) {
        const std::vector<layer_data> data{prompt(tokens), prompt(tokens), prompt(tokens)};
        std::vector<inputs> in;
        for (const layer_data& l : data) { in.push_back(l.inputs()); }
        const std::span<const inputs> layers = in;
        const eviction_request request{.budget = per_head(4 * window), .protect = {.window_tokens = window}};
        const auto check = [&](const auto& policy) {
            CAPTURE(tokens);
            std::vector<keep_plan> plans(3);
            growing_workspace memory;
            REQUIRE(policy.plan(layers, request, plans, memory).ok());
            for (const keep_plan& plan : plans) { CHECK(keeps_all(plan, data[0])); }
            auto cascade = policy.begin(in[0], request, 3);
            for (const inputs& one : in) { REQUIRE(policy.push(one, request, 3, cascade, memory).ok()); }
            const index_t fixed = std::min(window, tokens);
            for (index_t l = 0; l < 3; ++l) {
                for (index_t g = 0; g < data[0].shape.kv_heads; ++g) {
                    CHECK(std::ssize(cascade.kept(l, g)) + fixed == tokens);
                }
            }
        };
        check(layer_ada_snapkv());
        check(layer_defensivekv());
    }
}

TEST_CASE("a layer shorter than its window is kept beside longer ones", "[regression]") {
    const std::vector<layer_data> data{prompt(window - 3), prompt(40), prompt(64)};
    std::vector<inputs> in;
    for (const layer_data& l : data) { in.push_back(l.inputs()); }
    std::vector<keep_plan> plans(3);
    growing_workspace memory;
    const status s = layer_ada_snapkv().plan(std::span<const inputs>(in),
                                             {.budget = per_head(20), .protect = {.window_tokens = window}},
                                             plans, memory);
    REQUIRE(s.ok());
    CHECK(keeps_all(plans[0], data[0]));
    CHECK(plans[0].total_tokens() + plans[1].total_tokens() + plans[2].total_tokens() ==
          3 * 20 * data[0].shape.kv_heads);
}

TEST_CASE("pyramid: a prompt shorter than the window, or than the budget, gives every layer all of it",
          "[regression]") {
    for (const auto schedule : {pyramid_schedule::exact, pyramid_schedule::kvcache_factory}) {
        for (const index_t tokens : lengths) {
            std::vector<index_t> budgets(4, -7);
            growing_workspace memory;
            workspace scratch = memory.of_bytes(pyramid::workspace_bytes(4));
            CAPTURE(static_cast<int>(schedule), tokens);
            REQUIRE(
                pyramid{.schedule = schedule}.allocate(tokens, window, 4 * window, budgets, scratch).ok());
            CHECK(budgets == std::vector<index_t>(4, tokens));
        }
    }
}
