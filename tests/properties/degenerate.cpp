// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// One table of inputs that break code, run through every policy: the answer is a valid plan with exactly the tokens
// asked for, or the documented status with the plan as it was.

#include "support/named_policies.hpp"
#include "support/special_floats.hpp"

#include <kvtrim/policy/snapkv.hpp>

using namespace kvtrim;
using namespace support;

namespace {

constexpr float nan = std::numeric_limits<float>::quiet_NaN();

struct answer {
    errc code = errc::ok;
    index_t needed = 0;
};

struct degenerate_case {
    std::string name;
    layer_data layer;
    eviction_request request;
    answer expected = {};       // of policies that read the observation window
    answer without_window = {}; // of the others
};

layer_shape small(index_t tokens = 30, index_t queries = 4) {
    return {.kv_heads = 2,
            .group = 2,
            .tokens = tokens,
            .head_dim = 8,
            .value_dim = 8,
            .hidden = 12,
            .queries = queries};
}

layer_data plain() {
    return random_layer(small(), 1);
}

// A layer with some numbers replaced.
template <class Change>
layer_data changed(Change&& change) {
    layer_data layer = plain();
    change(layer);
    return layer;
}

std::vector<degenerate_case> sizes() {
    const eviction_request ten{.budget = per_head(10), .protect = {.sink_tokens = 1, .window_tokens = 4}};
    const auto with_budget = [&](token_budget budget) {
        eviction_request request = ten;
        request.budget = budget;
        return request;
    };
    const answer below{errc::budget_below_protection, 10};
    return {
        {"no tokens", random_layer(small(0, 1), 1), ten},
        {"no tokens, more queries than that", random_layer(small(0, 4), 1), ten},
        {"one token", random_layer(small(1, 1), 1), ten},
        {"one token, budget 1", random_layer(small(1, 1), 1), {.budget = per_head(1)}},
        {"two tokens, budget 1", random_layer(small(2, 1), 1), {.budget = per_head(1)}},
        {"two tokens, budget 1 over both heads", random_layer(small(2, 1), 1), {.budget = over_all_heads(1)}},
        {"the window is the prompt", random_layer(small(4), 1), ten},
        {"the window is the prompt, the budget is less",
         random_layer(small(4), 1),
         with_budget(per_head(3)),
         {errc::budget_below_protection, 8},
         {errc::budget_below_protection, 8}},
        {"the queries are the prompt, none protected", random_layer(small(4), 1), {.budget = per_head(3)}},
        {"the budget is the prompt", plain(), with_budget(per_head(30))},
        {"the budget is above the prompt", plain(), with_budget(per_head(31))},
        {"the budget is one below the prompt of both heads", plain(), with_budget(over_all_heads(59))},
        {"budget 0", plain(), with_budget(per_head(0)), {errc::budget_zero}, {errc::budget_zero}},
        {"a negative budget", plain(), with_budget(per_head(-1)), {errc::budget_zero}, {errc::budget_zero}},
        {"the budget is below the protected tokens", plain(), with_budget(per_head(4)), below, below},
        {"the budget is the protected tokens", plain(), with_budget(per_head(5))},
        {"the budget is one above the protected tokens", plain(), with_budget(over_all_heads(11))},
        {"one candidate", random_layer(small(6), 1), with_budget(per_head(5))},
        {"protected ranges that overlap",
         plain(),
         {.budget = per_head(30), .protect = {.sink_tokens = 20, .pinned_tokens = 25, .window_tokens = 15}}},
        {"shorter than the window",
         random_layer(small(3), 1),
         {.budget = per_head(2)},
         {errc::window_exceeds_tokens, 4}},
        {"shorter than the window and kept whole", random_layer(small(3), 1), {.budget = per_head(3)}},
        {"the rollback tail is longer than the prompt",
         plain(),
         {.budget = per_head(29), .protect = {.rollback_tokens = 27}},
         {errc::window_exceeds_tokens, 31}},
        {"one head of one channel",
         random_layer({.kv_heads = 1,
                       .group = 1,
                       .tokens = 30,
                       .head_dim = 1,
                       .value_dim = 1,
                       .hidden = 1,
                       .queries = 4},
                      1),
         ten},
        {"heads without channels",
         random_layer({.kv_heads = 2,
                       .group = 2,
                       .tokens = 30,
                       .head_dim = 0,
                       .value_dim = 0,
                       .hidden = 12,
                       .queries = 4},
                      1),
         ten},
        {"seven query heads per KV head",
         random_layer({.kv_heads = 3, .group = 7, .tokens = 30, .head_dim = 8, .value_dim = 4, .queries = 19},
                      1),
         with_budget(per_head(7))},
    };
}

std::vector<degenerate_case> numbers() {
    const eviction_request ten{.budget = per_head(10), .protect = {.sink_tokens = 1, .window_tokens = 4}};
    const auto all = [](std::vector<float>& values, float x) { std::fill(values.begin(), values.end(), x); };
    const auto times = [](std::vector<float>& values, float factor) {
        for (float& x : values) { x *= factor; }
    };
    std::vector<degenerate_case> cases{
        {"constant keys", changed([&](layer_data& l) { all(l.k, 1.0f); }), ten},
        {"zero keys", changed([&](layer_data& l) { all(l.k, 0.0f); }), ten},
        {"zero queries", changed([&](layer_data& l) { all(l.q, 0.0f); }), ten},
        {"zero values", changed([&](layer_data& l) { all(l.v, 0.0f); }), ten},
        {"zero W_O", changed([&](layer_data& l) { all(l.w, 0.0f); }), ten},
        {"everything zero", changed([&](layer_data& l) {
             for (auto* values : {&l.k, &l.v, &l.q, &l.w}) { all(*values, 0.0f); }
         }),
         ten},
        {"everything NaN", changed([&](layer_data& l) {
             for (auto* values : {&l.k, &l.v, &l.q, &l.w}) { all(*values, nan); }
         }),
         ten},
        {"NaN keys", changed([&](layer_data& l) { all(l.k, nan); }), ten},
        {"NaN queries", changed([&](layer_data& l) { all(l.q, nan); }), ten},
        {"NaN values", changed([&](layer_data& l) { all(l.v, nan); }), ten},
        {"NaN W_O", changed([&](layer_data& l) { all(l.w, nan); }), ten},
        {"infinite keys", changed([&](layer_data& l) { all(l.k, infinity); }), ten},
        {"infinite values", changed([&](layer_data& l) { all(l.v, -infinity); }), ten},
        {"infinite W_O", changed([&](layer_data& l) { all(l.w, infinity); }), ten},
        {"huge logits", changed([&](layer_data& l) {
             times(l.k, 1e6f);
             times(l.q, 1e6f);
         }),
         ten},
        {"overflowing logits", changed([&](layer_data& l) {
             times(l.k, 1e30f);
             times(l.q, 1e30f);
         }),
         ten},
        {"overflowing norms", changed([&](layer_data& l) {
             times(l.v, 1e30f);
             times(l.w, 1e30f);
         }),
         ten},
        {"subnormal numbers", changed([&](layer_data& l) {
             for (auto* values : {&l.k, &l.v, &l.q, &l.w}) { times(*values, 1e-40f); }
         }),
         ten},
        {"one NaN in each array", changed([&](layer_data& l) {
             for (auto* values : {&l.k, &l.v, &l.q, &l.w}) { (*values)[37] = nan; }
         }),
         ten},
        {"one infinity in each array", changed([&](layer_data& l) {
             for (auto* values : {&l.k, &l.v, &l.q, &l.w}) { (*values)[37] = infinity; }
         }),
         ten},
        {"values of a whole head NaN",
         changed([&](layer_data& l) { std::fill_n(l.v.begin(), l.v.size() / 2, nan); }), ten},
    };
    degenerate_case options{"a sliding window of one token", plain(), ten};
    options.request.attention.sliding_window = 1;
    cases.push_back(options);
    options.name = "a tiny soft cap";
    options.request.attention = {.soft_cap = 1e-30f};
    cases.push_back(options);
    options.name = "a huge scale";
    options.request.attention = {.scale = 1e38f};
    cases.push_back(options);
    static const std::vector<float> extreme_sinks{1e38f, -infinity, -1e38f, 1e30f};
    options.name = "extreme sink logits";
    options.request.attention = {.sink_logits = extreme_sinks};
    cases.push_back(options);
    return cases;
}

void check_every_policy(const std::vector<degenerate_case>& cases) {
    for (const degenerate_case& c : cases) {
        const auto in = c.layer.inputs();
        const index_t heads = c.layer.shape.kv_heads;
        const index_t budget = std::min(c.request.budget.total(heads), heads * c.layer.shape.tokens);
        for (const named_policy& policy : named_policies()) {
            CAPTURE(c.name, policy.name);
            const answer expected = policy.needs_window ? c.expected : c.without_window;
            const trace t = policy(in, c.request);
            CHECK(t.answer.code() == expected.code);
            CHECK(t.answer.needed() == expected.needed);
            if (expected.code != errc::ok) {
                CHECK(t.plan == made_before());
                CHECK(policy.workspace_bytes(in, c.request) == 0);
                continue;
            }
            REQUIRE(t.answer.ok());
            CHECK(is_valid(t.plan, in));
            CHECK(keeps_protected(t.plan, in, c.request.protect));
            CHECK(t.plan.total_tokens() == policy.kept_of(budget, in, c.request.protect));
        }
    }
}

} // namespace

