// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/plan/prune_plan.hpp>

#include "support/prefill.hpp"

#include <numeric>
#include <vector>

using namespace kvtrim;
using namespace support;

namespace {

constexpr index_t largest_index = std::numeric_limits<index_t>::max();

segment_grid random_grid(support::random& r) {
    segment_grid grid;
    grid.block_tokens = r.between(1, 9);
    grid.segment_tokens = grid.block_tokens * r.between(1, 5);
    grid.first_token = grid.segment_tokens * r.between(0, 4);
    grid.end_token = grid.first_token + r.between(0, 90);
    return grid;
}

} // namespace

TEST_CASE("segment_grid: sizes that do not divide and chunks that begin off a segment are refused",
          "[plan]") {
    const segment_grid fine{.segment_tokens = 12, .block_tokens = 4, .first_token = 24, .end_token = 30};
    CHECK(fine.validate().ok());
    CHECK(segment_grid{}.validate().ok());
    const auto code_of = [](segment_grid grid) { return grid.validate().code(); };
    for (const segment_grid& wrong :
         {segment_grid{0, 4, 0, 8}, segment_grid{-4, 4, 0, 8}, segment_grid{4, 0, 0, 8},
          segment_grid{4, -4, 0, 8}, segment_grid{4, 8, 0, 8}, segment_grid{10, 4, 0, 8},
          segment_grid{12, 4, -12, 8}, segment_grid{12, 4, 4, 8}, segment_grid{12, 4, 24, 23}}) {
        CHECK(code_of(wrong) == errc::invalid_parameter);
    }
    CHECK(code_of({12, 4, 24, 24}) == errc::ok); // an empty chunk
}

TEST_CASE("segment_grid: segments cover the chunk, and allowed_before counts the blocks before them",
          "[plan]") {
    support::random r(61);
    for (int n = 0; n < 200; ++n) {
        const segment_grid grid = random_grid(r);
        REQUIRE(grid.validate().ok());
        index_t at = grid.first_token;
        index_t allowed = 0;
        for (index_t s = 0; s < grid.segments(); ++s) {
            CHECK(grid.begin(s) == at);
            CHECK(grid.segment_size(s) > 0);
            CHECK(grid.segment_size(s) <= grid.segment_tokens);
            CHECK(grid.allowed_before(s) == allowed);
            index_t blocks = 0; // that end before the segment
            while ((blocks + 1) * grid.block_tokens <= grid.begin(s)) { ++blocks; }
            CHECK(grid.allowed_blocks(s) == blocks);
            allowed += blocks;
            at = grid.end(s);
        }
        CHECK(grid.allowed_before(grid.segments()) == allowed);
        CHECK(at == std::max(grid.end_token, grid.first_token));
        CHECK(grid.tokens() == grid.end_token - grid.first_token);
    }
}

TEST_CASE("segment_grid: a segment longer than anything holds the whole prompt", "[plan]") {
    const segment_grid grid{
        .segment_tokens = largest_index, .block_tokens = 1, .first_token = 0, .end_token = 100};
    REQUIRE(grid.validate().ok());
    CHECK(grid.segments() == 1);
    CHECK(grid.end(0) == 100);
    CHECK(grid.segment_size(0) == 100);
}

TEST_CASE("prune_plan: without reset it has no rows", "[plan]") {
    const prune_plan plan;
    CHECK(plan.rows() == 0);
    CHECK(plan.kv_heads() == 0);
    CHECK(plan.blocks().empty());
    CHECK(plan.check_invariants());
    CHECK(plan.planned_pairs() == 0);
    CHECK(plan.dense_pairs() == 0);
}

TEST_CASE("prune_plan: rows are one behind the other, head by head", "[plan]") {
    const segment_grid grid{.segment_tokens = 8, .block_tokens = 4, .first_token = 16, .end_token = 37};
    prune_plan plan;
    REQUIRE(plan.reset(grid, 2, std::vector<index_t>{1, 0, 2, 3, 2, 0}).ok());
    CHECK(plan.rows() == 6);
    std::int32_t mark = 0;
    for (index_t g = 0; g < 2; ++g) {
        for (index_t s = 0; s < 3; ++s) {
            CHECK(plan.row_index(g, s) == 3 * g + s);
            for (auto& block : plan.writable_row(g, s)) { block = mark++; }
        }
    }
    CHECK(std::vector(plan.offsets().begin(), plan.offsets().end()) ==
          std::vector<std::int32_t>{0, 1, 1, 3, 6, 8, 8});
    std::vector<std::int32_t> counted(8);
    std::iota(counted.begin(), counted.end(), 0);
    CHECK(std::vector(plan.blocks().begin(), plan.blocks().end()) == counted);
    CHECK(plan.row(1, 0).size() == 3);
    CHECK(plan.row(1, 1).front() == 6);
    CHECK(plan.grid() == grid);
}

