// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/allocate/above_threshold.hpp>

#include <kvtrim/allocate/adaptive.hpp>
#include <kvtrim/policy/layer_wise.hpp>
#include <kvtrim/rerank/by_importance.hpp>
#include <kvtrim/score/given_scores.hpp>

#include "support/allocate.hpp"
#include "support/special_floats.hpp"

using namespace kvtrim;
using namespace support;

namespace {

// A layer of one-element rows whose tokens have these scores.
struct scored_layer {
    std::vector<float> scores;
    index_t heads;

    [[nodiscard]] index_t tokens() const { return std::ssize(scores) / heads; }
    [[nodiscard]] auto inputs() const { return kvtrim::layer(view(scores.data(), {heads, tokens(), 1})); }
    [[nodiscard]] auto policy(float threshold) const {
        const given_scores given{strided<const float, 2>(scores.data(), {heads, tokens()})};
        return eviction_policy{given, above_threshold{threshold}, by_importance{}};
    }
};

std::vector<std::int32_t> row(const keep_plan& plan, index_t r) {
    return {plan.row(r).begin(), plan.row(r).end()};
}

} // namespace

TEST_CASE("above_threshold: counts of scores above it, or the best of all rows where they are too many",
          "[allocate][oracle]") {
    support::random r(77);
    bool was_bound = false, was_free = false;
    for (int i = 0; i < 400; ++i) {
        const oracle::matrix rows = random_scores(r, score_kind::odd);
        const auto total = static_cast<std::size_t>(r.between(0, static_cast<index_t>(total_length(rows))));
        const float threshold = r.one_of({-infinity, -1.0f, 0.0f, 0.3f, 0.9f, infinity});
        oracle::counts above;
        for (const oracle::row& scores : rows) {
            above.push_back(static_cast<std::size_t>(std::count_if(
                scores.begin(), scores.end(), [&](double x) { return x > static_cast<double>(threshold); })));
        }
        const bool is_bound = sum_of(above) > total;
        was_bound = was_bound || is_bound;
        was_free = was_free || (!is_bound && sum_of(above) < total);
        CAPTURE(i, total, threshold);
        CHECK(allocate(above_threshold{threshold}, rows, total) ==
              (is_bound ? allocate(adaptive{.safeguard_ratio = 0}, rows, total) : above));
    }
    CHECK(was_bound);
    CHECK(was_free);
}

TEST_CASE("above_threshold: a cache within the budget is cut, and only keeping_all keeps it whole",
          "[allocate]") {
    const scored_layer l{{.9f, .1f, .8f, not_a_number, .1f, .1f, .1f, .1f}, 2};
    const eviction_request all{.budget = per_head(4), .protect = {.window_tokens = 1}};
    keep_plan plan;
    growing_workspace memory;
    REQUIRE(l.policy(.5f).plan(l.inputs(), all, plan, memory).ok());
    CHECK(row(plan, 0) == std::vector<std::int32_t>{0, 2, 3});
    CHECK(row(plan, 1) == std::vector<std::int32_t>{3});
    eviction_request bound = all;
    bound.budget = over_all_heads(3);
    REQUIRE(l.policy(.5f).plan(l.inputs(), bound, plan, memory).ok());
    CHECK(row(plan, 0) == std::vector<std::int32_t>{0, 3});
    CHECK(row(plan, 1) == std::vector<std::int32_t>{3});
    bound.budget = per_head(1 << 20);
    REQUIRE(l.policy(-1).plan(l.inputs(), bound, plan, memory).ok());
    CHECK(row(plan, 0) == std::vector<std::int32_t>{0, 1, 2, 3});
    REQUIRE(l.policy(2).plan(l.inputs(), keeping_all(all), plan, memory).ok());
    CHECK(plan.total_tokens() == 8);
}

TEST_CASE("above_threshold: rows of all layers share the bound", "[allocate]") {
    const scored_layer a{{.9f, .1f, .8f, .7f}, 1}, b{{.1f, .2f, .6f, .1f}, 1};
    const std::vector layers{a.inputs(), a.inputs()};
    const layer_wise all_layers{a.policy(.5f)};
    std::vector<keep_plan> plans(2);
    growing_workspace memory;
    REQUIRE(all_layers.plan(std::span(layers), {.budget = per_head(4)}, plans, memory).ok());
    CHECK(row(plans[0], 0) == std::vector<std::int32_t>{0, 2, 3});
    CHECK(plans[1] == plans[0]);
    REQUIRE(all_layers.plan(std::span(layers), {.budget = over_all_layers(3)}, plans, memory).ok());
    CHECK(row(plans[0], 0) == std::vector<std::int32_t>{0, 2});
    CHECK(row(plans[1], 0) == std::vector<std::int32_t>{0});
    REQUIRE(b.policy(.5f).plan(b.inputs(), {.budget = per_head(4)}, plans[0], memory).ok());
    CHECK(row(plans[0], 0) == std::vector<std::int32_t>{2});
}

TEST_CASE("above_threshold: a threshold that is no number, and what all allocators refuse",
          "[allocate][errors]") {
    CHECK(above_threshold{not_a_number}.validate().code() == errc::invalid_parameter);
    CHECK(above_threshold{infinity}.validate().ok());
    require_allocation_refusals(above_threshold{});
}
