// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// What one sequence, prompt or cut leaves behind for the next in reference codes: nothing may, here.

#include "support/named_policies.hpp"

#include <kvtrim/compact/compact_to_flat.hpp>
#include <kvtrim/policy/defensivekv.hpp>

using namespace kvtrim;
using namespace support;

namespace {

constexpr eviction_request forty{.budget = per_head(40), .protect = {.sink_tokens = 2, .window_tokens = 8}};

layer_data prompt_with_window(index_t tokens, std::uint64_t seed) {
    return random_layer({.kv_heads = 3, .group = 2, .tokens = tokens, .queries = 8}, seed);
}

} // namespace

// kvpress 8bb29b9, CriticalAdaKVPress sums head budgets over the batch; DefensiveKV 9251b95 takes a maximum over it.
TEST_CASE("the plan of one sequence does not depend on other sequences", "[regression]") {
    const layer_data mine = prompt_with_window(200, 1);
    layer_data loud = prompt_with_window(150, 2);
    for (auto* values : {&loud.k, &loud.v}) {
        for (float& x : *values) { x *= 100; }
    }
    for (const named_policy& policy : named_policies()) {
        const keep_plan alone = policy(mine.inputs(), forty).plan;
        // One workspace and one plan object for all requests of an engine.
        std::vector<std::byte> memory(static_cast<std::size_t>(std::max(
            policy.workspace_bytes(mine.inputs(), forty), policy.workspace_bytes(loud.inputs(), forty))));
        workspace scratch(memory);
        keep_plan plan;
        CAPTURE(policy.name);
        for (int turn = 0; turn < 2; ++turn) {
            REQUIRE(policy.plan(loud.inputs(), forty, plan, scratch).ok());
            REQUIRE(policy.plan(mine.inputs(), forty, plan, scratch).ok());
            CHECK(plan == alone);
        }
    }
}

// AdaKV efe4e2e (pyram_init), kvpress#221: lengths of the first prompt rule all later ones.
TEST_CASE("a short prompt first does not change the plan of a long one", "[regression]") {
    for (const named_policy& policy : named_policies()) {
        const layer_data little = prompt_with_window(45, 3);
        const layer_data much = prompt_with_window(400, 4);
        const keep_plan expected = policy(much.inputs(), forty).plan;
        static_cast<void>(policy(little.inputs(), forty));
        CAPTURE(policy.name);
        CHECK(policy(much.inputs(), forty).plan == expected);
    }
}

// A refused request left a half-written state behind.
TEST_CASE("a refused request does not disturb the next one", "[regression]") {
    const layer_data layer = prompt_with_window(200, 1);
    for (const named_policy& policy : named_policies()) {
        const keep_plan expected = policy(layer.inputs(), forty).plan;
        std::vector<std::byte> memory(
            static_cast<std::size_t>(policy.workspace_bytes(layer.inputs(), forty)));
        workspace scratch(memory);
        keep_plan plan = expected;
        const layer_data longer = prompt_with_window(1250, 1);
        CAPTURE(policy.name);
        static_cast<void>(policy.plan(longer.inputs(), forty, plan, scratch)); // too large for this workspace
        CHECK(policy.plan(layer.inputs(), {.budget = per_head(0)}, plan, scratch).code() ==
              errc::budget_zero);
        REQUIRE(policy.plan(layer.inputs(), forty, plan, scratch).ok());
        CHECK(plan == expected);
    }
}

// D10 of policy/defensivekv.hpp: "only allows to compress once" (heads of equal length are asserted).
TEST_CASE("a cache with heads of different length is compressed a second and a third time", "[regression]") {
    layer_data layer = prompt_with_window(200, 7);
    const auto policy = defensivekv();
    std::vector<float> k = layer.k;
    std::vector<float> v = layer.v;
    keep_plan plan = run(policy, layer.inputs(), {.budget = per_head(120), .protect = forty.protect}).plan;
    REQUIRE(compact_to_flat(strided<float, 3>(k.data(), {3, 200, 16}), plan).ok());
    REQUIRE(compact_to_flat(strided<float, 3>(v.data(), {3, 200, 16}), plan).ok());
    for (const index_t budget : {60, 20}) {
        CHECK(plan.kept_tokens(0) != plan.kept_tokens(1)); // it is ragged indeed
        const auto keys = flat_view(k.data(), plan, 16);
        const auto values = flat_view(v.data(), plan, 16);
        const auto in = kvtrim::layer(keys, values)
                            .with_queries(layer.queries())
                            .with_output_projection(layer.projection());
        const trace again = run(policy, in, {.budget = per_head(budget), .protect = forty.protect});
        REQUIRE(again.answer.ok());
        CHECK(again.plan.total_tokens() == 3 * budget);
        REQUIRE(compact_to_flat(keys, again.plan).ok());
        REQUIRE(compact_to_flat(values, again.plan).ok());
        plan = again.plan;
    }
    // The newest token has survived everything, at the end of its head.
    const auto last = flat_view(k.data(), plan, 16);
    for (index_t g = 0; g < 3; ++g) {
        CHECK(std::equal(last.row(g, plan.kept_tokens(g) - 1), last.row(g, plan.kept_tokens(g) - 1) + 16,
                         layer.key(g, 199)));
    }
}

// kvpress#173: top-k leaves survivors in the order of their scores; the next window is then another one.
TEST_CASE("survivors stay in temporal order", "[regression]") {
    const layer_data layer = prompt_with_window(200, 8);
    for (const named_policy& policy : named_policies()) {
        const trace t = policy(layer.inputs(), forty);
        CAPTURE(policy.name);
        for (index_t g = 0; g < 3; ++g) {
            const auto row = t.plan.row(g);
            CHECK(std::adjacent_find(row.begin(), row.end(), std::greater_equal<>()) == row.end());
            CHECK(row.back() == 199);
        }
    }
}