TEST_CASE("prune_plan: a row that repeats, descends or reaches into its segment is found", "[plan]") {
    const segment_grid grid{.segment_tokens = 8, .block_tokens = 4, .first_token = 8, .end_token = 24};
    const auto is_sound = [&](std::vector<std::int32_t> first, std::vector<std::int32_t> second) {
        prune_plan plan;
        const std::vector<index_t> counts{static_cast<index_t>(first.size()),
                                          static_cast<index_t>(second.size())};
        REQUIRE(plan.reset(grid, 1, counts).ok());
        std::copy(first.begin(), first.end(), plan.writable_row(0, 0).begin());
        std::copy(second.begin(), second.end(), plan.writable_row(0, 1).begin());
        return plan.check_invariants();
    };
    CHECK(is_sound({0, 1}, {0, 1, 2, 3}));
    CHECK(is_sound({}, {3}));
    CHECK(is_sound({1}, {0, 2}));
    CHECK_FALSE(is_sound({0, 0}, {}));
    CHECK_FALSE(is_sound({1, 0}, {}));
    CHECK_FALSE(is_sound({-1}, {}));
    CHECK_FALSE(is_sound({2}, {})); // its own segment begins at block 2
    CHECK_FALSE(is_sound({}, {4}));
    CHECK_FALSE(is_sound({}, {0, 3, 3}));
}

TEST_CASE("prune_plan: pairs are what a loop over queries and keys counts", "[plan]") {
    support::random r(62);
    for (int n = 0; n < 60; ++n) {
        const segment_grid grid = random_grid(r);
        const index_t kv_heads = r.between(0, 3);
        const prune_plan plan = random_plan(grid, kv_heads, r);
        double planned = 0;
        double dense = 0;
        for (index_t g = 0; g < kv_heads; ++g) {
            for (index_t s = 0; s < grid.segments(); ++s) {
                for (index_t p = grid.begin(s); p < grid.end(s); ++p) {
                    const auto own = static_cast<double>(p - grid.begin(s) + 1);
                    planned += own + static_cast<double>(grid.block_tokens) *
                                         static_cast<double>(plan.row(g, s).size());
                    dense += static_cast<double>(p + 1);
                }
            }
        }
        CHECK(plan.planned_pairs() == planned);
        CHECK(plan.dense_pairs() == dense);
    }
}

TEST_CASE("prune_plan: more blocks than 32 bits count are refused with the plan unchanged", "[plan]") {
    constexpr index_t limit = std::numeric_limits<std::int32_t>::max();
    const segment_grid far{
        .segment_tokens = 8, .block_tokens = 4, .first_token = limit * 8, .end_token = limit * 8 + 16};
    for (const std::vector<index_t>& counts :
         {std::vector<index_t>{limit, 1}, std::vector<index_t>{limit + 1, 7},
          std::vector<index_t>{0, 2 * limit}}) {
        prune_plan plan = planned_before();
        const status s = plan.reset(far, 1, counts);
        CHECK(s.code() == errc::index_overflow);
        CHECK(s.needed() == counts[0] + counts[1]);
        CHECK(plan == planned_before());
    }
    prune_plan plan = planned_before();
    const segment_grid farthest{
        .segment_tokens = 1, .block_tokens = 1, .first_token = largest_index - 3, .end_token = largest_index};
    CHECK(plan.reset(farthest, 1, std::vector<index_t>(3, largest_index - 3)).needed() ==
          largest_index); // no 64 bits hold the sum
    CHECK(plan == planned_before());
}

