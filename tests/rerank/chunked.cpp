// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/rerank/chunked.hpp>

#include <kvtrim/aggregate/mean_attention.hpp>
#include <kvtrim/allocate/adaptive.hpp>
#include <kvtrim/policy/eviction_policy.hpp>
#include <kvtrim/score/window_attention.hpp>

#include "support/random_layer.hpp"
#include "support/select.hpp"

using namespace kvtrim;
using namespace support;

TEST_CASE("chunked: whole chunks by their mean, the next one filled up to the budget", "[rerank][oracle]") {
    support::random r(141);
    int compared = 0;
    for (int i = 0; i < 400; ++i) {
        const bool together = r.chance(0.5);
        const auto kind = r.one_of({score_kind::distinct, score_kind::tied});
        const oracle::matrix rows = together ? equal_rows(r, kind) : random_scores(r, kind);
        const std::size_t shortest = [&] {
            std::size_t length = rows[0].size();
            for (const auto& row : rows) { length = std::min(length, row.size()); }
            return length;
        }();
        const oracle::counts budgets =
            together ? oracle::counts(rows.size(),
                                      static_cast<std::size_t>(r.between(0, static_cast<index_t>(shortest))))
                     : random_budgets(r, rows);
        const index_t chunk_tokens = r.one_of({1, 2, 5, 20, 100});
        const index_t kept_chunks = r.chance(0.3) ? r.between(1, 4) : 0;
        oracle::near_ties ties;
        std::vector<oracle::token_set> expected;
        for (std::size_t g = 0; g < rows.size(); ++g) {
            expected.push_back(
                oracle::chunked(together ? oracle::reduced(rows, oracle::reduction::sum) : rows[g],
                                static_cast<std::size_t>(chunk_tokens), budgets[g],
                                static_cast<std::size_t>(kept_chunks), ties));
        }
        if (ties.rounding_may_decide()) { continue; }
        CAPTURE(i, together, budgets, chunk_tokens, kept_chunks);
        const selection got = together
                                  ? select(chunked{chunk_tokens, kept_chunks}, rows, {}, budgets)
                                  : select(chunked_per_head{chunk_tokens, kept_chunks}, rows, {}, budgets);
        CHECK(got.answer.ok());
        CHECK(got.kept == expected);
        if (kept_chunks == 0) { CHECK(got.budgets == budgets); }
        ++compared;
    }
    CHECK(compared > 350);
}

TEST_CASE("chunked: the budget is met to the token, also by a last chunk that is shorter", "[rerank]") {
    const oracle::matrix rows{{1, 1, 1, 9, 9, 9, 5, 8}};
    const chunked threes{.chunk_tokens = 3};
    // Means 1, 9, 6.5: the second chunk, then both of the last, then one of the first.
    CHECK(select(threes, rows, {}, {3}).kept[0] == oracle::token_set{3, 4, 5});
    CHECK(select(threes, rows, {}, {4}).kept[0] == oracle::token_set{3, 4, 5, 7});
    CHECK(select(threes, rows, {}, {6}).kept[0] == oracle::token_set{0, 3, 4, 5, 6, 7});
    CHECK(select(threes, rows, {}, {0}).kept[0].empty());
    const chunked two_whole{.chunk_tokens = 3, .kept_chunks = 2};
    CHECK(select(two_whole, rows, {}, {1}).kept[0] == oracle::token_set{3, 4, 5, 6, 7});
    CHECK(select(two_whole, rows, {}, {1}).budgets == oracle::counts{5});
}

TEST_CASE("chunked: NaN and infinite scores still keep exactly the budget", "[rerank][odd]") {
    support::random r(142);
    for (int i = 0; i < 100; ++i) {
        const oracle::matrix rows = random_scores(r, score_kind::odd);
        const oracle::counts budgets = random_budgets(r, rows);
        const selection got = select(chunked_per_head{.chunk_tokens = 4}, rows, {}, budgets);
        CHECK(got.budgets == budgets);
    }
}

TEST_CASE("chunked: bad fields and heads of different lengths are named", "[rerank][errors]") {
    CHECK(chunked{}.validate().ok());
    CHECK(chunked{.chunk_tokens = 0}.validate().code() == errc::invalid_parameter);
    CHECK(chunked{.chunk_tokens = -5}.validate().code() == errc::invalid_parameter);
    CHECK(chunked{.kept_chunks = -1}.validate().code() == errc::invalid_parameter);
    CHECK(chunked_per_head{.chunk_tokens = 0}.validate().code() == errc::invalid_parameter);
    CHECK(chunked_per_head{.kept_chunks = -1}.validate().code() == errc::invalid_parameter);
    const oracle::matrix ragged{{1, 2, 3}, {1, 2}};
    CHECK(select(chunked{}, ragged, {}, {1, 1}).answer.code() == errc::rows_differ);
    CHECK(select(chunked_per_head{}, ragged, {}, {1, 1}).answer.ok());
}

