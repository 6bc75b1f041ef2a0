// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/core/saturated.hpp>

#include "support/catch.hpp"

#include <vector>

using namespace kvtrim;

namespace {

constexpr index_t most = std::numeric_limits<index_t>::max();
constexpr index_t least = std::numeric_limits<index_t>::min();
const std::vector<index_t> numbers{
    least, least + 1, least / 2, -(index_t{1} << 32), -3,       -1,       0,
    1,     2,         3,         index_t{1} << 31,    most / 2, most - 1, most};

index_t clamped(long double exact) {
    return exact >= 0x1p63L ? most : exact < -0x1p63L ? least : static_cast<index_t>(exact);
}

} // namespace

TEST_CASE("saturated_sum, saturated_product: exact within 64 bits, the nearest number beyond", "[core]") {
    // long double holds 64 bits of a product exactly where the product fits, which is where it matters.
    static_assert(std::numeric_limits<long double>::digits >= 64);
    for (const index_t a : numbers) {
        for (const index_t b : numbers) {
            CAPTURE(a, b);
            CHECK(saturated_sum(a, b) == clamped(static_cast<long double>(a) + static_cast<long double>(b)));
            CHECK(saturated_product(a, b) ==
                  clamped(static_cast<long double>(a) * static_cast<long double>(b)));
        }
    }
}
