// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/eviction_policy.hpp>

#include <kvtrim/policy/defensivekv.hpp>
#include <kvtrim/policy/snapkv.hpp>
#include <kvtrim/rerank/chunked.hpp>
#include <kvtrim/rerank/shared.hpp>
#include <kvtrim/rerank/two_stage.hpp>
#include <kvtrim/score/recency.hpp>

#include "support/checks.hpp"

using namespace kvtrim;
using namespace support;

namespace {

constexpr auto newest_first = eviction_policy{recency{}, uniform{}, by_importance{}};

// Keys of any size that nobody reads.
struct unread_keys {
    index_t heads = 1, tokens = 0, dim = 1;

    [[nodiscard]] index_t extent(std::size_t r) const { return r == 0 ? heads : r == 1 ? tokens : dim; }
    void load_rows(index_t, index_t, index_t, float*) const { FAIL("keys were read"); }
};

// Stages that answer with an error.
struct failing_scorer : recency {
    template <class Inputs, class Executor>
    status score(const Inputs&, const eviction_request&, const token_scores&, workspace&, Executor&) const {
        return {errc::invalid_parameter, "the scorer failed", 7};
    }
};
struct failing_allocator : uniform {
    status allocate(const score_rows&, index_t, std::span<index_t>, workspace&) const {
        return {errc::invalid_parameter, "the allocator failed", 8};
    }
};
// Gives the last row more than it has.
struct greedy_allocator : uniform {
    index_t extra = 1;
    status allocate(const score_rows& scores, index_t, std::span<index_t> budgets, workspace&) const {
        std::fill(budgets.begin(), budgets.end(), 0);
        budgets.back() = extra < 0 ? extra : scores.length(scores.rows() - 1) + extra;
        return {};
    }
};
// Leaves the budgets as they are.
struct idle_allocator : uniform {
    status allocate(const score_rows&, index_t, std::span<index_t>, workspace&) const { return {}; }
};
// Says that it needs so many bytes.
struct hungry_allocator : uniform {
    index_t bytes = 0;
    [[nodiscard]] index_t workspace_bytes(index_t, index_t) const { return bytes; }
};
// Keeps all memory for itself.
struct hoarding_allocator : uniform {
    status allocate(const score_rows& scores, index_t total, std::span<index_t> budgets,
                    workspace& scratch) const {
        static_cast<void>(scratch.take<std::byte>(1 << 20));
        return uniform::allocate(scores, total, budgets, scratch);
    }
};
struct unreached_reranker : by_importance {
    status before_selection(const token_scores&, std::span<index_t>, workspace&) const {
        FAIL("budgets that no row can fill have reached a reranker");
        return {};
    }
};
struct greedy_reranker : by_importance {
    index_t extra = 1;
    status before_selection(const token_scores& scores, std::span<index_t> budgets, workspace&) const {
        budgets.back() = extra < 0 ? extra : scores.length(scores.rows() - 1) + extra;
        return {};
    }
};
struct constant_scorer {
    static constexpr bool writes_attention = true;
    recency unused = {};
    float value = 0;

    template <class Inputs, class Executor>
    status score(const Inputs&, const eviction_request&, const token_scores& out, workspace&,
                 Executor&) const {
        std::fill(out.importance.begin(), out.importance.end(), value);
        std::fill(out.attention.begin(), out.attention.end(), value);
        return {};
    }
};
struct failing_reranker : by_importance {
    bool early = false;
    status before_allocation(const token_scores&, index_t, workspace&) const {
        return early ? status{errc::invalid_parameter, "the reranker failed early", 9} : status{};
    }
    status before_selection(const token_scores&, std::span<index_t>, workspace&) const {
        return {errc::invalid_parameter, "the reranker failed late", 10};
    }
};

} // namespace

TEST_CASE("eviction_policy: protected tokens and the best of each head stay, in ascending order",
          "[policy]") {
    const layer_data layer = small_layer();
    const eviction_request request{
        .budget = per_head(12),
        .protect = {.sink_tokens = 2, .pinned_tokens = 3, .window_tokens = 4, .rollback_tokens = 1}};
    const trace t = run(newest_first, layer.inputs(), request);
    REQUIRE(t.answer.ok());
    const oracle::token_set expected{0, 1, 2, 31, 32, 33, 34, 35, 36, 37, 38, 39};
    CHECK(kept_sets(t.plan) == std::vector<oracle::token_set>(2, expected));
}

