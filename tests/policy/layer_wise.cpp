// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/layer_wise.hpp>

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

TEST_CASE("layer_wise: one shot and cascade keep the same tokens, exactly as many as asked for", "[policy]") {
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

TEST_CASE(
    "layer_wise: score() gives each layer the scores that plan() ranks by, layers without candidates too",
    "[policy]") {
    const layer_shape shape{.kv_heads = 2, .tokens = 60, .queries = 4};
    const model m(2, shape, 932);
    const model short_one(1, {.kv_heads = 2, .tokens = 6, .queries = 4}, 933);
    const std::vector<inputs> layers{m.inputs[0], short_one.inputs[0], m.inputs[1]};
    const eviction_request request{.budget = per_head(20), .protect = {.sink_tokens = 2, .window_tokens = 4}};
    const auto check = [&](const auto& policy) {
        std::vector<std::vector<float>> importance, attention, mass; // by plan(), of all rows
        std::vector<keep_plan> plans(3);
        growing_workspace memory;
        REQUIRE(policy
                    .plan(std::span(layers), request, plans, memory, serial_executor{},
                          [&](const plan_progress& at) {
                              if (at.stage != plan_stage::scored) { return; }
                              for (index_t r = 0; r < at.scores.rows(); ++r) {
                                  const auto row = at.scores.importance_rows().row(r);
                                  importance.emplace_back(row.begin(), row.end());
                                  const float covered = at.scores.protected_mass[static_cast<std::size_t>(r)];
                                  mass.push_back({covered});
                                  if (at.scores.attention.empty()) { continue; }
                                  const auto attended = at.scores.attention_rows().row(r);
                                  attention.emplace_back(attended.begin(), attended.end());
                              }
                          })
                    .ok());
        std::vector<score_table> tables(3);
        // No budget is needed, and exactly score_bytes() of memory.
        const eviction_request scored{.budget = {}, .protect = request.protect};
        std::vector<std::byte> exact(static_cast<std::size_t>(policy.score_bytes(std::span(layers), scored)));
        workspace scratch(exact);
        REQUIRE(policy.score(std::span<const inputs>(layers), scored, tables, scratch).ok());
        CHECK(scratch.holds(std::ssize(exact)));
        for (std::size_t l = 0; l < 3; ++l) {
            score_table alone;
            REQUIRE(policy.policy.score(layers[l], scored, alone, memory).ok());
            CHECK(tables[l] == alone);
            for (std::size_t h = 0; h < 2; ++h) {
                CHECK(std::ranges::equal(tables[l].row(static_cast<index_t>(h)), importance[2 * l + h]));
                CHECK(tables[l].protected_mass()[h] == mass[2 * l + h][0]);
                if (attention.empty()) { continue; }
                const auto begin = static_cast<std::size_t>(tables[l].offsets()[h]);
                const std::vector<float>& expected = attention[2 * l + h];
                CHECK(std::ranges::equal(tables[l].attention().subspan(begin, expected.size()), expected));
            }
        }
        CHECK(tables[1].importance().empty());
    };
    check(layer_ada_snapkv());
    check(layer_defensivekv());
}

TEST_CASE("layer_wise: a layer with fewer candidates than the even share keeps what it has, others the rest",
          "[policy]") {
    // Refused before: the reranker of DefensiveKV was told that more candidates stay in the short layer than it has.
    const model m(2, {.kv_heads = 2, .tokens = 60, .queries = 4}, 937);
    const model short_one(1, {.kv_heads = 2, .tokens = 12, .queries = 4}, 938);
    const std::vector<inputs> layers{m.inputs[0], short_one.inputs[0], m.inputs[1]};
    const eviction_request request{.budget = per_head(30), .protect = {.window_tokens = 4}};
    std::vector<keep_plan> plans(3);
    growing_workspace memory;
    REQUIRE(layer_defensivekv().plan(std::span<const inputs>(layers), request, plans, memory).ok());
    CHECK(total_of(plans) == 3 * 2 * 30);
    CHECK(plans[1].total_tokens() <= 2 * 12);
    for (std::size_t l = 0; l < 3; ++l) { CHECK(keeps_protected(plans[l], layers[l], request.protect)); }
}

TEST_CASE("layer_wise: what score() refuses leaves every table as it was", "[policy][errors]") {
    const layer_shape shape{.kv_heads = 2, .tokens = 64, .queries = 4};
    const model m(3, shape, 934);
    const auto policy = layer_defensivekv();
    const eviction_request request{.budget = {}, .protect = {.window_tokens = 4}};
    growing_workspace memory;
    score_table filled;
    REQUIRE(policy.policy.score(m.inputs[0], {.budget = {}, .protect = {.window_tokens = 9}}, filled, memory)
                .ok());
    const auto answer = [&](std::span<const inputs> layers, const eviction_request& r, std::size_t count) {
        std::vector<score_table> tables(count, filled);
        const status s = policy.score(layers, r, tables, memory);
        CHECK(tables == std::vector<score_table>(count, filled));
        return s;
    };
    for (const std::size_t count : {0u, 2u, 4u}) {
        CHECK(answer(m.all(), request, count).code() == errc::invalid_parameter);
        CHECK(answer(m.all(), request, count).needed() == 3);
    }
    CHECK(answer(m.all(), {.budget = {}, .protect = {.sink_tokens = -1}}, 3).code() ==
          errc::invalid_parameter);
    const model other(1, {.kv_heads = 1, .tokens = 64, .queries = 4}, 935);
    inputs no_memory = m.inputs[2];
    no_memory.keys = view(nullptr, {2, 64, 16});
    for (const inputs& wrong : {other.inputs[0], no_memory}) {
        const std::vector<inputs> layers{m.inputs[0], m.inputs[1], wrong};
        CHECK_FALSE(answer(layers, request, 3).ok());
        CHECK(policy.score_bytes(std::span<const inputs>(layers), request) == 0);
    }
    const index_t bytes = policy.score_bytes(m.all(), request);
    std::vector<std::byte> half(static_cast<std::size_t>(bytes / 2));
    workspace small(half);
    std::vector<score_table> tables(3, filled);
    const status s = policy.score(m.all(), request, tables, small);
    CHECK(s.code() == errc::workspace_too_small);
    CHECK(s.needed() == bytes);
    CHECK(tables == std::vector<score_table>(3, filled));
}

TEST_CASE("layer_wise: push() runs in exactly push_bytes() of memory and names them where there is less",
          "[policy]") {
    const layer_shape shape{.kv_heads = 2, .tokens = 64, .queries = 4};
    const model m(2, shape, 936);
    const auto policy = layer_defensivekv();
    const protection window{.window_tokens = 4};
    growing_workspace memory;
    for (const index_t kept : {20, 64, 100}) { // at 64 everything is kept
        const eviction_request request{.budget = per_head(kept), .protect = window};
        layer_cascade exactly = policy.begin(m.inputs[0], request, 2);
        layer_cascade growing = exactly;
        const index_t bytes = policy.push_bytes(m.inputs[0], request, 2);
        std::vector<std::byte> exact(static_cast<std::size_t>(bytes));
        workspace scratch(exact);
        workspace small(std::span<std::byte>(exact.data(), exact.size() / 2));
        for (index_t l = 0; l < 2; ++l) {
            const inputs& in = m.inputs[static_cast<std::size_t>(l)];
            const status s = policy.push(in, request, 2, exactly, small);
            CHECK(s.code() == errc::workspace_too_small);
            CHECK(s.needed() == bytes);
            CHECK(exactly.layers() == l);
            REQUIRE(policy.push(in, request, 2, exactly, scratch).ok());
            CHECK(scratch.holds(bytes));
            REQUIRE(policy.push(in, request, 2, growing, memory).ok());
        }
        for (index_t l = 0; l < 2; ++l) {
            for (index_t h = 0; h < 2; ++h) {
                CHECK(std::ranges::equal(exactly.kept(l, h), growing.kept(l, h)));
            }
        }
    }
    CHECK(policy.push_bytes(m.inputs[0], {.budget = per_head(0)}, 2) == 0);
    CHECK(policy.push_bytes(m.inputs[0], {.budget = per_head(20), .protect = window}, 0) == 0);
}

TEST_CASE("layer_wise: with one layer it is the policy over one layer", "[policy]") {
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

TEST_CASE("layer_wise: a safeguard of everything is the uniform budget, layer by layer", "[policy]") {
    const layer_shape shape{.tokens = 64, .queries = 8};
    const model m(3, shape, 923);
    const eviction_request request{.budget = per_head(20), .protect = {.window_tokens = 8}};
    const auto plans = plans_of(layer_ada_snapkv({}, 1.0), m, request);
    for (std::size_t l = 0; l < plans.size(); ++l) {
        CHECK(plans[l] == run(snapkv(), m.inputs[l], request).plan);
    }
}

TEST_CASE("layer_wise: a layer with higher scores gets more, every row its floor", "[policy][paper]") {
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

TEST_CASE("layer_wise: budgets per layer and over the model", "[policy]") {
    const layer_shape shape{.kv_heads = 2, .tokens = 64, .queries = 4};
    const model m(3, shape, 925);
    const protection protect{.window_tokens = 4};
    const auto policy = layer_ada_snapkv();
    CHECK(total_of(plans_of(policy, m, {.budget = over_all_heads(41), .protect = protect})) == 123);
    CHECK(total_of(plans_of(policy, m, {.budget = over_all_layers(100), .protect = protect})) == 100);
    CHECK(total_of(plans_of(policy, m, {.budget = over_all_layers(1000000), .protect = protect})) == 3 * 128);
}

TEST_CASE("layer_wise: refusals leave plans and cascade as they were", "[policy][errors]") {
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
    for (const std::size_t count : {0u, 2u, 4u}) {
        std::vector<keep_plan> others(count, made_before());
        const status wrong = policy.plan(m.all(), request, others, memory);
        CHECK(wrong.code() == errc::invalid_parameter);
        CHECK(wrong.needed() == 3);
        CHECK(others == std::vector<keep_plan>(count, made_before()));
    }
}

TEST_CASE("layer_wise: views that are not valid and layers of different heads are refused, plans and cascade "
          "as they were",
          "[policy][errors]") {
    const layer_shape shape{.kv_heads = 2, .tokens = 64, .queries = 4};
    const model good(3, shape, 927);
    const model others(1, {.kv_heads = 1, .tokens = 64, .queries = 4}, 928);
    const auto policy = layer_ada_snapkv();
    const eviction_request request{.budget = per_head(20), .protect = {.window_tokens = 4}};
    growing_workspace memory;
    inputs no_memory = good.inputs[1];
    no_memory.keys = view(nullptr, {2, 64, 16});
    inputs shorter = good.inputs[1];
    shorter.values = view(shorter.values.data_handle(), {2, 63, shorter.values.extent(2)});
    inputs narrow = good.inputs[1];
    narrow.queries = view(narrow.queries.data_handle(), {narrow.queries.extent(0), 4, 1});
    for (const inputs& wrong : {no_memory, shorter, narrow, others.inputs[0]}) {
        const bool other_heads = wrong.kv_heads() == 1;
        const errc code = other_heads ? errc::rows_differ : errc::invalid_parameter;
        const std::vector<inputs> layers{good.inputs[0], wrong, good.inputs[2]};
        std::vector<keep_plan> plans(3, made_before());
        CHECK(policy.plan(std::span<const inputs>(layers), request, plans, memory).code() == code);
        CHECK(policy.workspace_bytes(std::span<const inputs>(layers), request) == 0);
        CHECK(plans == std::vector<keep_plan>(3, made_before()));
        if (other_heads) { continue; }
        CHECK(policy.begin(wrong, request, 3).validate().code() == code);
        layer_cascade cascade = policy.begin(good.inputs[0], request, 3);
        REQUIRE(policy.push(good.inputs[0], request, 3, cascade, memory).ok());
        CHECK(policy.push(wrong, request, 3, cascade, memory).code() == code);
        CHECK(cascade.layers() == 1);
    }
}

TEST_CASE("layer_wise: a cascade of a request that a plan would refuse answers the same, and takes no layer",
          "[policy][errors]") {
    constexpr index_t most = std::numeric_limits<index_t>::max();
    const layer_shape shape{.kv_heads = 2, .tokens = 64, .queries = 4};
    const model m(3, shape, 929);
    const auto policy = layer_ada_snapkv();
    const protection window{.window_tokens = 4};
    growing_workspace memory;
    const auto answer = [&](const eviction_request& request, index_t layers) {
        layer_cascade cascade = policy.begin(m.inputs[0], request, layers);
        CHECK(policy.push(m.inputs[0], request, layers, cascade, memory) == cascade.validate());
        CHECK(cascade.layers() == 0);
        layer_cascade fine = policy.begin(m.inputs[0], {.budget = per_head(20), .protect = window}, 3);
        CHECK(policy.push(m.inputs[0], request, layers, fine, memory) == cascade.validate());
        CHECK(fine.layers() == 0);
        return cascade.validate();
    };
    const eviction_request good{.budget = per_head(20), .protect = window};
    for (const index_t layers : {index_t{0}, index_t{-1}, -most}) {
        CHECK(answer(good, layers).code() == errc::invalid_parameter);
    }
    CHECK(answer(good, index_t{1} << 30).code() == errc::index_overflow); // rows
    CHECK(answer(good, most).code() == errc::index_overflow);
    CHECK(answer({.budget = per_head(0)}, 3).code() == errc::budget_zero);
    CHECK(answer({.budget = over_all_layers(-most)}, 3).code() == errc::budget_zero);
    CHECK(answer({.budget = per_head(20), .protect = {.sink_tokens = -1}}, 3).code() ==
          errc::invalid_parameter);
    // Three layers protect 24 tokens; a cascade held them all, and said that it kept 23.
    CHECK(answer({.budget = over_all_layers(23), .protect = window}, 3).code() ==
          errc::budget_below_protection);
    CHECK(answer({.budget = over_all_layers(23), .protect = window}, 3).needed() == 24);
}

namespace {

// Deals out what it is told, whatever it is asked for.
struct odd_allocator {
    static constexpr bool is_uniform = false;
    index_t budget = 0;
    bool writes = true;

    status allocate(const score_rows& rows, index_t, std::span<index_t> budgets, workspace&) const {
        if (writes) { std::fill(budgets.begin(), budgets.end(), index_t{1}); }
        if (writes) { budgets[static_cast<std::size_t>(rows.rows()) - 1] = budget; }
        return {};
    }
};

// Refuses the last layer's selection.
struct odd_reranker {
    static constexpr bool allocate_by_attention = false;
    static constexpr bool needs_uniform_budgets = false;
    const float* last;

    status before_selection(const token_scores& scores, std::span<const index_t>, workspace&) const {
        if (scores.importance.data() + scores.importance.size() < last) { return {}; }
        return {errc::rows_differ, "no"};
    }
};

} // namespace

TEST_CASE("layer_wise: a stage that answers nonsense for the last layer leaves the plans of all layers as "
          "they were",
          "[policy][errors]") {
    const layer_shape shape{.kv_heads = 2, .tokens = 64, .queries = 4};
    const model m(3, shape, 930);
    const eviction_request request{.budget = per_head(20), .protect = {.window_tokens = 4}};
    growing_workspace memory;
    const auto untouched = [&](const auto& policy, errc code) {
        std::vector<keep_plan> plans(3, made_before());
        CHECK(policy.plan(m.all(), request, plans, memory).code() == code);
        CHECK(plans == std::vector<keep_plan>(3, made_before()));
    };
    const window_attention scorer{mean_attention{}};
    for (const odd_allocator& odd : {odd_allocator{-1}, odd_allocator{61}, odd_allocator{.writes = false},
                                     odd_allocator{std::numeric_limits<index_t>::max()}}) {
        untouched(layer_wise{eviction_policy{scorer, odd, by_importance{}}}, errc::invalid_parameter);
    }
    const float* last = nullptr;
    {
        std::vector<keep_plan> plans(3);
        const layer_wise policy{eviction_policy{scorer, odd_allocator{1}, by_importance{}}};
        REQUIRE(policy
                    .plan(m.all(), request, plans, memory, serial_executor{},
                          [&](const plan_progress& at) {
                              last = at.scores.importance.data() + at.scores.importance.size();
                          })
                    .ok());
    }
    untouched(layer_wise{eviction_policy{scorer, odd_allocator{1}, odd_reranker{last}}}, errc::rows_differ);
}

TEST_CASE("layer_wise: a plan whose offsets a ragged view reads is no output of any layer",
          "[policy][errors]") {
    const layer_data data = random_layer({.kv_heads = 2, .tokens = 20, .head_dim = 4, .queries = 2}, 931);
    std::vector<keep_plan> plans{plan_of({{0, 1, 2, 3, 4}, {0, 1, 2}}),
                                 plan_of({{0, 1, 2, 3, 4}, {0, 1, 2}})};
    const auto in = [&](const keep_plan& offsets) {
        return kvtrim::layer(ragged<const float>(data.k.data(), offsets.offsets(), 4))
            .with_queries(data.queries());
    };
    const keep_plan apart = plans[0];
    const std::vector<decltype(in(apart))> layers{in(apart), in(plans[0])};
    const std::vector<keep_plan> before = plans;
    growing_workspace memory;
    CHECK(layer_ada_snapkv().plan(std::span(layers), {.budget = per_head(2)}, plans, memory).code() ==
          errc::invalid_parameter);
    CHECK(plans == before);
}

TEST_CASE("layer_wise: no layers, no plans", "[policy][odd]") {
    growing_workspace memory;
    CHECK(layer_ada_snapkv()
              .plan(std::span<const support::inputs>{}, {.budget = per_head(5)}, {}, memory)
              .ok());
}
