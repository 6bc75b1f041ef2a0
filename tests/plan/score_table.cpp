// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/plan/score_table.hpp>

#include <kvtrim/policy/baselines.hpp>
#include <kvtrim/policy/criticalkv.hpp>
#include <kvtrim/policy/defensivekv.hpp>

#include "support/checks.hpp"

using namespace kvtrim;
using namespace support;

namespace {

// What a policy's observer sees once everything is scored.
template <class Policy>
score_table scored_by_plan(const Policy& policy, const inputs& in, const eviction_request& request) {
    score_table seen;
    keep_plan plan;
    growing_workspace memory;
    const status s = policy.plan(in, request, plan, memory, serial_executor{}, [&](const plan_progress& p) {
        if (p.stage == plan_stage::scored) { seen.assign(p.scores); }
    });
    REQUIRE(s.ok());
    return seen;
}

// Refuses a layer, and relies on being asked.
struct refusing_scorer {
    static constexpr bool writes_attention = false;
    errc code = errc::invalid_parameter;

    template <class Inputs>
    [[nodiscard]] status validate(const Inputs&, const eviction_request&) const {
        return {code, "not this layer"};
    }
    template <class Inputs, class Executor>
    status score(const Inputs&, const eviction_request&, const token_scores&, workspace&, Executor&) const {
        FAIL("a layer that the scorer refuses was scored");
        return {};
    }
};

} // namespace

TEST_CASE("policy.score: the scores that plan() ranks by, before anyone selects", "[policy]") {
    const layer_data layer = random_layer({.tokens = 70, .queries = 6}, 4301);
    const eviction_request request{.budget = per_head(20), .protect = {.sink_tokens = 2, .window_tokens = 6}};
    const auto check = [&](const auto& policy) {
        score_table table;
        growing_workspace memory;
        REQUIRE(policy.score(layer.inputs(), request, table, memory).ok());
        CHECK(table == scored_by_plan(policy, layer.inputs(), request));
        CHECK(table.rows() == layer.inputs().kv_heads());
        CHECK(std::ssize(table.row(0)) == 70 - 8);
    };
    check(snapkv());
    check(ada_snapkv());
    check(ada_criticalkv());
    check(defensivekv());
    check(tova());
    check(key_diff());
}

TEST_CASE("policy.score: asks for no budget, and a cache of protected tokens alone has no scores",
          "[policy][odd]") {
    const layer_data layer = random_layer({.tokens = 10, .queries = 12}, 4302);
    score_table table;
    growing_workspace memory;
    CHECK(
        snapkv().score(layer.inputs(), {.budget = {}, .protect = {.window_tokens = 12}}, table, memory).ok());
    CHECK(table.importance().empty());
}

TEST_CASE("score_table: takes over all that scores say, the attention of protected tokens too", "[plan]") {
    const std::vector<index_t> offsets{0, 2, 3};
    std::vector<float> importance{1, 2, 3}, attention{4, 5, 6}, protected_mass{0.5f, 0.25f};
    score_table table;
    table.assign({offsets, importance, attention, protected_mass});
    CHECK(std::ranges::equal(table.scores().importance, importance));
    CHECK(std::ranges::equal(table.scores().attention, attention));
    CHECK(std::ranges::equal(table.scores().protected_mass, protected_mass));
    CHECK(std::ranges::equal(table.scores().offsets, offsets));
}

TEST_CASE("policy.score: a refusal leaves the table as it was", "[policy][errors]") {
    const layer_data layer = random_layer({.tokens = 30, .queries = 4}, 4303);
    score_table table;
    growing_workspace memory;
    const eviction_request request{.budget = {}, .protect = {.window_tokens = 4}};
    REQUIRE(snapkv().score(layer.inputs(), request, table, memory).ok());
    const score_table before = table;
    auto bad = request;
    bad.protect.sink_tokens = -1;
    CHECK(snapkv().score(layer.inputs(), bad, table, memory).code() == errc::invalid_parameter);
    bad = request;
    bad.attention.scale = -1;
    CHECK(snapkv().score(layer.inputs(), bad, table, memory).code() == errc::invalid_parameter);
    CHECK(snapkv({.kernel_tokens = 2}).score(layer.inputs(), request, table, memory).code() ==
          errc::invalid_parameter);
    CHECK(table == before);
}

TEST_CASE(
    "policy.score: runs in exactly score_bytes() of the caller's memory and names them where there is less",
    "[policy]") {
    const layer_data layer = random_layer({.tokens = 70, .queries = 6}, 4304);
    const eviction_request request{.budget = {}, .protect = {.sink_tokens = 2, .window_tokens = 6}};
    const auto check = [&](const auto& policy) {
        const index_t bytes = policy.score_bytes(layer.inputs(), request);
        std::vector<std::byte> exact(static_cast<std::size_t>(bytes));
        workspace scratch(exact);
        workspace small(std::span<std::byte>(exact.data(), exact.size() / 2));
        score_table table, grown;
        const status s = policy.score(layer.inputs(), request, table, small);
        CHECK(s.code() == errc::workspace_too_small);
        CHECK(s.needed() == bytes);
        CHECK(table == score_table{});
        REQUIRE(policy.score(layer.inputs(), request, table, scratch).ok());
        CHECK(scratch.holds(bytes)); // what was taken is given back
        growing_workspace memory;
        REQUIRE(policy.score(layer.inputs(), request, grown, memory).ok());
        CHECK(memory.capacity_bytes() == bytes);
        CHECK(table == grown);
    };
    check(snapkv());
    check(defensivekv());
    check(ada_criticalkv());
    check(key_diff());
    auto bad = request;
    bad.protect.sink_tokens = -1;
    CHECK(snapkv().score_bytes(layer.inputs(), bad) == 0);
}

TEST_CASE("policy.score: a layer that the scorer refuses is not scored, however short", "[policy][errors]") {
    const layer_data layer = random_layer({.tokens = 30, .queries = 4}, 4305);
    growing_workspace memory;
    for (const errc code : {errc::invalid_parameter, errc::window_exceeds_tokens}) {
        score_table table;
        const eviction_policy policy{refusing_scorer{code}, uniform{}, by_importance{}};
        CHECK(policy.score(layer.inputs(), {.budget = {}}, table, memory).code() == code);
        CHECK(table == score_table{});
    }
}
