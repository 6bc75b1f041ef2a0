// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Reference codes mark protected tokens by a large score. Each case is what that loses, and must not happen here.

#include "support/named_policies.hpp"

#include <kvtrim/policy/criticalkv.hpp>
#include <kvtrim/policy/defensivekv.hpp>
#include <kvtrim/score/given_scores.hpp>

using namespace kvtrim;
using namespace support;

namespace {

constexpr layer_shape shape{
    .kv_heads = 2, .group = 2, .tokens = 120, .head_dim = 16, .value_dim = 16, .hidden = 24, .queries = 16};
constexpr protection sinks_and_window{.sink_tokens = 4, .window_tokens = 16};

void check_protected(const layer_data& layer, token_budget budget = per_head(30)) {
    const eviction_request request{.budget = budget, .protect = sinks_and_window};
    for (const named_policy& policy : named_policies()) {
        const trace t = policy(layer.inputs(), request);
        CAPTURE(policy.name);
        REQUIRE(t.answer.ok());
        CHECK(keeps_protected(t.plan, layer.inputs(), sinks_and_window));
    }
}

} // namespace

// kvpress CriticalKVPress.score multiplies the window's sentinel by the value norm: 5 to 9 of 64 window tokens lost.
TEST_CASE("protected tokens with zero value norms are never evicted", "[regression]") {
    layer_data layer = random_layer(shape, 1);
    for (index_t g = 0; g < 2; ++g) {
        for (index_t t = 0; t < 4; ++t) { std::fill_n(layer.value(g, t), 16, 0.0f); }
        for (index_t t = 104; t < 120; ++t) { std::fill_n(layer.value(g, t), 16, 0.0f); }
    }
    check_protected(layer);
}

// kvpress CriticalAdaKVPress: finfo.max times a norm above 1 is infinite, and one infinity beats no other.
TEST_CASE("protected tokens are not outranked where norms overflow", "[regression]") {
    layer_data layer = random_layer(shape, 1);
    for (float& x : layer.v) { x *= 1e25f; }
    for (float& x : layer.w) { x *= 1e25f; }
    check_protected(layer);
}

// kvpress SnapKVPress pads with max + 1: equal to max where scores exceed the mantissa.
TEST_CASE("protected tokens are not lost where max + 1 equals max", "[regression]") {
    const layer_data layer = random_layer(shape, 1);
    std::vector<float> scores(240, 1e30f);
    const given_scores given{strided<const float, 2>(scores.data(), {2, 120})};
    const eviction_request request{.budget = per_head(30), .protect = sinks_and_window};
    const trace t = run(eviction_policy{given, adaptive{}, by_importance{}}, layer.inputs(), request);
    CHECK(keeps_protected(t.plan, layer.inputs(), sinks_and_window));
}

// kvpress#226, D7 of policy/defensivekv.hpp: the window ties with the best tokens, and loses by its higher index.
TEST_CASE("protected tokens are not lost to tokens of equal score", "[regression]") {
    layer_data layer = random_layer(shape, 1);
    std::fill(layer.k.begin(), layer.k.end(), 0.0f);
    std::fill(layer.v.begin(), layer.v.end(), 1.0f);
    check_protected(layer);
    check_protected(layer, over_all_heads(2 * 20));
}

// D5 of policy/defensivekv.hpp: with w (1 - r) small, window tokens went first: n 1000, w 64, r 0.934.
TEST_CASE("protected tokens stay when the budget is just above them", "[regression]") {
    layer_data layer = random_layer({.kv_heads = 2,
                                     .group = 1,
                                     .tokens = 1000,
                                     .head_dim = 8,
                                     .value_dim = 8,
                                     .hidden = 8,
                                     .queries = 64},
                                    1);
    const protection window{.window_tokens = 64};
    for (const named_policy& policy : named_policies()) {
        const trace t = policy(layer.inputs(), {.budget = per_head(66), .protect = window});
        CAPTURE(policy.name);
        REQUIRE(t.answer.ok());
        CHECK(keeps_protected(t.plan, layer.inputs(), window));
        CHECK(t.plan.total_tokens() == 132);
    }
}

// All reference codes: a budget below the window keeps an arbitrary part of it (kvpress: the oldest).
TEST_CASE("a budget below the window is refused, not met with an arbitrary part of it", "[regression]") {
    const layer_data layer = random_layer(shape, 1);
    for (const named_policy& policy : named_policies()) {
        const trace t = policy(layer.inputs(), {.budget = per_head(15), .protect = {.window_tokens = 16}});
        CAPTURE(policy.name);
        CHECK(t.answer.code() == errc::budget_below_protection);
        CHECK(t.answer.needed() == 32);
        CHECK(t.plan == made_before());
    }
}

// avg_pool1d over the whole row (kvpress): a sink's attention lifts the tokens beside it.
TEST_CASE("a protected sink does not lift its neighbours through pooling", "[regression]") {
    layer_data layer = random_layer(
        {.kv_heads = 1, .group = 1, .tokens = 60, .head_dim = 8, .value_dim = 8, .queries = 4}, 1);
    const eviction_request request{.budget = per_head(20), .protect = {.sink_tokens = 4, .window_tokens = 4}};
    const auto relative = [&] { // the first candidate's score in units of the tenth's
        const trace t = run(snapkv(), layer.inputs(), request);
        return t.importance[0] / t.importance[10];
    };
    const float before = relative();
    for (index_t d = 0; d < 8; ++d) { layer.key(0, 3)[d] = 4 * layer.q[static_cast<std::size_t>(d)]; }
    CHECK(relative() == Approx(before).epsilon(1e-3));
}

// Speculative decoding: draft tokens after the window are neither scored by nor competing with it.
TEST_CASE("a draft tail does not shift the window and is never evicted", "[regression]") {
    const layer_data layer = random_layer(shape, 1);
    layer_data longer = random_layer(shape, 2);
    longer.shape.tokens = 125;
    longer.k = zeros(2 * 125 * 16);
    longer.v = zeros(2 * 125 * 16);
    longer.q = layer.q;
    longer.w = layer.w;
    for (index_t g = 0; g < 2; ++g) {
        std::copy_n(layer.k.data() + g * 120 * 16, 120 * 16, longer.key(g, 0));
        std::copy_n(layer.v.data() + g * 120 * 16, 120 * 16, longer.value(g, 0));
        for (index_t i = 0; i < 5 * 16; ++i) { longer.key(g, 120)[i] = 3.0f; }
    }
    for (const named_policy& policy : named_policies()) {
        // These look at keys or positions alone: a tail is more of both.
        if (!policy.needs_window) { continue; }
        const protection without{.sink_tokens = 4, .window_tokens = 16};
        protection with = without;
        with.rollback_tokens = 5;
        const auto kept =
            kept_sets(policy(layer.inputs(), {.budget = per_head(40), .protect = without}).plan);
        auto kept_with = kept_sets(policy(longer.inputs(), {.budget = per_head(45), .protect = with}).plan);
        CAPTURE(policy.name);
        for (auto& head : kept_with) {
            CHECK(oracle::token_set(head.end() - 5, head.end()) ==
                  oracle::token_set{120, 121, 122, 123, 124});
            head.resize(head.size() - 5);
        }
        CHECK(kept_with == kept);
    }
}