TEST_CASE("every policy answers lengths, windows and budgets at their limits as documented",
          "[properties][degenerate]") {
    check_every_policy(sizes());
}

TEST_CASE("every policy answers zeros, ties, NaN, infinities and huge numbers with a valid plan",
          "[properties][degenerate]") {
    check_every_policy(numbers());
}

TEST_CASE("a sink logit of NaN or +infinity is refused by every policy that computes attention",
          "[properties][degenerate]") {
    const layer_data layer = plain();
    for (const float odd : {std::numeric_limits<float>::quiet_NaN(), infinity}) {
        const std::vector<float> sinks{0, -infinity, odd, 0};
        for (const named_policy& policy : named_policies()) {
            const bool computes_attention = policy.needs_window || policy.name == "expected_attention";
            const trace t =
                policy(layer.inputs(), {.budget = per_head(10), .attention = {.sink_logits = sinks}});
            CAPTURE(odd, policy.name);
            CHECK(t.answer.code() == (computes_attention ? errc::invalid_parameter : errc::ok));
            CHECK((t.plan == made_before()) == computes_attention);
        }
    }
}

TEST_CASE("sink logits of -infinity are none at all", "[properties][degenerate]") {
    const layer_data layer = plain();
    const std::vector<float> none(4, -infinity);
    for (const named_policy& policy : named_policies()) {
        const trace without = policy(layer.inputs(), {.budget = per_head(10)});
        const trace with =
            policy(layer.inputs(), {.budget = per_head(10), .attention = {.sink_logits = none}});
        CAPTURE(policy.name);
        CHECK(with.importance == without.importance);
        CHECK(with.plan == without.plan);
    }
}

