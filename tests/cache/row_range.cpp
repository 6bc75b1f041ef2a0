// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/cache/row_range.hpp>

#include <kvtrim/cache/ragged.hpp>

#include "support/checks.hpp"

#include <limits>
#include <numeric>

using namespace kvtrim;

static_assert(row_source<row_range<strided<const float, 3>>>);

TEST_CASE("row range: the chosen rows of each head, whatever the view", "[core]") {
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

TEST_CASE("row range: rows that a head does not have give an empty view that says why", "[core][errors]") {
    std::vector<float> data(16);
    const support::view all(data.data(), {2, 4, 2});
    const auto answer = [](const auto& view, index_t first, index_t count) {
        const row_range rows(view, first, count);
        const status s = rows.validate();
        for (int r = 0; r < 3 && !s.ok(); ++r) { CHECK(extent(rows, r) == 0); }
        CHECK(kvtrim::validate(rows) == s);
        return std::string(s.what());
    };
    constexpr index_t most = std::numeric_limits<index_t>::max();
    CHECK(answer(all, 0, 4) == "ok");
    CHECK(answer(all, 1, 4) == "row_range: a head has fewer rows");
    CHECK(answer(all, 5, 0) == "row_range: a head has fewer rows");
    CHECK(answer(all, most, most) == "row_range: a head has fewer rows");
    CHECK(answer(all, -1, 1) == "row_range: first and count must not be negative");
    CHECK(answer(all, 0, -1) == "row_range: first and count must not be negative");
    const std::vector<std::int32_t> ends{0, 4, 6};
    const ragged<float> uneven(data.data(), ends, 2); // the second head has two rows
    CHECK(answer(uneven, 0, 2) == "ok");
    CHECK(answer(uneven, 0, 3) == "row_range: a head has fewer rows");
    CHECK(answer(support::view(nullptr, {2, 4, 2}), 0, 1) == "strided: data must not be null");
}
