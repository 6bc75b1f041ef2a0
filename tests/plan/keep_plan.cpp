// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/plan/keep_plan.hpp>

#include "support/checks.hpp"

#include <array>
#include <limits>
#include <numeric>
#include <vector>

namespace {

using namespace kvtrim;
using table = std::vector<std::int32_t>;

constexpr index_t most = std::numeric_limits<std::int32_t>::max();

keep_plan example() {
    return support::plan_of({{0, 2, 5}, {}, {1, 2}});
}

bool fits_cache(const keep_plan& plan, const std::vector<index_t>& lengths) {
    return plan.check_invariants([&](index_t row) { return lengths[static_cast<std::size_t>(row)]; });
}

} // namespace

TEST_CASE("keep_plan: a new plan has no rows", "[plan]") {
    const keep_plan plan;
    CHECK(plan.rows() == 0);
    CHECK(plan.total_tokens() == 0);
    CHECK(plan.longest_row() == 0);
    CHECK(plan.kept().empty());
    CHECK(fits_cache(plan, {}));
}

TEST_CASE("keep_plan: offsets are the cumulative lengths, and kept the rows one after the other", "[plan]") {
    const keep_plan plan = example();
    CHECK(plan.rows() == 3);
    CHECK(plan.total_tokens() == 5);
    CHECK(plan.longest_row() == 3);
    CHECK(plan.kept_tokens(0) == 3);
    CHECK(plan.kept_tokens(1) == 0);
    CHECK(plan.kept_tokens(2) == 2);
    CHECK(table(plan.offsets().begin(), plan.offsets().end()) == table{0, 3, 3, 5});
    CHECK(plan.cu_seqlens().data() == plan.offsets().data());
    CHECK(plan.cu_seqlens().size() == 4);
    CHECK(table(plan.kept().begin(), plan.kept().end()) == table{0, 2, 5, 1, 2});
    CHECK(table(plan.row(2).begin(), plan.row(2).end()) == table{1, 2});
}

TEST_CASE("keep_plan: equal tables are equal plans", "[plan]") {
    CHECK(example() == example());
    CHECK_FALSE(example() == support::plan_of({{0, 2}, {5}, {1, 2}})); // the same kept, other offsets
    CHECK_FALSE(example() == support::plan_of({{0, 2, 4}, {}, {1, 2}}));
}

TEST_CASE("reset: a plan with rows but no tokens has offsets of zero", "[plan]") {
    keep_plan plan = example();
    REQUIRE(plan.reset(std::array<index_t, 2>{0, 0}).ok());
    CHECK(plan.rows() == 2);
    CHECK(plan.total_tokens() == 0);
    CHECK(table(plan.offsets().begin(), plan.offsets().end()) == table{0, 0, 0});
    REQUIRE(plan.reset({}).ok());
    CHECK(plan.rows() == 0);
    CHECK(plan.offsets().size() == 1);
}

TEST_CASE("reset: 2^31 tokens in total are refused before any table grows", "[plan]") {
    // Were the tables sized first, these lines would take 8 GiB and more.
    const std::vector<std::vector<index_t>> too_many{
        {most + 1}, {most, 1}, {1, most}, {most, most, most}, {index_t{1} << 40}, {index_t{1} << 62}};
    for (const auto& counts : too_many) {
        keep_plan plan = example();
        const status s = plan.reset(counts);
        CHECK(s.code() == errc::index_overflow);
        CHECK(s.needed() == std::accumulate(counts.begin(), counts.end(), index_t{0}));
        CHECK(plan == example());
    }
}

TEST_CASE("reset: counts whose sum overflows 64 bits are refused too", "[plan]") {
    keep_plan plan = example();
    const std::array<index_t, 2> counts{1, std::numeric_limits<index_t>::max()};
    const status s = plan.reset(counts);
    CHECK(s.code() == errc::index_overflow);
    CHECK(s.needed() == std::numeric_limits<index_t>::max());
    CHECK(plan == example());
}

TEST_CASE("reset: a negative count is refused, wherever it stands, with the plan as it was",
          "[plan][errors]") {
    keep_plan plan = example();
    for (const auto& counts : std::vector<std::vector<index_t>>{
             {3, -1}, {-1, 3}, {std::numeric_limits<index_t>::min()}, {most + 1, -1}, {-1, most + 1}}) {
        CHECK_FALSE(plan.reset(counts).ok());
        CHECK(plan == example());
    }
    CHECK(plan.reset(std::array<index_t, 2>{3, -1}).code() == errc::invalid_parameter);
}

TEST_CASE("reset: a smaller or equal shape reuses the tables", "[plan]") {
    keep_plan plan;
    REQUIRE(plan.reset(std::array<index_t, 3>{10, 20, 30}).ok());
    const auto* const kept = plan.kept().data();
    const auto* const offsets = plan.offsets().data();
    for (const auto& counts : std::vector<std::vector<index_t>>{{60, 0, 0}, {1}, {20, 20, 20}, {0, 0}}) {
        REQUIRE(plan.reset(counts).ok());
        CHECK(plan.kept().data() == kept);
        CHECK(plan.offsets().data() == offsets);
    }
}

