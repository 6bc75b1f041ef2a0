// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/model/layer_wise.hpp>

#include <kvtrim/policy/criticalkv.hpp>
#include <kvtrim/policy/layers.hpp>

#include "support/checks.hpp"

using namespace kvtrim;
using namespace support;

namespace {

struct model {
    std::vector<layer_data> layers;
    std::vector<support::inputs> inputs;

    model(index_t count, const layer_shape& shape, std::uint64_t seed) {
        for (index_t l = 0; l < count; ++l) {
            layers.push_back(random_layer(shape, seed + static_cast<std::uint64_t>(l)));
        }
        for (const layer_data& l : layers) { inputs.push_back(l.inputs()); }
    }
    [[nodiscard]] std::span<const support::inputs> all() const { return inputs; }
};

template <class Policy>
std::vector<keep_plan> plans_of(const Policy& policy, const model& m, const eviction_request& request) {
    std::vector<keep_plan> plans(m.inputs.size());
    growing_workspace memory;
    const status s = policy.plan(m.all(), request, plans, memory);
    INFO(s.what());
    REQUIRE(s.ok());
    return plans;
}

index_t total_of(const std::vector<keep_plan>& plans) {
    index_t total = 0;
    for (const keep_plan& p : plans) { total += p.total_tokens(); }
    return total;
}

layer_shape small_shape(support::random& r) {
    return {.kv_heads = r.between(1, 3),
            .group = r.between(1, 2),
            .tokens = r.between(20, 90),
            .head_dim = 8,
            .value_dim = 8,
            .hidden = 12,
            .queries = r.between(1, 8)};
}

} // namespace

TEST_CASE("layer_wise: one shot and cascade keep the same tokens, exactly as many as asked for", "[model]") {
    support::random r(921);
    for (int i = 0; i < 40; ++i) {
        const layer_shape shape = small_shape(r);
        const index_t count = r.between(1, 5);
        const model m(count, shape, 9210 + static_cast<std::uint64_t>(i) * 10);
        const protection protect{.sink_tokens = r.between(0, 3), .window_tokens = shape.queries};
        const index_t fixed = protect.prefix() + protect.suffix();
        const index_t kept = r.between(std::max<index_t>(1, fixed), shape.tokens + 3);
        const eviction_request request{.budget = per_head(kept), .protect = protect};
        const auto check = [&](const auto& policy) {
            const auto plans = plans_of(policy, m, request);
            CHECK(total_of(plans) == count * shape.kv_heads * std::min(kept, shape.tokens));
            growing_workspace memory;
            auto cascade = policy.begin(m.inputs[0], request, count);
            for (index_t l = 0; l < count; ++l) {
                REQUIRE(
                    policy.push(m.inputs[static_cast<std::size_t>(l)], request, count, cascade, memory).ok());
            }
            for (index_t l = 0; l < count; ++l) {
                const keep_plan& plan = plans[static_cast<std::size_t>(l)];
                CHECK(keeps_protected(plan, m.inputs[static_cast<std::size_t>(l)], protect));
                for (index_t h = 0; h < shape.kv_heads; ++h) {
                    const auto row = plan.row(h);
                    std::vector<index_t> expected;
                    for (index_t t = 0; t < protect.prefix(); ++t) { expected.push_back(t); }
                    for (const auto c : cascade.kept(l, h)) { expected.push_back(protect.prefix() + c); }
                    for (index_t t = shape.tokens - protect.suffix(); t < shape.tokens; ++t) {
                        expected.push_back(t);
                    }
                    CAPTURE(i, count, kept, l, h);
                    CHECK(std::vector<index_t>(row.begin(), row.end()) == expected);
                }
            }
        };
        for (const double safeguard : {0.0, 0.5, 0.9}) {
            check(layer_ada_snapkv({}, safeguard));
            check(layer_defensivekv({.safeguard_ratio = safeguard}));
        }
    }
}

TEST_CASE("layer_wise: with one layer it is the policy over one layer", "[model]") {
    support::random r(922);
    for (int i = 0; i < 30; ++i) {
        const layer_shape shape = small_shape(r);
        const model m(1, shape, 9220 + static_cast<std::uint64_t>(i));
        const eviction_request request{.budget = per_head(r.between(shape.queries, shape.tokens)),
                                       .protect = {.window_tokens = shape.queries}};
        const auto check = [&](const auto& policy) {
            const trace alone = run(policy, m.inputs[0], request);
            REQUIRE(alone.answer.ok());
            CHECK(plans_of(kvtrim::layer_wise{policy}, m, request)[0] == alone.plan);
        };
        check(defensivekv());
        check(ada_snapkv());
        check(ada_criticalkv());
        check(snapkv());
    }
}

TEST_CASE("layer_wise: a safeguard of everything is the uniform budget, layer by layer", "[model]") {
    const layer_shape shape{.tokens = 64, .queries = 8};
    const model m(3, shape, 923);
    const eviction_request request{.budget = per_head(20), .protect = {.window_tokens = 8}};
    const auto plans = plans_of(layer_ada_snapkv({}, 1.0), m, request);
    for (std::size_t l = 0; l < plans.size(); ++l) {
        CHECK(plans[l] == run(snapkv(), m.inputs[l], request).plan);
    }
}