TEST_CASE("prune_plan: a wrong grid, number of heads or counts, or count is refused with the plan unchanged",
          "[plan][errors]") {
    const segment_grid grid{.segment_tokens = 8, .block_tokens = 4, .first_token = 0, .end_token = 16};
    const auto reset = [&](const segment_grid& g, index_t heads, std::vector<index_t> counts) {
        prune_plan plan = planned_before();
        const status s = plan.reset(g, heads, counts);
        CHECK((plan == planned_before()) == !s.ok());
        return s;
    };
    const auto refused = [](const status& s, index_t needed) {
        return s.code() == errc::invalid_parameter && s.needed() == needed;
    };
    CHECK(reset(grid, 1, {0, 2}).ok());
    CHECK(refused(reset(grid, 1, {0}), 2));
    CHECK(refused(reset(grid, 2, {0, 2, 0}), 4));
    CHECK(refused(reset(grid, largest_index / 2 + 1, {0, 2}),
                  largest_index)); // as many rows as no 64 bits hold
    CHECK(refused(reset(grid, 1, {0, -1}), 2));
    CHECK(refused(reset(grid, 1, {0, 3}), 2)); // blocks of its own segment
    CHECK(refused(reset(grid, 1, {1, 2}), 0));
    CHECK(refused(reset({8, 3, 0, 16}, 1, {0, 2}), 0));
    CHECK(refused(reset({0, 0, 0, 16}, 1, {0, 2}), 0));
    CHECK(refused(reset(grid, -1, {}), 0));
    CHECK(refused(reset(grid, std::numeric_limits<index_t>::min(), {}), 0));
}

TEST_CASE("segment_grid: a grid that is not valid has no segments", "[plan][errors]") {
    for (const segment_grid& wrong : {segment_grid{0, 4, 0, 8}, segment_grid{4, 0, 0, 8},
                                      segment_grid{8, 4, 0, -largest_index}, segment_grid{12, 4, 4, 8}}) {
        CHECK(wrong.segments() == 0);
    }
}

TEST_CASE("prune_plan: equal rows of equal grids are equal", "[plan]") {
    prune_plan a = planned_before();
    CHECK(a == planned_before());
    a.writable_row(0, 1)[0] = 0;
    CHECK_FALSE(a == planned_before());
}

TEST_CASE("plan_dense: every segment attends every block before it", "[plan]") {
    support::random r(63);
    for (int n = 0; n < 40; ++n) {
        const segment_grid grid = random_grid(r);
        const index_t kv_heads = r.between(0, 3);
        prune_plan plan = planned_before();
        REQUIRE(plan_dense(grid, kv_heads, plan).ok());
        CHECK(plan.grid() == grid);
        CHECK(plan.kv_heads() == kv_heads);
        CHECK(plan.check_invariants());
        CHECK(plan.planned_pairs() == plan.dense_pairs());
        for (index_t g = 0; g < kv_heads; ++g) {
            for (index_t s = 0; s < grid.segments(); ++s) {
                CHECK(static_cast<index_t>(plan.row(g, s).size()) == grid.allowed_blocks(s));
            }
        }
    }
}

TEST_CASE("plan_dense: a grid that is refused or too large leaves the plan unchanged", "[plan]") {
    prune_plan plan = planned_before();
    CHECK(plan_dense({8, 3, 0, 16}, 1, plan).code() == errc::invalid_parameter);
    const segment_grid huge{
        .segment_tokens = 65536, .block_tokens = 1, .first_token = 0, .end_token = 1 << 26};
    CHECK(plan_dense(huge, 1, plan).code() == errc::index_overflow);
    CHECK(plan_dense({8, 4, 0, 16}, -1, plan).code() == errc::invalid_parameter);
    for (const index_t kv_heads :
         {index_t{1} << 31, index_t{1} << 62, largest_index}) { // rows, before any memory is asked for
        CHECK(plan_dense({8, 4, 0, 16}, kv_heads, plan).code() == errc::index_overflow);
        CHECK(plan_dense({8, 4, 0, 8}, kv_heads, plan).code() == errc::index_overflow);
    }
    for (const segment_grid& far :
         {segment_grid{1, 1, largest_index - 8, largest_index}, segment_grid{1, 1, 0, largest_index},
          segment_grid{largest_index, largest_index, 0, largest_index},
          segment_grid{largest_index, 1, 0, largest_index}}) {
        CHECK(plan_dense(far, 1, plan).code() == errc::index_overflow);
    }
    // As many tokens as a table can address, but more blocks.
    const segment_grid longest{64, 64, 0, std::numeric_limits<std::int32_t>::max()};
    CHECK(valid_table_size(longest, 1).code() == errc::index_overflow);
    CHECK(plan == planned_before());
}
