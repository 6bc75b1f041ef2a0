// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/plan/prune_plan.hpp>

#include "support/random_prompt.hpp"

using namespace kvtrim;
using namespace support;

TEST_CASE("segment_grid: segments, allowed blocks and their sums, in chunks too", "[plan]") {
    support::random r(841);
    for (int i = 0; i < 200; ++i) {
        const index_t block = r.between(1, 20);
        const index_t segment = block * r.between(1, 5);
        const index_t first = segment * r.between(0, 6);
        const segment_grid grid{segment, block, first, first + r.between(0, 300)};
        REQUIRE(grid.validate().ok());
        index_t tokens = 0, allowed = 0;
        for (index_t s = 0; s < grid.segments(); ++s) {
            CHECK(grid.allowed_before(s) == allowed);
            CHECK(grid.begin(s) == first + tokens);
            CHECK(grid.allowed_blocks(s) * block == grid.begin(s));
            CHECK(grid.segment_size(s) > 0);
            tokens += grid.segment_size(s);
            allowed += grid.allowed_blocks(s);
        }
        CHECK(grid.allowed_before(grid.segments()) == allowed);
        CHECK(tokens == grid.tokens());
    }
}

TEST_CASE("segment_grid: sizes that do not divide", "[plan][errors]") {
    for (const segment_grid& bad :
         {segment_grid{10, 4, 0, 5}, segment_grid{0, 4, 0, 5}, segment_grid{8, 0, 0, 5},
          segment_grid{8, 4, 4, 5}, segment_grid{8, 4, -8, 5}, segment_grid{8, 4, 8, 5}}) {
        CHECK(bad.validate().code() == errc::invalid_parameter);
        prune_plan plan;
        CHECK(plan_dense(bad, 1, plan).code() == errc::invalid_parameter);
        CHECK(plan == prune_plan{});
    }
}

TEST_CASE("prune_plan: work is counted in pairs", "[plan][oracle]") {
    support::random r(842);
    for (int i = 0; i < 50; ++i) {
        const index_t block = r.between(1, 6);
        const segment_grid grid{block * r.between(1, 4), block, 0, r.between(0, 90)};
        const prune_plan plan = random_prune_plan(r, grid, 2, r.uniform());
        double planned = 0, dense = 0;
        for (index_t g = 0; g < 2; ++g) {
            for (index_t q = 0; q < grid.end_token; ++q) {
                const index_t s = q / grid.segment_tokens;
                planned += static_cast<double>(std::ssize(plan.row(g, s)) * block + q - grid.begin(s) + 1);
                dense += static_cast<double>(q + 1);
            }
        }
        CHECK(plan.planned_pairs() == planned);
        CHECK(plan.dense_pairs() == dense);
        CHECK(plan.check_invariants());
        prune_plan all;
        REQUIRE(plan_dense(grid, 2, all).ok());
        CHECK(all.planned_pairs() == dense);
    }
}

TEST_CASE("prune_plan: what breaks the invariants is found", "[plan]") {
    const segment_grid grid{.segment_tokens = 8, .block_tokens = 4, .end_token = 24};
    prune_plan plan;
    REQUIRE(plan_dense(grid, 1, plan).ok());
    CHECK(plan.offsets().size() == 4);
    CHECK(std::vector<std::int32_t>(plan.row(0, 2).begin(), plan.row(0, 2).end()) ==
          std::vector<std::int32_t>{0, 1, 2, 3});
    CHECK(plan.check_invariants());
    plan.writable_row(0, 2)[1] = 0; // twice
    CHECK(!plan.check_invariants());
    plan.writable_row(0, 2)[1] = 1;
    plan.writable_row(0, 2)[3] = 4; // its own segment
    CHECK(!plan.check_invariants());
}

TEST_CASE("prune_plan: tables that do not fit 32 bits are refused, contracts named", "[plan][errors]") {
    const segment_grid grid{.segment_tokens = 8, .block_tokens = 4, .end_token = 24};
    prune_plan plan;
    REQUIRE(plan_dense(grid, 1, plan).ok());
    const prune_plan before = plan;
    const std::vector<index_t> many{0, 2147483647, 1};
    const status s = plan.reset(grid, 1, many);
    CHECK(s.code() == errc::index_overflow);
    CHECK(plan == before);
    const std::vector<index_t> two{0, 1};
    CHECK(violation_of([&] { static_cast<void>(plan.reset(grid, 1, two)); }) ==
          "prune_plan: one count per (KV head, segment)");
    const std::vector<index_t> negative{0, -1, 1};
    CHECK(violation_of([&] { static_cast<void>(plan.reset(grid, 1, negative)); }) ==
          "prune_plan: counts must not be negative");
    CHECK(violation_of([&] { static_cast<void>(plan.reset({.block_tokens = 0}, 1, two)); }) ==
          "prune_plan: the grid must be valid");
    CHECK(plan == before);
}
