// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/compact/check_plan.hpp>

#include "compact/random_cache.hpp"
#include "core/own_views.hpp"

#include <vector>

using namespace kvtrim;

TEST_CASE("check_plan: it accepts plans of this cache and refuses all others", "[compact]") {
    std::vector<float> memory(80);
    const strided<float, 3> cache(memory.data(), {2, 10, 4});
    CHECK(check_plan(cache, support::plan_of({{0, 9}, {}})).ok());
    CHECK(check_plan(cache, support::plan_of({{}, {}})).ok());
    for (const keep_plan& plan : support::wrong_plans({10, 10})) {
        CHECK(check_plan(cache, plan).code() == errc::plan_mismatch);
    }
    CHECK(check_plan(cache, keep_plan{}).code() == errc::plan_mismatch);
    CHECK(check_plan(cache, support::plan_of({{0}, {0}, {0}})).needed() == 3);
    CHECK(check_plan(strided<float, 3>(nullptr, {0, 10, 4}), keep_plan{}).ok());
}

TEST_CASE("check_plan: every head of a ragged cache has its own last row", "[compact]") {
    std::vector<float> memory(12);
    const std::vector<std::int32_t> offsets{0, 4, 6};
    const ragged<float> cache(memory.data(), offsets, 2);
    CHECK(check_plan(cache, support::plan_of({{3}, {1}})).ok());
    CHECK(check_plan(cache, support::plan_of({{1}, {3}})).code() == errc::plan_mismatch);
}

TEST_CASE("row_bytes: the elements say it, or the cache itself, and a view without memory does not",
          "[compact]") {
    struct padded_rows : strided<f16, 3> { // each row with a scale in front of it
        using strided<f16, 3>::strided;
        static index_t row_bytes() { return 12; }
    };
    std::vector<f16> memory(40);
    const std::vector<std::int32_t> offsets{0, 4, 6};
    CHECK(row_bytes(strided<f16, 3>(memory.data(), {2, 3, 4}, {20, 5, 1})) == 8); // without the gaps
    CHECK(row_bytes(ragged<const f16>(memory.data(), offsets, 4)) == 8);
    CHECK(row_bytes(padded_rows(memory.data(), {2, 3, 4}, {18, 6, 1})) == 12);
    STATIC_REQUIRE_FALSE(knows_row_bytes<own::indexable>);
}

TEST_CASE("report_rows: rows times bytes of a row, before and after", "[compact]") {
    std::vector<f16> memory(12);
    const std::vector<std::int32_t> offsets{0, 4, 6};
    const ragged<f16> cache(memory.data(), offsets, 2);
    const compaction_report report = report_rows(cache, support::plan_of({{3}, {1}}), 4, 8);
    CHECK(report.bytes_before == 6 * 4);
    CHECK(report.bytes_after == 2 * 8);
    const compaction_report both = report + compaction_report{100, 10};
    CHECK(both.bytes_before == 124);
    CHECK(both.bytes_after == 26);
}
