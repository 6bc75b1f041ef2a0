// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/allocate/blended.hpp>

#include <kvtrim/allocate/adaptive.hpp>

#include "support/allocate.hpp"

using namespace kvtrim;
using namespace support;

TEST_CASE("blended: budgets equal counts of the sorted rows blended with an even share",
          "[allocate][oracle]") {
    support::random r(111);
    int compared = 0;
    for (int i = 0; i < 600; ++i) {
        const auto kind = r.one_of({score_kind::distinct, score_kind::tied});
        const oracle::matrix rows = random_scores(r, kind);
        const auto total = static_cast<std::size_t>(r.between(0, static_cast<index_t>(total_length(rows))));
        const blended blend{.floor_ratio = r.one_of({0.0, 0.2, 0.5, 1.0}),
                            .weight_by_kept_mass = kind == score_kind::distinct && r.chance(0.5),
                            .rounding = r.chance(0.7) ? budget_rounding::exact : budget_rounding::authors};
        oracle::near_ties ties;
        const oracle::counts expected = oracle::blended_budgets(
            rows, total,
            {blend.floor_ratio, blend.weight_by_kept_mass, blend.rounding == budget_rounding::exact}, ties);
        const oracle::counts budgets = allocate(blend, rows, total);
        if (blend.rounding == budget_rounding::exact) { CHECK(sum_of(budgets) == total); }
        if (blend.weight_by_kept_mass && ties.rounding_may_decide()) { continue; }
        CAPTURE(i, total, blend.floor_ratio, blend.weight_by_kept_mass, static_cast<int>(blend.rounding));
        CHECK(budgets == expected);
        ++compared;
    }
    CHECK(compared > 560);
}

TEST_CASE("blended: a row without attention is weighted as it is, and keeps its place among equals",
          "[allocate][odd]") {
    // Rows of zeros only have no mass to be weighted by: their zeros tie with others', and the earlier row wins.
    const oracle::matrix rows{{0, 0, 0, 0}, {8, 0, 0, 0}};
    const blended blend{.floor_ratio = 0.0, .weight_by_kept_mass = true};
    CHECK(allocate(blend, rows, 4) == oracle::counts{3, 1});
}

TEST_CASE("blended: NaN and infinite scores still give budgets that sum to the total", "[allocate][odd]") {
    support::random r(112);
    for (int i = 0; i < 200; ++i) {
        const oracle::matrix rows = random_scores(r, score_kind::odd);
        const auto total = static_cast<std::size_t>(r.between(0, static_cast<index_t>(total_length(rows))));
        for (const bool weighted : {false, true}) {
            const oracle::counts budgets = allocate(blended{.weight_by_kept_mass = weighted}, rows, total);
            CHECK(sum_of(budgets) == total);
            for (std::size_t g = 0; g < rows.size(); ++g) { CHECK(budgets[g] <= rows[g].size()); }
        }
    }
}

TEST_CASE("blended: the authors' rounding drifts, the exact one does not", "[allocate][paper]") {
    // Counts 50, 50, 0, 0, ..: 0.8 * 50 + int(12 * 0.2) = 42 for two rows and 2 for the other six.
    oracle::matrix rows(8, oracle::row(50, 0.0));
    rows[0].assign(50, 2.0);
    rows[1].assign(50, 1.0);
    const oracle::counts authors =
        allocate(blended{.floor_ratio = 0.2, .rounding = budget_rounding::authors}, rows, 100);
    CHECK(authors == oracle::counts{42, 42, 2, 2, 2, 2, 2, 2});
    CHECK(sum_of(authors) == 96);
    CHECK(allocate(blended{.floor_ratio = 0.2}, rows, 100) == oracle::counts{43, 43, 3, 3, 2, 2, 2, 2});
}