TEST_CASE("writable_row: what is written there is what the row keeps", "[plan]") {
    keep_plan plan;
    REQUIRE(plan.reset(std::array<index_t, 2>{1, 2}).ok());
    plan.writable_row(0)[0] = 4;
    plan.writable_row(1)[0] = 0;
    plan.writable_row(1)[1] = 9;
    CHECK(plan == support::plan_of({{4}, {0, 9}}));
}

TEST_CASE("check_invariants: it accepts ascending rows inside the cache and nothing else", "[plan]") {
    CHECK(fits_cache(example(), {6, 0, 3}));
    CHECK_FALSE(fits_cache(example(), {5, 0, 3})); // row 0 keeps token 5
    CHECK_FALSE(fits_cache(example(), {6, 9, 2}));
    CHECK_FALSE(fits_cache(support::plan_of({{1, 1}}), {9}));
    CHECK_FALSE(fits_cache(support::plan_of({{2, 1}}), {9}));
    CHECK(fits_cache(support::plan_of({{8}, {0}}), {9, 9})); // order matters within a row only
    keep_plan negative = support::plan_of({{0, 1}});
    negative.writable_row(0)[0] = -1;
    CHECK_FALSE(fits_cache(negative, {9}));
    keep_plan last = support::plan_of({{0, 1}});
    last.writable_row(0)[1] = std::numeric_limits<std::int32_t>::max();
    CHECK(fits_cache(last, {most + 1}));
}

TEST_CASE("gather_positions: survivors keep the positions their rows had", "[plan]") {
    const keep_plan plan = example();
    const std::vector<index_t> positions{10, 11, 12, 13, 14, 15};
    std::vector<index_t> out(4, -1);
    REQUIRE(plan.gather_positions(0, std::span(positions), std::span(out)).ok());
    CHECK(out == std::vector<index_t>{10, 12, 15, -1});
    REQUIRE(plan.gather_positions(1, std::span(positions), std::span(out)).ok());
    CHECK(out[0] == 10); // an empty row writes nothing
    const std::vector<std::int16_t> narrow{5, 6, 7};
    std::vector<std::int16_t> narrow_out(2);
    REQUIRE(plan.gather_positions(2, std::span(narrow), std::span(narrow_out)).ok());
    CHECK(narrow_out == std::vector<std::int16_t>{6, 7});
}

TEST_CASE(
    "gather_positions: in place survivors keep their positions, and none is lost to an output among them",
    "[plan][errors]") {
    const keep_plan plan = support::plan_of({{0, 2, 5}});
    std::vector<index_t> memory{10, 11, 12, 13, 14, 15, 16};
    const auto before = memory;
    const auto answer = [&](std::size_t positions, std::size_t out) {
        return plan.gather_positions(0, std::span<const index_t>(memory).subspan(positions, 6),
                                     std::span(memory).subspan(out));
    };
    for (const std::size_t behind : {std::size_t{2}, std::size_t{3}, std::size_t{4}}) {
        // Position 2 or 5 would be written over before it is read, or neither.
        CHECK(answer(0, behind).code() == (behind == 3 ? errc::ok : errc::views_overlap));
        if (behind != 3) { CHECK(memory == before); }
        memory = before;
    }
    REQUIRE(answer(0, 0).ok());
    CHECK(memory == std::vector<index_t>{10, 12, 15, 13, 14, 15, 16});
    memory = before;
    REQUIRE(answer(1, 0).ok());
    CHECK(memory == std::vector<index_t>{11, 13, 16, 13, 14, 15, 16});
}

TEST_CASE("gather_positions: a short output, positions that do not cover the survivors and rows of no plan "
          "are refused",
          "[plan][errors]") {
    const std::vector<index_t> positions(6, 7);
    std::vector<index_t> out(3, -1);
    const auto answer = [&](const keep_plan& plan, index_t row, std::size_t cached, std::size_t room) {
        const status s =
            plan.gather_positions(row, std::span(positions).first(cached), std::span(out).first(room));
        CHECK(out == std::vector<index_t>(3, -1));
        return s;
    };
    CHECK(answer(example(), 0, 6, 2) == status{errc::invalid_parameter, "", 3});
    CHECK(answer(example(), 0, 5, 3) == status{errc::invalid_parameter, "", 6});
    CHECK(answer(example(), 0, 0, 3).code() == errc::invalid_parameter);
    for (const index_t row : {index_t{-1}, index_t{3}, std::numeric_limits<index_t>::max()}) {
        CHECK(answer(example(), row, 6, 3) == status{errc::plan_mismatch, "", 3});
    }
    CHECK(answer(keep_plan{}, 0, 6, 3).code() == errc::plan_mismatch);
    keep_plan filled = example(); // by an engine, in no order
    filled.writable_row(0)[0] = 9;
    CHECK(answer(filled, 0, 6, 3) == status{errc::invalid_parameter, "", 10});
    filled.writable_row(0)[0] = -1;
    CHECK(answer(filled, 0, 6, 3).code() == errc::invalid_parameter);
}
