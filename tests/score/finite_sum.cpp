// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/score/finite_sum.hpp>

#include "support/catch.hpp"
#include "support/special_floats.hpp"

#include <limits>
#include <vector>

namespace {

using namespace kvtrim;
using support::infinity;
using support::not_a_number;

} // namespace

TEST_CASE("finite_sum: sum, number and mean are those of the finite scores, for any length", "[score]") {
    for (int length = 0; length < 20; ++length) {
        std::vector<float> row;
        for (int i = 0; i < length; ++i) { row.push_back(static_cast<float>(i) - 3); }
        const double sum = length * (length - 1) / 2.0 - 3.0 * length;
        CHECK(sum_of_finite(row).sum == sum);
        CHECK(sum_of_finite(row).count == length);
        for (const float odd : {not_a_number, infinity, -infinity}) {
            for (int at = 0; at < length; ++at) {
                std::vector<float> spoilt = row;
                spoilt[static_cast<std::size_t>(at)] = odd;
                const finite_sum found = sum_of_finite(spoilt);
                REQUIRE(found.sum == sum - (at - 3));
                REQUIRE(found.count == length - 1);
                REQUIRE(found.mean() == (length == 1 ? 0 : (sum - (at - 3)) / (length - 1)));
            }
        }
    }
}

TEST_CASE("finite_sum: a term of each score is summed in double, where floats would overflow", "[score]") {
    const std::vector<float> row(5, std::numeric_limits<float>::max());
    const double most = std::numeric_limits<float>::max();
    CHECK(sum_of_finite(row, [](double score) { return score * score; }).sum == 5 * most * most);
    CHECK(sum_of_finite(row).mean() == most);
}