TEST_CASE("chunked: a workspace that is too small is refused with nothing written", "[rerank][errors]") {
    const auto refuses = [](const auto& reranker) {
        score_memory memory(oracle::matrix(2, oracle::row(90, 3.0)));
        std::vector<index_t> budgets{40, 40};
        std::vector<std::byte> few(130);
        workspace scratch(few);
        const std::vector<float> before = memory.importance;
        const status s = reranker.before_selection(memory.get(), budgets, scratch);
        CHECK(s.code() == errc::workspace_too_small);
        CHECK(memory.importance == before);
        CHECK(budgets == std::vector<index_t>{40, 40});
    };
    refuses(chunked{.chunk_tokens = 2});
    refuses(chunked_per_head{.chunk_tokens = 2});
}

TEST_CASE("chunked: a workspace that suffices for the first row only is refused with nothing written",
          "[rerank][errors]") {
    score_memory memory(oracle::matrix{oracle::row(2, 3.0), oracle::row(400, 3.0)});
    std::vector<index_t> budgets{2, 40};
    const chunked_per_head reranker{.chunk_tokens = 2};
    std::vector<std::byte> few(300); // one chunk and its index, not 200
    workspace scratch(few);
    const std::vector<float> before = memory.importance;
    const status s = reranker.before_selection(memory.get(), budgets, scratch);
    CHECK(s.code() == errc::workspace_too_small);
    CHECK(s.needed() == reranker.workspace_bytes(2, 402));
    CHECK(memory.importance == before);
    CHECK(budgets == std::vector<index_t>{2, 40});
}

TEST_CASE("chunked: budgets that the rows cannot fill are refused", "[rerank][errors]") {
    require_selection_refusals(chunked{});
    require_selection_refusals(chunked_per_head{});
}

TEST_CASE("chunked_per_head: heads may compete for the layer's budget, and each keeps whole chunks",
          "[rerank]") {
    const layer_data layer = random_layer({.kv_heads = 3, .tokens = 90}, 143);
    const eviction_request request{.budget = per_head(30)};
    const window_attention attention{mean_attention{}};
    std::vector<index_t> budgets;
    keep_plan plan;
    growing_workspace memory;
    const eviction_policy policy{attention, adaptive{}, chunked_per_head{.chunk_tokens = 5}};
    REQUIRE(policy
                .plan(layer.inputs(), request, plan, memory, serial_executor{},
                      [&](const plan_progress& at) { budgets.assign(at.budgets.begin(), at.budgets.end()); })
                .ok());
    CHECK(plan.total_tokens() == 90);
    CHECK(std::adjacent_find(budgets.begin(), budgets.end(), std::not_equal_to<>{}) != budgets.end());
    for (index_t g = 0; g < plan.rows(); ++g) {
        CAPTURE(g, budgets);
        CHECK(plan.kept_tokens(g) == budgets[static_cast<std::size_t>(g)]);
        std::vector<index_t> in_chunk(18, 0);
        for (const auto token : plan.row(g)) { ++in_chunk[static_cast<std::size_t>(token / 5)]; }
        CHECK(std::count_if(in_chunk.begin(), in_chunk.end(), [](index_t n) { return n % 5 != 0; }) <= 1);
    }
}

TEST_CASE(
    "chunked: chunks of no tokens are refused where it is called directly, chunks of any length are chunks",
    "[rerank][errors]") {
    score_memory memory(oracle::matrix{{1, 2, 3}, {4, 5, 6}});
    std::vector<index_t> budgets{2, 2};
    growing_workspace growing;
    workspace scratch = growing.of_bytes(4096);
    for (const index_t tokens : {index_t{0}, std::numeric_limits<index_t>::min()}) {
        CHECK(chunked_per_head{tokens}.workspace_bytes(2, 6) == 0);
        CHECK(chunked{tokens}.before_selection(memory.get(), budgets, scratch).code() ==
              errc::invalid_parameter);
        CHECK(chunked_per_head{tokens}.before_selection(memory.get(), budgets, scratch).code() ==
              errc::invalid_parameter);
    }
    CHECK(budgets == std::vector<index_t>{2, 2});
    CHECK(memory.importance == std::vector<float>{1, 2, 3, 4, 5, 6});
    constexpr index_t most = std::numeric_limits<index_t>::max();
    CHECK(chunked_per_head{most}.before_selection(memory.get(), budgets, scratch).ok());
    CHECK(memory.importance == std::vector<float>{1, 2, 3, 4, 5, 6}); // one chunk, cut by its tokens
}
