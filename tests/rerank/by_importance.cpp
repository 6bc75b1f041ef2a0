// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/rerank/by_importance.hpp>

#include "support/select.hpp"

using namespace kvtrim;
using namespace support;

TEST_CASE("by_importance: it rewrites neither scores nor budgets", "[rerank]") {
    support::random r(121);
    for (int i = 0; i < 50; ++i) {
        const oracle::matrix rows = random_scores(r, score_kind::odd);
        const oracle::counts budgets = random_budgets(r, rows);
        const selection got = select(by_importance{}, rows, {}, budgets);
        CHECK(got.budgets == budgets);
        oracle::near_ties ties;
        for (std::size_t g = 0; g < rows.size(); ++g) {
            CHECK(got.kept[g] == oracle::by_importance(rows[g], budgets[g], ties));
        }
    }
}

TEST_CASE("by_importance: it lets allocators see importance and heads differ", "[rerank]") {
    STATIC_REQUIRE_FALSE(by_importance::allocate_by_attention);
    STATIC_REQUIRE_FALSE(by_importance::needs_uniform_budgets);
}
