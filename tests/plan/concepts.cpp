// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/plan/concepts.hpp>

#include <kvtrim/policy/baselines.hpp>
#include <kvtrim/policy/criticalkv.hpp>
#include <kvtrim/policy/defensivekv.hpp>
#include <kvtrim/rerank/chunked.hpp>
#include <kvtrim/score/given_scores.hpp>

#include "support/checks.hpp"

using namespace kvtrim;
using namespace support;

namespace {

// The smallest stages that the contract allows.
struct smallest_scorer {
    static constexpr bool writes_attention = false;
    template <class Inputs, class Executor>
    status score(const Inputs& in, const eviction_request& request, const token_scores& out, workspace&,
                 Executor& ex) const {
        ex(in.kv_heads(), [&](index_t g) {
            static_cast<void>(request);
            for (float& x : out.importance_rows().row(g)) { x = 1.0f; }
        });
        return {};
    }
};
struct smallest_allocator {
    static constexpr bool is_uniform = false;
    status allocate(const score_rows& scores, index_t total, std::span<index_t> budgets, workspace&) const {
        for (std::size_t g = 0; g < budgets.size(); ++g) { // the first heads take all they can
            budgets[g] = std::min(total, scores.length(static_cast<index_t>(g)));
            total -= budgets[g];
        }
        return {};
    }
};
struct smallest_reranker {
    static constexpr bool allocate_by_attention = false;
    static constexpr bool needs_uniform_budgets = false;
};
struct smallest_aggregator {
    static constexpr bool writes_attention = false;
    [[nodiscard]] status validate() const { return {}; }
    [[nodiscard]] index_t halo() const { return 0; }
    [[nodiscard]] index_t lanes(index_t) const { return 1; }
    void add(const attention_tile& tile, std::span<float> sums) const {
        for (index_t t = 0; t < tile.tokens; ++t) {
            for (index_t i = 0; i < tile.query_rows; ++i) {
                sums[static_cast<std::size_t>(tile.first + t)] += tile.column(t)[i];
            }
        }
    }
    void finish(const attention_head&, std::span<float> sums, std::span<float> importance,
                std::span<float>) const {
        std::copy(sums.begin(), sums.end(), importance.begin());
    }
};

struct not_a_stage {};

} // namespace

TEST_CASE("concepts: the smallest stage of each kind fits, a struct without the members does not",
          "[policy]") {
    STATIC_REQUIRE(token_scorer<smallest_scorer, inputs>);
    STATIC_REQUIRE(budget_allocator<smallest_allocator>);
    STATIC_REQUIRE(token_reranker<smallest_reranker>);
    STATIC_REQUIRE(attention_aggregator<smallest_aggregator>);
    STATIC_REQUIRE_FALSE(token_scorer<not_a_stage, inputs>);
    STATIC_REQUIRE_FALSE(budget_allocator<not_a_stage>);
    STATIC_REQUIRE_FALSE(token_reranker<not_a_stage>);
    STATIC_REQUIRE_FALSE(attention_aggregator<not_a_stage>);
}

TEST_CASE("concepts: every stage of the library fits its own contract", "[policy]") {
    STATIC_REQUIRE(token_scorer<key_norm_score, inputs>);
    STATIC_REQUIRE(token_scorer<key_diff_score, inputs>);
    STATIC_REQUIRE(token_scorer<before_rope<key_diff_score>, inputs>);
    STATIC_REQUIRE(token_scorer<recency, inputs>);
    STATIC_REQUIRE(token_scorer<random_score, inputs>);
    STATIC_REQUIRE(token_scorer<given_scores<strided<const float, 2>>, inputs>);
    STATIC_REQUIRE(token_scorer<window_attention<mean_attention>, inputs>);
    STATIC_REQUIRE(token_scorer<projected_norm_weighted<window_attention<worst_case_attention>>, inputs>);
    STATIC_REQUIRE(attention_aggregator<mean_attention>);
    STATIC_REQUIRE(attention_aggregator<worst_case_attention>);
    STATIC_REQUIRE(budget_allocator<uniform>);
    STATIC_REQUIRE(budget_allocator<adaptive>);
    STATIC_REQUIRE(token_reranker<by_importance>);
    STATIC_REQUIRE(token_reranker<two_stage>);
    STATIC_REQUIRE(token_reranker<two_stage_by_mass>);
    STATIC_REQUIRE(token_reranker<chunked>);
    STATIC_REQUIRE(token_reranker<chunked_per_head>);
    STATIC_REQUIRE(token_reranker<shared>);
}

TEST_CASE("concepts: a policy of the smallest stages makes plans", "[policy]") {
    const layer_data layer = random_layer({.tokens = 10, .queries = 2}, 1);
    const eviction_request request{.budget = over_all_heads(9), .protect = {.sink_tokens = 1}};
    const eviction_policy smallest{smallest_scorer{}, smallest_allocator{}, smallest_reranker{}};
    CHECK(kept_sets(run(smallest, layer.inputs(), request).plan) ==
          std::vector<oracle::token_set>{{0, 1, 2, 3, 4, 5, 6, 7}, {0}});
    CHECK(smallest.workspace_bytes(layer.inputs(), request) > 0);

    const eviction_policy own_fold{window_attention{smallest_aggregator{}}, uniform{}, by_importance{}};
    const mean_attention sums{
        .pool = pooling::none, .group = group_reduction::sum, .queries = query_normalisation::sum};
    CHECK(run(own_fold, layer.inputs(), request).plan == run(snapkv(sums), layer.inputs(), request).plan);
}
