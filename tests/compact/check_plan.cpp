// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/compact/check_plan.hpp>

#include "compact/random_cache.hpp"

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

TEST_CASE("report_rows: rows times row length times element size, before and after", "[compact]") {
    std::vector<f16> memory(12);
    const std::vector<std::int32_t> offsets{0, 4, 6};
    const ragged<f16> cache(memory.data(), offsets, 2);
    const compaction_report report = report_rows<f16>(cache, support::plan_of({{3}, {1}}));
    CHECK(report.bytes_before == 6 * 2 * 2);
    CHECK(report.bytes_after == 2 * 2 * 2);
    const compaction_report both = report + compaction_report{100, 10};
    CHECK(both.bytes_before == 124);
    CHECK(both.bytes_after == 18);
}
