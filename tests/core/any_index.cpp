// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/core/any_index.hpp>

#include "support/catch.hpp"

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