TEST_CASE("eviction_policy: a budget per head and its sum over all heads are the same request", "[policy]") {
    const layer_data layer = small_layer();
    const eviction_request each{.budget = per_head(15), .protect = {.window_tokens = 4}};
    const eviction_request all{.budget = over_all_heads(30), .protect = {.window_tokens = 4}};
    CHECK(run(ada_snapkv(), layer.inputs(), each).plan == run(ada_snapkv(), layer.inputs(), all).plan);
    const eviction_request odd{.budget = over_all_heads(31), .protect = {.window_tokens = 4}};
    CHECK(run(newest_first, layer.inputs(), odd).plan.total_tokens() == 31);
    CHECK(run(newest_first, layer.inputs(), odd).plan.kept_tokens(0) == 16);
}

TEST_CASE("eviction_policy: the observer is called at each stage with what is known by then", "[policy]") {
    const layer_data layer = small_layer();
    const eviction_request request{.budget = per_head(20), .protect = {.window_tokens = 4}};
    const trace t = run(defensivekv(), layer.inputs(), request);
    CHECK(t.stages ==
          std::vector<plan_stage>{plan_stage::scored, plan_stage::allocated, plan_stage::selected});
    CHECK(t.offsets == std::vector<index_t>{0, 36, 72});
    CHECK(t.importance.size() == 72);
    CHECK(t.attention.size() == 72);
    CHECK(t.protected_mass.size() == 2);
    CHECK(t.protected_mass[0] > 0.0f);
    CHECK(t.budgets.size() == 2);
    CHECK(t.budgets[0] + t.budgets[1] == 32);
    CHECK(t.plan.kept_tokens(0) == t.budgets[0] + 4);
    // Pass one has marked tokens in between.
    CHECK(t.selected != t.importance);
    CHECK(std::count(t.importance.begin(), t.importance.end(), std::numeric_limits<float>::infinity()) == 0);
    CHECK(std::count(t.selected.begin(), t.selected.end(), std::numeric_limits<float>::infinity()) > 0);
}

TEST_CASE("eviction_policy: a prompt within the budget is kept whole without being read or scored",
          "[policy]") {
    const auto in = kvtrim::layer(unread_keys{3, 10, 4});
    for (const token_budget budget : {per_head(10), per_head(11), over_all_heads(30), over_all_heads(1000)}) {
        const trace t = run(newest_first, in, {.budget = budget, .protect = {.sink_tokens = 2}});
        REQUIRE(t.answer.ok());
        CHECK(t.stages.empty());
        CHECK(kept_sets(t.plan) == std::vector<oracle::token_set>(3, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}));
    }
}

TEST_CASE("eviction_policy: a prompt shorter than the window is kept whole if the budget allows",
          "[policy]") {
    const layer_data layer = small_layer();
    const view few(layer.k.data(), {2, 3, 8});
    const auto in = kvtrim::layer(few).with_queries(layer.queries());
    const trace t = run(snapkv(), in, {.budget = per_head(3), .protect = {.window_tokens = 4}});
    CHECK(t.answer.ok());
    CHECK(t.plan.total_tokens() == 6);
    require_refusal(snapkv(), in, {.budget = per_head(2)}, errc::window_exceeds_tokens, 4);
    require_refusal(snapkv(), in, {.budget = per_head(2), .protect = {.window_tokens = 4}},
                    errc::budget_below_protection, 6);
    // Other bad input is named even where nothing would be evicted.
    eviction_request bad{.budget = per_head(3)};
    bad.attention.soft_cap = -1;
    const view enough(layer.k.data(), {2, 4, 8});
    bad.budget = per_head(4);
    require_refusal(snapkv(), kvtrim::layer(enough).with_queries(layer.queries()), bad,
                    errc::invalid_parameter);
}