TEST_CASE("blended: blend_as_authors rounds half to even and truncates the even share", "[allocate][paper]") {
    CHECK(blend_as_authors(1, 0, 0.5) == 0);
    CHECK(blend_as_authors(3, 0, 0.5) == 2);
    CHECK(blend_as_authors(5, 3, 0.5) == 4);  // 2.5 + 1 = 3.5
    CHECK(blend_as_authors(10, 9, 0.2) == 9); // 8 + 1
    CHECK(blend_as_authors(7, 7, 0.0) == 7);
    CHECK(blend_as_authors(0, 7, 1.0) == 7);
}

TEST_CASE("blended: weighting favours the row whose mass lies in few tokens", "[allocate][paper]") {
    oracle::matrix rows{oracle::row(40, 0.5), oracle::row(40, 0.0)};
    for (std::size_t i = 0; i < 10; ++i) { rows[1][i] = 0.4; }
    // Unweighted, the flat row's 0.5 beat the peaky row's 0.4. The even share of 10 holds a quarter of the flat
    // row's mass and all of the other's.
    CHECK(allocate(blended{.floor_ratio = 0.0}, rows, 20) == oracle::counts{20, 0});
    CHECK(allocate(blended{.floor_ratio = 0.0, .weight_by_kept_mass = true}, rows, 20) ==
          oracle::counts{10, 10});
}

TEST_CASE("blended: a row without any score weighs 1, not 0/0", "[allocate][odd]") {
    const oracle::matrix rows{oracle::row(10, 0.0), oracle::row(10, 0.0), {}};
    const blended blend{.floor_ratio = 0.0, .weight_by_kept_mass = true};
    CHECK(allocate(blend, rows, 12) == oracle::counts{10, 2, 0});
}

TEST_CASE("blended: a floor outside [0, 1] is named, a workspace that is too small refused",
          "[allocate][errors]") {
    CHECK(blended{}.validate().ok());
    for (const double ratio : {-0.1, 1.1, std::numeric_limits<double>::quiet_NaN()}) {
        CHECK(blended{.floor_ratio = ratio}.validate().code() == errc::ratio_out_of_range);
    }
    support::random r(113);
    score_memory memory(oracle::matrix(3, random_row(r, 20, score_kind::distinct)));
    std::vector<index_t> budgets(3, -7);
    for (const bool weighted : {false, true}) {
        const blended blend{.weight_by_kept_mass = weighted};
        const index_t needed = blend.workspace_bytes(3, 60);
        // Aligned memory can do with 64 bytes less; with 65 less the last block, the rounding's, does not fit.
        for (const index_t missing : {index_t{65}, index_t{200}, needed}) {
            alignas(64) static std::array<std::byte, 4096> bytes;
            workspace scratch(std::span<std::byte>(bytes).first(static_cast<std::size_t>(needed - missing)));
            const status s = blend.allocate(memory.importance_rows(), 10, budgets, scratch);
            CHECK(s.code() == errc::workspace_too_small);
            CHECK(s.needed() == needed);
            CHECK(budgets == std::vector<index_t>(3, -7));
        }
    }
}

TEST_CASE(
    "blended: a total above the candidates, budgets of other rows and tables that are no rows are refused",
    "[allocate][errors]") {
    require_allocation_refusals(blended{});
    require_allocation_refusals(blended{.weight_by_kept_mass = true});
}

TEST_CASE("blended, adaptive: a ratio that validate() refuses is also refused where they are called directly",
          "[allocate][errors]") {
    score_memory memory(oracle::matrix{{1, 2, 3}, {4, 5}});
    std::vector<index_t> budgets{-7, -7};
    growing_workspace growing;
    workspace scratch = growing.of_bytes(4096);
    for (const double ratio : {-0.1, 1.1, std::numeric_limits<double>::quiet_NaN()}) {
        const blended floor{.floor_ratio = ratio};
        const adaptive safeguard{.safeguard_ratio = ratio};
        CHECK(floor.allocate(memory.importance_rows(), 3, budgets, scratch).code() ==
              errc::ratio_out_of_range);
        CHECK(safeguard.allocate(memory.importance_rows(), 3, budgets, scratch).code() ==
              errc::ratio_out_of_range);
    }
    CHECK(budgets == std::vector<index_t>{-7, -7});
}
