// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/core/any_index.hpp>

#include "support/catch.hpp"

#include <limits>
#include <vector>

namespace {

using namespace kvtrim;

} // namespace

TEST_CASE("any_index: one wrong number is found wherever it stands, and none where there is none", "[core]") {
    for (std::size_t count = 0; count < 200; ++count) {
        std::vector<int> numbers(count, 1);
        const auto is_wrong = [&](std::size_t i) { return numbers[i] < 0; };
        CHECK_FALSE(any_index(count, is_wrong));
        for (std::size_t at = 0; at < count; ++at) {
            numbers[at] = -1;
            REQUIRE(any_index(count, is_wrong));
            REQUIRE_FALSE(any_index(at, is_wrong)); // nothing behind the count is asked
            numbers[at] = 1;
        }
    }
}

TEST_CASE("any_outside: an entry is at least 0 and below the size, whatever 64-bit number that is",
          "[core]") {
    constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
    constexpr std::int32_t highest = std::numeric_limits<std::int32_t>::max();
    for (const std::int32_t entry : {-highest - 1, -1, 0, 6, 7, highest}) {
        for (const std::int64_t size : {-most - 1, std::int64_t{-1}, std::int64_t{0}, std::int64_t{7},
                                        std::int64_t{1} << 31, std::int64_t{1} << 32, most}) {
            for (const std::size_t length : {std::size_t{1}, std::size_t{64}, std::size_t{130}}) {
                std::vector<std::int32_t> table(length, 0);
                table[length / 2] = entry;
                REQUIRE(any_outside(table, size) == (size <= 0 || entry < 0 || entry >= size));
            }
        }
    }
    CHECK_FALSE(any_outside({}, 0));
}

TEST_CASE("any_element: one element of a short list is found, and none in an empty one", "[core]") {
    const auto is_negative = [](int x) { return x < 0; };
    CHECK_FALSE(any_element(std::vector<int>{}, is_negative));
    CHECK_FALSE(any_element(std::vector<int>{0, 1, 2}, is_negative));
    CHECK(any_element(std::vector<int>{-1, 1, 2}, is_negative));
    CHECK(any_element(std::vector<int>{0, 1, -2}, is_negative));
}