TEST_CASE("eviction_policy: a budget of nothing or below the protected tokens is refused",
          "[policy][errors]") {
    const layer_data layer = small_layer();
    const auto in = layer.inputs();
    for (const token_budget none : {per_head(0), over_all_heads(0), per_head(-3)}) {
        require_refusal(newest_first, in, {.budget = none}, errc::budget_zero);
    }
    const protection p{.sink_tokens = 4, .window_tokens = 6};
    require_refusal(newest_first, in, {.budget = per_head(9), .protect = p}, errc::budget_below_protection,
                    20);
    require_refusal(newest_first, in, {.budget = over_all_heads(19), .protect = p},
                    errc::budget_below_protection, 20);
    const trace exact = run(newest_first, in, {.budget = per_head(10), .protect = p});
    CHECK(exact.answer.ok());
    CHECK(exact.plan.total_tokens() == 20);
}

TEST_CASE("eviction_policy: negative counts of protected tokens are refused", "[policy][errors]") {
    const layer_data layer = small_layer();
    for (const protection& p : {protection{.sink_tokens = -1}, protection{.pinned_tokens = -1},
                                protection{.window_tokens = -1}, protection{.rollback_tokens = -1}}) {
        require_refusal(newest_first, layer.inputs(), {.budget = per_head(9), .protect = p},
                        errc::invalid_parameter);
    }
}

TEST_CASE("eviction_policy: bad fields of each stage are refused", "[policy][errors]") {
    const layer_data layer = small_layer();
    const auto in = layer.inputs();
    const eviction_request request{.budget = per_head(9)};
    require_refusal(eviction_policy{recency{}, adaptive{.safeguard_ratio = 2}, by_importance{}}, in, request,
                    errc::ratio_out_of_range);
    require_refusal(eviction_policy{recency{}, uniform{}, chunked{.chunk_tokens = 0}}, in, request,
                    errc::invalid_parameter);
    require_refusal(eviction_policy{window_attention{mean_attention{}, -1}, uniform{}, by_importance{}}, in,
                    request, errc::invalid_parameter);
}

TEST_CASE("eviction_policy: caches beyond 32-bit tables are refused before anything is read",
          "[policy][errors]") {
    const auto one_long = kvtrim::layer(unread_keys{2, index_t{1} << 31, 4});
    require_refusal(newest_first, one_long, {.budget = per_head(9)}, errc::index_overflow, index_t{1} << 31);
    // Each head fits, a plan of all of them does not.
    const auto many = kvtrim::layer(unread_keys{8, index_t{1} << 29, 4});
    const trace t = run(newest_first, many, {.budget = per_head(index_t{1} << 29)});
    CHECK(t.answer.code() == errc::index_overflow);
    CHECK(t.plan == made_before());
}

TEST_CASE("eviction_policy: a stage's error is passed on with the plan unchanged", "[policy][errors]") {
    const layer_data layer = small_layer();
    const eviction_request request{.budget = per_head(9)};
    const auto needed = [&](const auto& policy) {
        const trace t = run(policy, layer.inputs(), request);
        CHECK(t.answer.code() == errc::invalid_parameter);
        CHECK(t.plan == made_before());
        return t.answer.needed();
    };
    CHECK(needed(eviction_policy{failing_scorer{}, uniform{}, by_importance{}}) == 7);
    CHECK(needed(eviction_policy{recency{}, failing_allocator{}, by_importance{}}) == 8);
    CHECK(needed(eviction_policy{recency{}, uniform{}, failing_reranker{{}, true}}) == 9);
    CHECK(needed(eviction_policy{recency{}, uniform{}, failing_reranker{}}) == 10);

    const ragged_cache keys(layer.keys(), {40, 30});
    const trace t = run(eviction_policy{recency{}, uniform{}, shared{}}, kvtrim::layer(keys.get()), request);
    CHECK(t.answer.code() == errc::rows_differ);
    CHECK(t.plan == made_before());
}

TEST_CASE("eviction_policy: views that disagree are refused", "[policy][errors]") {
    const layer_data layer = small_layer();
    const view two_heads(layer.k.data(), {2, 40, 8});
    const view one_head(layer.k.data(), {1, 40, 8});
    const view shorter(layer.k.data(), {2, 39, 8});
    const eviction_request request{.budget = per_head(9)};
    require_refusal(newest_first, kvtrim::layer(two_heads, one_head), request, errc::invalid_parameter, 2);
    require_refusal(newest_first, kvtrim::layer(two_heads, shorter), request, errc::invalid_parameter, 40);
    const view narrow(layer.q.data(), {4, 4, 7});
    const auto in = kvtrim::layer(two_heads, two_heads).with_queries(narrow);
    require_refusal(snapkv(), in, request, errc::invalid_parameter, 8);
    require_refusal(newest_first, kvtrim::layer(view(nullptr, {2, 40, 8})), request, errc::invalid_parameter);
}

