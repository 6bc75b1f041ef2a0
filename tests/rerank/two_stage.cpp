// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/rerank/two_stage.hpp>

#include <kvtrim/rerank/by_importance.hpp>

#include "support/select.hpp"

using namespace kvtrim;
using namespace support;

TEST_CASE("two_stage: the most attended tokens stay, then the most important others", "[rerank][oracle]") {
    support::random r(131);
    for (int i = 0; i < 300; ++i) {
        const auto kind = r.one_of({score_kind::distinct, score_kind::tied, score_kind::odd});
        const oracle::matrix importance = random_scores(r, score_kind::tied);
        oracle::matrix attention;
        for (const auto& row : importance) {
            attention.push_back(random_row(r, static_cast<index_t>(row.size()), kind));
        }
        const oracle::counts budgets = random_budgets(r, importance);
        const two_stage reranker{.first_ratio = r.one_of({0.0, 0.5, 0.7, 1.0}),
                                 .first_tokens = r.chance(0.3) ? r.between(0, 20) : -1,
                                 .first_at_least = r.chance(0.3) ? r.between(0, 20) : 0};
        const selection got = select(reranker, importance, attention, budgets);
        CHECK(got.budgets == budgets);
        oracle::near_ties ties;
        for (std::size_t g = 0; g < importance.size(); ++g) {
            auto first = static_cast<std::size_t>(std::llround(10 * reranker.first_ratio)) * budgets[g] / 10;
            if (reranker.first_tokens >= 0) { first = static_cast<std::size_t>(reranker.first_tokens); }
            first = std::max(first, static_cast<std::size_t>(reranker.first_at_least));
            CAPTURE(i, g, budgets[g], first);
            CHECK(got.kept[g] == oracle::two_stage(attention[g], importance[g], first, budgets[g], ties));
        }
    }
}

TEST_CASE("two_stage: a share is rounded exactly, or truncated as the reference does", "[rerank][paper]") {
    const auto first = [](index_t budget, double ratio, share_rounding rounding) {
        return two_stage{.first_ratio = ratio, .rounding = rounding}.first_count(budget);
    };
    // 100 * 0.29 is 28.999999999999996 in doubles.
    CHECK(first(100, 0.29, share_rounding::exact) == 29);
    CHECK(first(100, 0.29, share_rounding::truncated) == 28);
    for (const auto rounding : {share_rounding::exact, share_rounding::truncated}) {
        CHECK(first(7, 0.5, rounding) == 3);
        CHECK(first(0, 0.5, rounding) == 0);
        CHECK(first(9, 1.0, rounding) == 9);
        const two_stage safe{.first_ratio = 0.29, .first_at_least = 40, .rounding = rounding};
        CHECK(safe.first_count(100) == 40);
        CHECK(safe.first_count(30) == 30);
        CHECK(two_stage{.first_tokens = 5, .rounding = rounding}.first_count(100) == 5);
    }
    const auto marked_by = [&](share_rounding rounding) {
        score_memory memory(oracle::matrix{oracle::row(100, 1.0)});
        std::vector<index_t> budgets{100};
        growing_workspace growing;
        workspace scratch = growing.of_bytes(0);
        const two_stage reranker{.first_ratio = 0.29, .rounding = rounding};
        REQUIRE(reranker.before_selection(memory.get(), budgets, scratch).ok());
        const auto row = memory.importance_rows().row(0);
        return std::count(row.begin(), row.end(), std::numeric_limits<float>::infinity());
    };
    CHECK(marked_by(share_rounding::exact) == 29);
    CHECK(marked_by(share_rounding::truncated) == 28);
}

TEST_CASE("two_stage: without attention of its own, pass one ranks by importance", "[rerank]") {
    support::random r(132);
    const oracle::matrix rows = random_scores(r, score_kind::distinct);
    const oracle::counts budgets = random_budgets(r, rows);
    CHECK(select(two_stage{}, rows, {}, budgets).kept == select(by_importance{}, rows, {}, budgets).kept);
}

TEST_CASE("two_stage: no importance outranks a token of pass one", "[rerank][paper]") {
    const oracle::matrix attention{{9, 1, 2, 3}};
    const oracle::matrix importance{{0, 1e30, 2e30, 3e30}}; // a zero value, beside huge ones
    CHECK(select(two_stage{.first_tokens = 1}, importance, attention, {2}).kept[0] ==
          oracle::token_set{0, 3});
    const oracle::matrix nan{{std::numeric_limits<double>::quiet_NaN(), 1, 2, 3}};
    CHECK(select(two_stage{.first_tokens = 1}, nan, attention, {2}).kept[0] == oracle::token_set{0, 3});
}

TEST_CASE("two_stage: a share below 0 or above 1 is named", "[rerank][errors]") {
    CHECK(two_stage{}.validate().ok());
    for (const double ratio : {-0.1, 1.1, std::numeric_limits<double>::quiet_NaN()}) {
        CHECK(two_stage{.first_ratio = ratio}.validate().code() == errc::ratio_out_of_range);
    }
}

