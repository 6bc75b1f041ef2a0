// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/rerank/shared.hpp>

#include "support/select.hpp"

using namespace kvtrim;
using namespace support;

TEST_CASE("shared: all heads keep the set that the reduced scores choose", "[rerank][oracle]") {
    support::random r(151);
    int compared = 0;
    for (int i = 0; i < 400; ++i) {
        const oracle::matrix rows = equal_rows(r, r.one_of({score_kind::distinct, score_kind::tied}));
        oracle::counts budgets = random_budgets(r, rows);
        const std::size_t least = *std::min_element(budgets.begin(), budgets.end());
        const auto kind = r.bits() % 4;
        constexpr head_reduction fast[] = {head_reduction::sum, head_reduction::maximum,
                                           head_reduction::votes, head_reduction::squares};
        constexpr oracle::head_reduction slow[] = {
            oracle::head_reduction::sum, oracle::head_reduction::maximum, oracle::head_reduction::votes,
            oracle::head_reduction::squares};
        oracle::near_ties ties;
        const oracle::token_set expected = oracle::shared(rows, least, slow[kind], ties);
        if (ties.rounding_may_decide()) { continue; }
        CAPTURE(i, kind, least);
        const selection got = select(shared{fast[kind]}, rows, {}, budgets);
        CHECK(got.answer.ok());
        CHECK(got.budgets == oracle::counts(rows.size(), least));
        CHECK(got.kept == std::vector<oracle::token_set>(rows.size(), expected));
        ++compared;
    }
    CHECK(compared > 380);
}

TEST_CASE("shared: votes count heads, not the size of their scores", "[rerank]") {
    const oracle::matrix rows{{100, 0, 1}, {0, 2, 1}, {0, 2, 1}};
    CHECK(select(shared{head_reduction::sum}, rows, {}, {1, 1, 1}).kept[0] == oracle::token_set{0});
    CHECK(select(shared{head_reduction::maximum}, rows, {}, {1, 1, 1}).kept[0] == oracle::token_set{0});
    CHECK(select(shared{head_reduction::votes}, rows, {}, {1, 1, 1}).kept[0] == oracle::token_set{1});
    // A head in which one column stands out weighs more than three that want another a little; signs stay.
    const oracle::matrix peaked{{3, 0, -4}, {0, 2, 0}, {0, 2, 0}};
    CHECK(select(shared{head_reduction::squares}, peaked, {}, {1, 1, 1}).kept[0] == oracle::token_set{0});
    CHECK(select(shared{head_reduction::squares}, peaked, {}, {2, 2, 2}).kept[0] == oracle::token_set{0, 1});
    CHECK(select(shared{head_reduction::sum}, peaked, {}, {1, 1, 1}).kept[0] == oracle::token_set{1});
    CHECK(select(shared{head_reduction::votes}, rows, {}, {2, 2, 2}).kept[0] == oracle::token_set{1, 2});
}

TEST_CASE("shared: of equal votes the larger sum wins, however small or large the scores are", "[rerank]") {
    // Both rows vote for column 0; columns 1 and 2 have a vote each.
    const auto kept = [](double a, double b) {
        const oracle::matrix rows{{1, a, 0, 0}, {1, 0, b, 0}};
        return select(shared{head_reduction::votes}, rows, {}, {2, 2}).kept[0];
    };
    for (const double unit : {1e-42, 1e-12, 1e-3, 0.5}) {
        CAPTURE(unit);
        CHECK(kept(unit, 2 * unit) == oracle::token_set{0, 2});
        CHECK(kept(2 * unit, unit) == oracle::token_set{0, 1});
        CHECK(kept(unit, unit) == oracle::token_set{0, 1});
    }
    // Columns 0 and 2 have a vote each, and sums beyond float.
    const oracle::matrix huge{{3e38, 3e38, 3e38, 1}, {1e38, 2e38, 3e38, 1}};
    CHECK(select(shared{head_reduction::votes}, huge, {}, {1, 1}).kept[0] == oracle::token_set{2});
    const oracle::matrix many_votes_small_sum{{1e-30, 0, 5}, {1e-30, 0, -9}, {1e-30, 0, -9}};
    CHECK(select(shared{head_reduction::votes}, many_votes_small_sum, {}, {1, 1, 1}).kept[0] ==
          oracle::token_set{0});
}

TEST_CASE("shared: votes rank infinite sums first, minus infinity and NaN last among equals",
          "[rerank][odd]") {
    const double infinity = std::numeric_limits<double>::infinity();
    const double nan = std::numeric_limits<double>::quiet_NaN();
    const auto kept = [](const oracle::matrix& rows, std::size_t budget) {
        return select(shared{head_reduction::votes}, rows, {}, oracle::counts(rows.size(), budget)).kept[0];
    };
    CHECK(kept({{1, 2, infinity}, {1, 2, 0}}, 1) == oracle::token_set{2}); // a vote each, the larger sum
    CHECK(kept({{1, 2, infinity}, {1, 2, 3}}, 1) == oracle::token_set{2});
    CHECK(kept({{infinity, 2, infinity}, {1, 3, 2}}, 1) == oracle::token_set{0});
    CHECK(kept({{1, infinity, infinity}, {2, -infinity, 1}}, 2) == oracle::token_set{0, 2}); // votes first
    // A vote each: NaN ranks behind minus infinity, and that behind any number.
    CHECK(kept({{5, -infinity}, {nan, 1}}, 1) == oracle::token_set{1});
    CHECK(kept({{-infinity, 5}, {1, -9}}, 1) == oracle::token_set{1});
    CHECK(kept({{nan, nan, nan}, {nan, nan, nan}}, 2) == oracle::token_set{0, 1});
    CHECK(kept({{nan, -infinity, 1}, {1, 1, nan}}, 3) == oracle::token_set{0, 1, 2});
}

TEST_CASE("shared: a maximum ignores NaN where another head has a score", "[rerank][odd]") {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    const oracle::matrix rows{{nan, 1, nan}, {5, 2, nan}};
    CHECK(select(shared{head_reduction::maximum}, rows, {}, {1, 1}).kept[0] == oracle::token_set{0});
    CHECK(select(shared{head_reduction::maximum}, rows, {}, {2, 2}).kept[0] == oracle::token_set{0, 1});
}

TEST_CASE("shared: heads of different lengths are named, no heads are no error", "[rerank][errors]") {
    const selection ragged = select(shared{}, {{1, 2, 3}, {1, 2}}, {}, {2, 1});
    CHECK(ragged.answer.code() == errc::rows_differ);
    CHECK(ragged.budgets == oracle::counts{2, 1});
    CHECK(select(shared{}, {}, {}, {}).answer.ok());
}

TEST_CASE("shared: a workspace that is too small is refused with nothing written", "[rerank][errors]") {
    score_memory memory(oracle::matrix{{1, 2, 3}, {3, 2, 1}});
    const std::vector<float> before = memory.importance;
    std::vector<index_t> budgets{2, 1};
    std::vector<std::byte> few(60);
    workspace scratch(few);
    const status s = shared{}.before_selection(memory.get(), budgets, scratch);
    CHECK(s.code() == errc::workspace_too_small);
    CHECK(s.needed() == shared{}.workspace_bytes(2, 6));
    CHECK(memory.importance == before);
    CHECK(budgets == std::vector<index_t>{2, 1});
}

TEST_CASE("shared: budgets that the rows cannot fill are refused", "[rerank][errors]") {
    require_selection_refusals(shared{});
    require_selection_refusals(shared{head_reduction::votes});
}