TEST_CASE(
    "eviction_policy: budgets that a row cannot fill are refused, whichever stage made them, before another "
    "sees them",
    "[policy][errors]") {
    const layer_data layer = small_layer();
    constexpr index_t most = std::numeric_limits<index_t>::max();
    const auto check = [&](const auto& policy) {
        keep_plan plan = made_before();
        growing_workspace memory;
        const status s = policy.plan(layer.inputs(), {.budget = per_head(9)}, plan, memory);
        CHECK(std::string(s.what()) ==
              "select: a budget must be between 0 and the number of candidates of its row");
        CHECK(plan == made_before());
    };
    for (const index_t extra : {index_t{1}, index_t{-1}, most - 40, std::numeric_limits<index_t>::min()}) {
        check(eviction_policy{recency{}, greedy_allocator{{}, extra}, by_importance{}});
        check(eviction_policy{recency{}, greedy_allocator{{}, extra}, unreached_reranker{}});
        check(eviction_policy{recency{}, uniform{}, greedy_reranker{{}, extra}});
    }
    check(eviction_policy{recency{}, idle_allocator{}, unreached_reranker{}});
}

TEST_CASE("eviction_policy: stages that answer nonsense cost a status or an odd plan, never a read outside",
          "[policy][errors]") {
    const layer_data layer = small_layer();
    keep_plan plan = made_before();
    growing_workspace memory;
    const eviction_request request{.budget = per_head(9), .protect = {.sink_tokens = 1}};
    const float odd[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                         -std::numeric_limits<float>::infinity(), -0.0f};
    for (const float score : odd) {
        const eviction_policy policy{constant_scorer{{}, score}, adaptive{}, two_stage{}};
        REQUIRE(policy.plan(layer.inputs(), request, plan, memory).ok());
        CHECK(is_valid(plan, layer.inputs()));
        CHECK(plan.total_tokens() == 2 * 9);
    }
    plan = made_before();
    std::vector<std::byte> some(1 << 16);
    const eviction_policy hungry{recency{}, hungry_allocator{{}, index_t{1} << 62}, by_importance{}};
    CHECK(hungry.plan(layer.inputs(), request, plan, memory).code() == errc::workspace_too_small);
    workspace scratch(some);
    const eviction_policy keeps{recency{}, hoarding_allocator{}, shared{}}; // takes what it did not ask for
    CHECK(keeps.plan(layer.inputs(), request, plan, scratch).code() == errc::workspace_too_small);
    CHECK(plan == made_before());
    for (const index_t bytes : {index_t{-1}, std::numeric_limits<index_t>::min()}) { // as none
        const eviction_policy modest{recency{}, hungry_allocator{{}, bytes}, by_importance{}};
        CHECK(modest.plan(layer.inputs(), request, plan, memory).ok());
    }
}

TEST_CASE("eviction_policy: a growing workspace serves any sequence of requests", "[policy]") {
    growing_workspace memory;
    keep_plan plan;
    for (const index_t tokens : {100, 20, 3, 250, 100}) {
        const layer_data layer = random_layer({.tokens = tokens, .queries = 3}, 1);
        const eviction_request request{.budget = per_head(3), .protect = {.window_tokens = 2}};
        const status s = defensivekv().plan(layer.inputs(), request, plan, memory);
        CHECK(s.ok());
        CHECK(plan.total_tokens() == 6);
    }
    const index_t capacity = memory.capacity_bytes();
    const layer_data layer = random_layer({.tokens = 100, .queries = 3}, 1);
    const status s = defensivekv().plan(layer.inputs(), {.budget = per_head(9)}, plan, memory);
    CHECK(s.ok());
    CHECK(memory.capacity_bytes() == capacity);
}

TEST_CASE("eviction_policy: stages without members cost no memory", "[policy]") {
    STATIC_REQUIRE(sizeof(newest_first) <= 3);
}