TEST_CASE("two_stage_by_mass: pass one is the smallest count that reaches the mass, up to its limit",
          "[rerank][oracle]") {
    support::random r(133);
    int compared = 0;
    for (int i = 0; i < 300; ++i) {
        oracle::matrix attention = random_scores(r, r.one_of({score_kind::distinct, score_kind::tied}));
        std::vector<float> mass;
        for (auto& row : attention) { // heads whose attention sums to one, the protected tokens' included
            mass.push_back(static_cast<float>(r.uniform()));
            const double sum = oracle::sum(row);
            for (double& x : row) {
                x = sum > 0 ? static_cast<double>(
                                  static_cast<float>(x / sum * (1.0 - static_cast<double>(mass.back()))))
                            : 0.0;
            }
        }
        const index_t total = r.between(0, static_cast<index_t>(total_length(attention)));
        const std::size_t even = static_cast<std::size_t>(total) / attention.size();
        const double cap = r.one_of({0.0, 0.3, 0.5, 1.0});
        const two_stage_by_mass reranker{.attention_mass = r.one_of({0.0, 0.3, 0.9}),
                                         .first_at_most = cap,
                                         .first_limit_tokens = r.chance(0.3) ? r.between(0, 20) : -1};
        const std::size_t limit = reranker.first_limit_tokens >= 0
                                      ? std::min(even, static_cast<std::size_t>(reranker.first_limit_tokens))
                                      : static_cast<std::size_t>(std::llround(10 * cap)) * even / 10;
        oracle::near_ties ties;
        oracle::counts expected;
        for (std::size_t g = 0; g < attention.size(); ++g) {
            expected.push_back(std::min(attention[g].size(),
                                        oracle::pass_one_count(attention[g], reranker.attention_mass,
                                                               static_cast<double>(mass[g]), limit, ties)));
        }
        if (ties.rounding_may_decide()) { continue; }
        CAPTURE(i, total, reranker.attention_mass, limit);
        CHECK(marked(reranker, attention, attention, total, mass) == expected);
        ++compared;
    }
    CHECK(compared > 280);
}

TEST_CASE("two_stage_by_mass: the token that crosses the threshold counts", "[rerank][paper]") {
    const oracle::matrix attention{{0.125, 0.5, 0.25}, {0.25, 0.125, 0.5}};
    const two_stage_by_mass half{.attention_mass = 0.75};
    // Head 0 starts with nothing: 0.5 + 0.25. Head 1 has 0.5 already: one token more.
    CHECK(marked(half, attention, attention, 6, {0.0f, 0.5f}) == oracle::counts{2, 1});
    CHECK(marked(half, attention, attention, 6, {0.75f, 0.8f}) == oracle::counts{0, 0});
    CHECK(marked(half, attention, attention, 2, {0.0f, 0.0f}) == oracle::counts{1, 1});
    CHECK(marked(half, attention, attention, 0, {0.0f, 0.0f}) == oracle::counts{0, 0});
    CHECK(marked(two_stage_by_mass{.attention_mass = 1.0}, attention, attention, 6, {0.0f, 0.0f}) ==
          oracle::counts{3, 3});
}

TEST_CASE("two_stage_by_mass: shares below 0 or above 1 are named", "[rerank][errors]") {
    CHECK(two_stage_by_mass{}.validate().ok());
    for (const double ratio : {-0.1, 1.1, std::numeric_limits<double>::quiet_NaN()}) {
        CHECK(two_stage_by_mass{.attention_mass = ratio}.validate().code() == errc::ratio_out_of_range);
        CHECK(two_stage_by_mass{.first_at_most = ratio}.validate().code() == errc::ratio_out_of_range);
    }
}

TEST_CASE("two_stage: budgets that the rows cannot fill are refused", "[rerank][errors]") {
    require_selection_refusals(two_stage{});
}

TEST_CASE("two_stage_by_mass: a total above the candidates and missing masses are refused",
          "[rerank][errors]") {
    score_memory memory(oracle::matrix{{1, 2, 3}, {4, 5, 6}});
    growing_workspace growing;
    workspace scratch = growing.of_bytes(0);
    const auto answer = [&](const token_scores& scores, index_t total) {
        return std::string(two_stage_by_mass{}.before_allocation(scores, total, scratch).what());
    };
    CHECK(answer(memory.get(), 7) ==
          "two_stage_by_mass: total must be between 0 and the number of candidates");
    CHECK(answer({memory.offsets, memory.importance}, 3) ==
          "two_stage_by_mass: scores must have protected_mass of every row");
    CHECK(memory.importance == std::vector<float>{1, 2, 3, 4, 5, 6});
    CHECK(answer(memory.get(), 6) == "ok");
}

TEST_CASE("two_stage: attention of fewer candidates than importance is refused, not read past its end",
          "[rerank][errors]") {
    score_memory memory(oracle::matrix{{1, 2, 3}, {4, 5, 6}});
    growing_workspace growing;
    workspace scratch = growing.of_bytes(0);
    const token_scores scores{memory.offsets, memory.importance, std::span(memory.attention).first(5),
                              memory.protected_mass};
    std::vector<index_t> budgets{2, 2};
    CHECK(two_stage{}.before_selection(scores, budgets, scratch).code() == errc::invalid_table);
    CHECK(two_stage_by_mass{}.before_allocation(scores, 4, scratch).code() == errc::invalid_table);
    CHECK(memory.importance == std::vector<float>{1, 2, 3, 4, 5, 6});
}

TEST_CASE("two_stage: a share that validate() refuses is also refused where the stage is called directly",
          "[rerank][errors]") {
    score_memory memory(oracle::matrix{{1, 2, 3}, {4, 5, 6}});
    growing_workspace growing;
    workspace scratch = growing.of_bytes(0);
    std::vector<index_t> budgets{2, 2};
    for (const double ratio : {-1.0, 1e300, std::numeric_limits<double>::quiet_NaN()}) {
        const two_stage stage{.first_ratio = ratio, .rounding = share_rounding::truncated};
        CHECK(stage.before_selection(memory.get(), budgets, scratch).code() == errc::ratio_out_of_range);
        CHECK(stage.first_count(10) == 0);
        CHECK(two_stage_by_mass{.first_at_most = ratio}.before_allocation(memory.get(), 2, scratch).code() ==
              errc::ratio_out_of_range);
    }
    CHECK(memory.importance == std::vector<float>{1, 2, 3, 4, 5, 6});
}
