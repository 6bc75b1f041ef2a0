// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/allocate/adaptive.hpp>

#include "support/allocate.hpp"

using namespace kvtrim;
using namespace support;

TEST_CASE("adaptive: budgets equal forcing each row's best and sorting all the others",
          "[allocate][oracle]") {
    support::random r(101);
    for (int i = 0; i < 600; ++i) {
        const auto kind = r.one_of({score_kind::distinct, score_kind::tied, score_kind::odd});
        const oracle::matrix rows = random_scores(r, kind);
        const auto total = static_cast<std::size_t>(r.between(0, static_cast<index_t>(total_length(rows))));
        const double ratio = r.one_of({0.0, 0.1, 0.2, 0.5, 0.9, 1.0});
        const std::size_t even = total / rows.size();
        // The product of small whole numbers and a ratio of one decimal: exact in tenths.
        const auto share = static_cast<std::size_t>(std::llround(10 * ratio)) * even / 10;
        oracle::near_ties ties;
        CAPTURE(i, total, ratio, static_cast<int>(kind));
        const oracle::counts budgets = allocate(adaptive{.safeguard_ratio = ratio}, rows, total);
        CHECK(budgets == oracle::adaptive_budgets(rows, total, share, ties));
        CHECK(sum_of(budgets) == total);

        const auto tokens = static_cast<std::size_t>(r.between(0, 40));
        CHECK(allocate(adaptive{.safeguard_tokens = static_cast<index_t>(tokens)}, rows, total) ==
              oracle::adaptive_budgets(rows, total, std::min(tokens, even), ties));
    }
}

TEST_CASE("adaptive: every row keeps its safeguard, whatever the others score", "[allocate][paper]") {
    support::random r(102);
    oracle::matrix rows;
    for (int i = 0; i < 6; ++i) { rows.push_back(random_row(r, 50, score_kind::distinct)); }
    for (double& x : rows[2]) { x *= 1e-6; }
    for (double& x : rows[5]) { x *= 1e6; }
    const oracle::counts budgets = allocate(adaptive{.safeguard_ratio = 0.5}, rows, 120);
    CHECK(budgets[2] == 10);
    CHECK(budgets[5] == 50);
    CHECK(sum_of(budgets) == 120);
    CHECK(allocate(adaptive{.safeguard_ratio = 0.0}, rows, 120)[2] == 0);
}

TEST_CASE("adaptive: a safeguard of everything is the uniform budget", "[allocate]") {
    support::random r(103);
    const oracle::matrix rows(4, random_row(r, 30, score_kind::distinct));
    CHECK(allocate(adaptive{.safeguard_ratio = 1.0}, rows, 40) == oracle::counts{10, 10, 10, 10});
    // The two that an even share leaves over go to the best of the rest: ties, so to the first row.
    CHECK(sum_of(allocate(adaptive{.safeguard_ratio = 1.0}, rows, 42)) == 42);
}

TEST_CASE("adaptive: ties between rows go to the lower flat index", "[allocate][odd]") {
    const oracle::matrix rows(3, oracle::row(5, 1.0));
    CHECK(allocate(adaptive{.safeguard_ratio = 0.0}, rows, 7) == oracle::counts{5, 2, 0});
    CHECK(allocate(adaptive{.safeguard_ratio = 0.5}, rows, 7) == oracle::counts{5, 1, 1});
    const oracle::matrix nan(3, oracle::row(5, std::numeric_limits<double>::quiet_NaN()));
    CHECK(allocate(adaptive{.safeguard_ratio = 0.0}, nan, 7) == oracle::counts{5, 2, 0});
}

TEST_CASE("adaptive: a safeguard ratio outside [0, 1] is named", "[allocate][errors]") {
    CHECK(adaptive{}.validate().ok());
    CHECK(adaptive{.safeguard_ratio = 0.0}.validate().ok());
    CHECK(adaptive{.safeguard_ratio = 1.0}.validate().ok());
    for (const double ratio : {-0.1, 1.1, std::numeric_limits<double>::quiet_NaN()}) {
        CHECK(adaptive{.safeguard_ratio = ratio}.validate().code() == errc::ratio_out_of_range);
    }
}

TEST_CASE(
    "adaptive: a total above the candidates, budgets of other rows and tables that are no rows are refused",
    "[allocate][errors]") {
    require_allocation_refusals(adaptive{});
}