TEST_CASE("layer_wise: a layer with higher scores gets more, every row its floor", "[model][paper]") {
    const layer_shape shape{.tokens = 200, .queries = 8};
    const model m(4, shape, 924);
    const eviction_request request{.budget = per_head(40), .protect = {.window_tokens = 8}};
    const auto plans = plans_of(layer_ada_snapkv({}, 0.5), m, request);
    bool differs = false;
    for (const keep_plan& p : plans) {
        for (index_t h = 0; h < p.rows(); ++h) {
            CHECK(p.kept_tokens(h) >= 8 + 16);
            differs = differs || p.kept_tokens(h) != 40;
        }
    }
    CHECK(differs);
}

TEST_CASE("layer_wise: budgets per layer and over the model", "[model]") {
    const layer_shape shape{.kv_heads = 2, .tokens = 64, .queries = 4};
    const model m(3, shape, 925);
    const protection protect{.window_tokens = 4};
    const auto policy = layer_ada_snapkv();
    CHECK(total_of(plans_of(policy, m, {.budget = over_all_heads(41), .protect = protect})) == 123);
    CHECK(total_of(plans_of(policy, m, {.budget = over_all_layers(100), .protect = protect})) == 100);
    CHECK(total_of(plans_of(policy, m, {.budget = over_all_layers(1000000), .protect = protect})) == 3 * 128);
}

TEST_CASE("layer_wise: refusals leave plans and cascade as they were", "[model][errors]") {
    const layer_shape shape{.kv_heads = 2, .tokens = 64, .queries = 4};
    const model m(3, shape, 926);
    const auto policy = layer_defensivekv();
    growing_workspace memory;
    const auto answer = [&](const eviction_request& request) {
        std::vector<keep_plan> plans(3, made_before());
        CHECK(policy.workspace_bytes(m.all(), request) == 0);
        const status s = policy.plan(m.all(), request, plans, memory);
        CHECK(plans == std::vector<keep_plan>(3, made_before()));
        return s;
    };
    const protection window{.window_tokens = 4};
    CHECK(answer({.budget = per_head(0)}).code() == errc::budget_zero);
    CHECK(answer({.budget = per_head(3), .protect = window}).code() == errc::budget_below_protection);
    CHECK(answer({.budget = over_all_layers(23), .protect = window}).code() == errc::budget_below_protection);
    CHECK(answer({.budget = over_all_layers(23), .protect = window}).needed() == 24);

    const eviction_request request{.budget = per_head(20), .protect = window};
    const index_t bytes = policy.workspace_bytes(m.all(), request);
    std::vector<std::byte> exact(static_cast<std::size_t>(bytes));
    std::vector<keep_plan> plans(3, made_before());
    workspace enough(exact);
    CHECK(policy.plan(m.all(), request, plans, enough).ok());
    plans.assign(3, made_before());
    const std::span<std::byte> half = std::span(exact).first(exact.size() / 2);
    workspace short_by_much(half);
    const status s = policy.plan(m.all(), request, plans, short_by_much);
    CHECK(s.code() == errc::workspace_too_small);
    CHECK(s.needed() == bytes);
    CHECK(plans == std::vector<keep_plan>(3, made_before()));

    auto cascade = policy.begin(m.inputs[0], request, 3);
    workspace none(std::span<std::byte>{});
    CHECK(policy.push(m.inputs[0], request, 3, cascade, none).code() == errc::workspace_too_small);
    CHECK(cascade.layers() == 0);
    std::vector<keep_plan> two(2, made_before());
    CHECK(policy.plan(m.all(), request, two, memory).code() == errc::invalid_parameter);
    CHECK(two == std::vector<keep_plan>(2, made_before()));

    std::vector<support::inputs> unequal{m.inputs[0], m.inputs[1]};
    const layer_data other = random_layer({.kv_heads = 1, .tokens = 64, .queries = 4}, 927);
    unequal.push_back(other.inputs());
    const std::span<const support::inputs> layers = unequal;
    CHECK(policy.plan(layers, request, plans, memory).code() == errc::rows_differ);
    for (const index_t count : {index_t{0}, index_t{-1}, std::numeric_limits<index_t>::max()}) {
        auto none_of_it = policy.begin(m.inputs[0], request, count);
        CHECK_FALSE(none_of_it.validate().ok());
        CHECK_FALSE(policy.push(m.inputs[0], request, count, none_of_it, memory).ok());
        CHECK_FALSE(policy.push(m.inputs[0], request, count, cascade, memory).ok());
        CHECK(cascade.layers() == 0);
    }
}

TEST_CASE("layer_wise: no layers, no plans", "[model][odd]") {
    growing_workspace memory;
    CHECK(layer_ada_snapkv()
              .plan(std::span<const support::inputs>{}, {.budget = per_head(5)}, {}, memory)
              .ok());
}
