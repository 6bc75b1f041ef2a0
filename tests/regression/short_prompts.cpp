// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// A prompt within its budget is kept whole, also where it is shorter than the observation window, the pooling kernel, the sinks,
// a chunk or a lag: KVCache-Factory#6 reports the failure for PyramidKV, whose layers have budgets of their own.

#include "support/named_policies.hpp"

#include <kvtrim/policy/baselines.hpp>
#include <kvtrim/policy/layers.hpp>
#include <kvtrim/policy/plan_batch.hpp>
#include <kvtrim/policy/plan_pages.hpp>
#include <kvtrim/prefill/block_pruner.hpp>

#include <string>

using namespace kvtrim;
using namespace support;

namespace {

constexpr index_t window = 8;
constexpr std::array<index_t, 5> lengths{0, 1, window - 1, window, window + 1};

layer_data prompt_of(index_t tokens, std::uint64_t seed = 1) {
    return random_layer({.kv_heads = 2, .group = 2, .tokens = tokens, .head_dim = 8, .queries = window},
                        seed);
}

bool is_whole(const keep_plan& plan, const inputs& in) {
    if (!is_valid(plan, in)) { return false; }
    for (index_t g = 0; g < in.kv_heads(); ++g) {
        if (plan.kept_tokens(g) != in.tokens(g)) { return false; }
    }
    return true;
}

// Prompts of three layers, as views.
struct three_layers {
    std::vector<layer_data> layers;
    std::vector<inputs> views;

    explicit three_layers(std::initializer_list<index_t> tokens) {
        for (const index_t t : tokens) { layers.push_back(prompt_of(t, layers.size() + 1)); }
        for (const layer_data& l : layers) { views.push_back(l.inputs()); }
    }
    [[nodiscard]] std::span<const inputs> all() const { return views; }
};

bool all_whole(const std::vector<keep_plan>& plans, const three_layers& p) {
    for (std::size_t l = 0; l < plans.size(); ++l) {
        if (!is_whole(plans[l], p.views[l])) { return false; }
    }
    return true;
}

} // namespace

TEST_CASE("every policy keeps a prompt within its budget whole, however short", "[regression]") {
    const std::vector<protection> protections{{},
                                              {.window_tokens = window},
                                              {.sink_tokens = 20, .window_tokens = window},
                                              {.pinned_tokens = 4, .window_tokens = 100},
                                              {.window_tokens = window, .rollback_tokens = 30}};
    for (const index_t tokens : lengths) {
        const layer_data data = prompt_of(tokens);
        const inputs in = data.inputs();
        for (const token_budget budget : {per_head(window + 1), per_head(64), over_all_heads(2 * window + 2),
                                          over_all_layers(std::numeric_limits<index_t>::max())}) {
            for (const protection& protect : protections) {
                for (const named_policy& policy : named_policies()) {
                    const trace t = policy(in, {.budget = budget, .protect = protect});
                    CAPTURE(tokens, budget.tokens, protect.sink_tokens, protect.rollback_tokens, policy.name);
                    CHECK(t.answer.code() == errc::ok);
                    CHECK(is_whole(t.plan, in));
                    CHECK(t.stages.empty()); // nothing is scored
                }
            }
        }
    }
}

TEST_CASE("a prompt of no tokens is kept by a budget of none, and no other is", "[regression]") {
    const layer_data empty = prompt_of(0), one = prompt_of(1);
    for (const named_policy& policy : named_policies()) {
        CAPTURE(policy.name);
        CHECK(is_whole(policy(empty.inputs(), {.budget = per_head(0)}).plan, empty.inputs()));
        CHECK(policy(empty.inputs(), {.budget = per_head(-1)}).answer.code() == errc::budget_zero);
        CHECK(policy(one.inputs(), {.budget = per_head(0)}).answer.code() == errc::budget_zero);
    }
}

TEST_CASE("the layers of a pyramid keep a prompt within the budget whole", "[regression]") {
    growing_workspace memory;
    for (const auto schedule : {pyramid_schedule::exact, pyramid_schedule::adakv,
                                pyramid_schedule::kvcache_factory, pyramid_schedule::kvpress}) {
        for (const index_t tokens : lengths) {
            const three_layers p{tokens, tokens, tokens};
            std::vector<index_t> budgets(3, -1);
            workspace scratch = memory.of_bytes(pyramid::workspace_bytes(3));
            REQUIRE(pyramid{.schedule = schedule}.allocate(tokens, window, 16, budgets, scratch).ok());
            std::vector<keep_plan> plans(3, made_before());
            for (std::size_t l = 0; l < 3; ++l) {
                const eviction_request request{.budget = per_head(budgets[l]),
                                               .protect = {.window_tokens = window}};
                CAPTURE(static_cast<int>(schedule), tokens, l, budgets[l]);
                CHECK(snapkv().plan(p.views[l], request, plans[l], memory).ok());
            }
            CHECK(all_whole(plans, p));
        }
    }
}

TEST_CASE("the layers of CAKE keep a prompt within the budget whole", "[regression]") {
    growing_workspace memory;
    for (const index_t tokens : lengths) {
        const three_layers p{tokens, tokens, tokens};
        const eviction_request request{.budget = per_head(16), .protect = {.window_tokens = window}};
        std::vector<double> shares(3, -1);
        for (std::size_t l = 0; l < 3; ++l) {
            CAPTURE(tokens, l);
            CHECK(layer_preference{}.measure(p.views[l], request, shares[l], memory).ok());
            CHECK(shares[l] >= 0);
        }
        std::vector<keep_plan> plans(3, made_before());
        CHECK(cake(shares).plan(p.all(), request, plans, memory).ok());
        CHECK(all_whole(plans, p));
    }
}