TEST_CASE("every policy answers any number in a request: kept whole, or refused with the number needed",
          "[properties][degenerate]") {
    constexpr index_t most = std::numeric_limits<index_t>::max();
    const layer_data layer = plain(); // 30 tokens, 2 heads
    const auto in = layer.inputs();
    for (index_t protection::*field : {&protection::sink_tokens, &protection::pinned_tokens,
                                       &protection::window_tokens, &protection::rollback_tokens}) {
        for (const index_t number : {index_t{31}, index_t{1} << 62, most, index_t{-1}, -most - 1}) {
            protection protect{.sink_tokens = 1, .window_tokens = 4};
            protect.*field = number;
            for (const token_budget budget : {per_head(10), per_head(most), per_head(index_t{1} << 62),
                                              over_all_heads(most), per_head(-most)}) {
                for (const named_policy& policy : named_policies()) {
                    CAPTURE(number, budget.tokens, policy.name);
                    const trace t = policy(in, {.budget = budget, .protect = protect});
                    const errc expected = number < 0            ? errc::invalid_parameter
                                          : budget.tokens < 0   ? errc::budget_zero
                                          : budget.tokens == 10 ? errc::budget_below_protection
                                                                : errc::ok;
                    CHECK(t.answer.code() == expected);
                    CHECK(t.answer.needed() == (expected == errc::budget_below_protection ? 60 : 0));
                    CHECK((t.plan == made_before()) == (expected != errc::ok));
                    if (t.answer.ok()) { CHECK(t.plan.total_tokens() == 60); }
                }
            }
        }
    }
}

TEST_CASE("no heads at all are an empty plan, or the status of a window without keys",
          "[properties][degenerate]") {
    const layer_data layer = random_layer({.kv_heads = 0, .group = 2, .tokens = 5, .queries = 2}, 1);
    for (const named_policy& policy : named_policies()) {
        const trace t = policy(layer.inputs(), {.budget = per_head(3)});
        CAPTURE(policy.name);
        if (policy.needs_window) {
            CHECK(t.answer.code() == errc::heads_not_divisible);
            CHECK(t.plan == made_before());
        } else {
            CHECK(t.answer.ok());
            CHECK(t.plan.rows() == 0);
            CHECK(t.plan.total_tokens() == 0);
        }
    }
}

TEST_CASE("equal scores are kept from the lower index on, in heads in their order",
          "[properties][degenerate]") {
    layer_data layer = plain();
    std::fill(layer.k.begin(), layer.k.end(), 1.0f);
    const eviction_request request{.budget = over_all_heads(21), .protect = {.window_tokens = 4}};
    const auto sets = kept_sets(run(snapkv({.pool = pooling::none}), layer.inputs(), request).plan);
    CHECK(sets[0] == oracle::token_set{0, 1, 2, 3, 4, 5, 6, 26, 27, 28, 29});
    CHECK(sets[1] == oracle::token_set{0, 1, 2, 3, 4, 5, 26, 27, 28, 29});
    // Between heads too: nobody beats head 0.
    const auto shared_cut = ada_snapkv({.pool = pooling::none}, adaptive{.safeguard_ratio = 0.0});
    CHECK(run(shared_cut, layer.inputs(), request).budgets == std::vector<index_t>{13, 0});
}
