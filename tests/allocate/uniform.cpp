// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/allocate/uniform.hpp>

#include "support/allocate.hpp"

using namespace kvtrim;
using namespace support;

TEST_CASE("uniform: budgets are what dealing one by one gives, for any lengths and total",
          "[allocate][oracle]") {
    support::random r(91);
    for (int i = 0; i < 400; ++i) {
        const oracle::matrix rows = random_scores(r, score_kind::odd);
        const auto total = static_cast<std::size_t>(r.between(0, static_cast<index_t>(total_length(rows))));
        CAPTURE(i, total);
        CHECK(allocate(uniform{}, rows, total) == oracle::uniform_budgets(oracle::lengths(rows), total));
    }
}

TEST_CASE("uniform: what a short row cannot use goes to the others", "[allocate]") {
    const oracle::matrix rows{oracle::row(2), oracle::row(10), oracle::row(10)};
    CHECK(allocate(uniform{}, rows, 9) == oracle::counts{2, 4, 3});
    CHECK(allocate(uniform{}, rows, 22) == oracle::counts{2, 10, 10});
    CHECK(allocate(uniform{}, rows, 0) == oracle::counts{0, 0, 0});
    CHECK(allocate(uniform{}, {}, 0).empty());
}

TEST_CASE(
    "uniform: a total above the candidates, budgets of other rows and tables that are no rows are refused",
    "[allocate][errors]") {
    require_allocation_refusals(uniform{});
}