TEST_CASE(
    "policies over layers keep a prompt within the budget whole, at once, layer by layer and in a batch",
    "[regression]") {
    growing_workspace memory;
    const auto check = [&](const auto& policy, const three_layers& p, const eviction_request& request) {
        std::vector<keep_plan> plans(3, made_before());
        CHECK(policy.plan(p.all(), request, plans, memory).ok());
        CHECK(all_whole(plans, p));
        std::vector<std::byte> exact(static_cast<std::size_t>(policy.workspace_bytes(p.all(), request)));
        workspace scratch(exact);
        CHECK(policy.plan(p.all(), request, plans, scratch).ok());

        layer_cascade cascade = policy.begin(p.views[0], request, 3);
        CHECK(cascade.validate().ok());
        const index_t around = std::min(p.views[0].tokens(0), request.protect.suffix());
        for (index_t l = 0; l < 3; ++l) {
            keep_plan plan = made_before();
            CHECK(policy.push(p.views[static_cast<std::size_t>(l)], request, 3, cascade, memory).ok());
            CHECK(cascade.plan(l, 0, around, plan).ok());
            CHECK(is_whole(plan, p.views[static_cast<std::size_t>(l)]));
        }

        std::vector<keep_plan> batched(3, made_before());
        const std::vector<batch_item> items{{policy, p.all(), request, std::span(batched)}};
        status answer;
        CHECK(plan_batch(items, {&answer, 1}, memory).ok());
        CHECK(all_whole(batched, p));
    };
    for (const index_t tokens : lengths) {
        for (const token_budget budget : {per_head(window + 1), over_all_heads(40), over_all_layers(60)}) {
            for (const protection& protect : {protection{}, protection{.window_tokens = window}}) {
                CAPTURE(tokens, budget.tokens, protect.window_tokens);
                const three_layers p{tokens, tokens, tokens};
                check(layer_ada_snapkv(), p, {.budget = budget, .protect = protect});
                check(layer_defensivekv(), p, {.budget = budget, .protect = protect});
            }
        }
    }
}

TEST_CASE("layers of different lengths are kept whole where the budget of all holds them", "[regression]") {
    growing_workspace memory;
    const three_layers p{window - 1, 1, 0}; // the first one is above its own share
    const eviction_request request{.budget = per_head(4), .protect = {.window_tokens = window}};
    std::vector<keep_plan> plans(3, made_before());
    CHECK(layer_ada_snapkv().plan(p.all(), request, plans, memory).ok());
    CHECK(all_whole(plans, p));

    // Not where it does not: a layer that must be scored is then shorter than its window.
    const three_layers uneven{window - 1, 40, 40};
    plans.assign(3, made_before());
    const status s = layer_ada_snapkv().plan(uneven.all(), {.budget = over_all_layers(90)}, plans, memory);
    CHECK(s.code() == errc::window_exceeds_tokens);
    CHECK(plans == std::vector<keep_plan>(3, made_before()));
}

TEST_CASE("sequences shorter than their window are kept whole in a batch beside long ones", "[regression]") {
    std::vector<layer_data> data;
    for (const index_t tokens : lengths) { data.push_back(prompt_of(tokens)); }
    data.push_back(prompt_of(60));
    std::vector<inputs> in;
    for (const layer_data& d : data) { in.push_back(d.inputs()); }
    const std::vector<eviction_request> requests(
        in.size(), {.budget = per_head(window + 1), .protect = {.window_tokens = window}});
    std::vector<keep_plan> plans(in.size(), made_before());
    std::vector<status> answers(in.size());
    growing_workspace memory;
    CHECK(plan_batch(snapkv(), std::span<const inputs>(in), requests, plans, answers, memory).ok());
    for (std::size_t i = 0; i + 1 < in.size(); ++i) { CHECK(is_whole(plans[i], in[i])); }
    CHECK(plans.back().total_tokens() == 2 * (window + 1));
}

TEST_CASE("fewer blocks than the budget or the protected ones are kept whole", "[regression]") {
    const std::vector<float> scores(6, 1.0f);
    growing_workspace memory;
    for (const index_t blocks : {0, 1, 3}) {
        const strided by_row(scores.data(), {index_t{2}, blocks});
        const protection protect{.sink_tokens = 2, .window_tokens = 4};
        keep_plan plan = made_before();
        workspace scratch = memory.of_bytes(plan_pages_bytes(by_row, 8, protect));
        CHECK(plan_pages(by_row, 8, protect, plan, scratch).ok());
        CHECK(plan.rows() == 2);
        CHECK(plan.total_tokens() == 2 * blocks);
    }
}

TEST_CASE("a prompt shorter than a segment, a block or the sinks is attended whole", "[regression]") {
    growing_workspace memory;
    for (const index_t tokens : {0, 1, 31, 32, 33, 511, 512, 513}) {
        const layer_data data =
            random_layer({.kv_heads = 2, .group = 2, .tokens = tokens, .head_dim = 8, .queries = tokens}, 3);
        const block_pruner<> policy;
        layer_fusion state;
        prune_plan plan;
        CAPTURE(tokens);
        REQUIRE(policy.plan(data.queries(), data.keys(), {.layer = 5}, state, plan, memory).ok());
        CHECK(plan.planned_pairs() == plan.dense_pairs());
    }
}
