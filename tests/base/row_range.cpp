// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/base/row_range.hpp>

#include "support/checks.hpp"

#include <numeric>

using namespace kvtrim;

static_assert(row_source<row_range<strided<const float, 3>>>);

TEST_CASE("row range: the chosen rows of each head, whatever the view", "[base]") {
    std::vector<float> data(2 * 4 * 2);
    std::iota(data.begin(), data.end(), 0.0f);
    const support::view all(data.data(), {2, 4, 2});
    const auto check = [&](const auto& rows) {
        CHECK(extent(rows, 0) == 2);
        CHECK(extent(rows, 1) == 2);
        CHECK(extent(rows, 2) == 2);
        std::vector<float> tile(2);
        load_rows(rows, 1, 1, 1, tile.data());
        CHECK(tile == std::vector<float>{12, 13});
    };
    check(row_range(all, 1, 2));
    check(row_range(support::decoding_source(all), 1, 2));
    check(row_range(row_range(all, 1, 3), 0, 2));
    CHECK(row_range(all, 4, 0).extent(1) == 0);
}

TEST_CASE("row range: rows that a head does not have break its contract", "[base][contract]") {
    std::vector<float> data(16);
    const support::view all(data.data(), {2, 4, 2});
    const auto violation = [&](index_t first, index_t count) {
        return support::violation_of([&] { row_range(all, first, count); });
    };
    CHECK(violation(0, 4).empty());
    CHECK(violation(1, 4) == "row_range: a head has fewer rows");
    CHECK(violation(5, 0) == "row_range: a head has fewer rows");
    CHECK(violation(-1, 1) == "row_range: first and count must not be negative");
    CHECK(violation(0, -1) == "row_range: first and count must not be negative");
}
