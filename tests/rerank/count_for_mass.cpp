// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/rerank/count_for_mass.hpp>

#include "support/catch.hpp"
#include "support/random_layer.hpp"
#include "support/special_floats.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace {

using namespace kvtrim;
using support::infinity;
using support::not_a_number;

std::vector<double> descending(const std::vector<float>& row) {
    std::vector<double> sorted;
    for (const float x : row) { sorted.push_back(x > 0 ? static_cast<double>(x) : 0.0); }
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    return sorted;
}

index_t naive(const std::vector<float>& row, double mass) {
    index_t count = 0;
    double sum = 0;
    for (const double x : descending(row)) {
        if (sum >= mass) { break; }
        sum += x;
        ++count;
    }
    return sum >= mass || mass <= 0 ? count : static_cast<index_t>(row.size());
}

} // namespace

TEST_CASE("count_for_mass: scores whose sums are exact give the count of a sequential sum",
          "[attention][oracle]") {
    support::random r(1);
    for (int round = 0; round < 600; ++round) {
        std::vector<float> row;
        const index_t length = r.between(0, 200);
        const int spread = static_cast<int>(r.between(0, 20));
        double total = 0;
        for (index_t c = 0; c < length; ++c) {
            const double whole = r.chance(0.2) ? 0.0 : static_cast<double>(r.between(-3, 40));
            row.push_back(static_cast<float>(std::ldexp(whole, -static_cast<int>(r.between(0, spread)))));
            total += std::max(0.0, static_cast<double>(row.back()));
        }
        // Exactly reachable sums first: there one token more or less would show.
        std::vector<double> masses{0.0, total, total / 2, total + 1, -1.0, 0x1p-30, total * r.uniform()};
        double sum = 0;
        for (const double x : descending(row)) {
            sum += x;
            if (r.chance(0.2)) { masses.insert(masses.end(), {sum, sum - 0x1p-30, sum + 0x1p-30}); }
        }
        for (const double mass : masses) {
            CAPTURE(round, mass);
            CHECK(count_for_mass(row, mass) == naive(row, mass));
        }
    }
}

TEST_CASE("count_for_mass: for any scores the count is right but for rounding of the mass",
          "[attention][oracle]") {
    support::random r(2);
    for (int round = 0; round < 100; ++round) {
        std::vector<float> row;
        for (index_t c = r.between(1, 3000); c > 0; --c) {
            row.push_back(static_cast<float>(std::exp(r.one_of({1.0, 5.0, 12.0}) * r.normal())));
        }
        const std::vector<double> sorted = descending(row);
        double total = 0;
        for (const double x : sorted) { total += x; }
        const double mass = total * r.one_of({0.001, 0.3, 0.9, 0.999, 0.9999999, r.uniform()});
        const index_t count = count_for_mass(row, mass);
        double enough = 0;
        for (index_t i = 0; i < count; ++i) { enough += sorted[static_cast<std::size_t>(i)]; }
        CAPTURE(round, mass, count, row.size());
        REQUIRE(count >= 1);
        CHECK(enough >= mass * (1 - 1e-12));
        CHECK(enough - sorted[static_cast<std::size_t>(count - 1)] < mass * (1 + 1e-12));
    }
}

TEST_CASE("count_for_mass: no mass needs no token, and too much needs the whole row", "[attention]") {
    const std::vector<float> row{0.5f, 0.25f};
    CHECK(count_for_mass(row, 0) == 0);
    CHECK(count_for_mass(row, -3) == 0);
    CHECK(count_for_mass(row, static_cast<double>(not_a_number)) == 0);
    CHECK(count_for_mass(row, 0.75) == 2);
    CHECK(count_for_mass(row, 0.7500001) == 2);
    CHECK(count_for_mass(row, static_cast<double>(infinity)) == 2);
    CHECK(count_for_mass(std::vector<float>{}, 1) == 0);
    CHECK(count_for_mass(std::vector<float>{0, 0, 0}, 0.1) == 3);
}

TEST_CASE("count_for_mass: of equal scores as many are taken as the mass needs", "[attention]") {
    const std::vector<float> row(10, 0.1f);
    const double tenth = static_cast<double>(0.1f);
    for (index_t count = 1; count <= 10; ++count) {
        CHECK(count_for_mass(row, static_cast<double>(count) * tenth) == count);
        CHECK(count_for_mass(row, (static_cast<double>(count) - 0.5) * tenth) == count);
    }
}

TEST_CASE("count_for_mass: NaN and negative scores count as zero", "[attention]") {
    const std::vector<float> row{not_a_number, -5, 2, -infinity, 1, -not_a_number};
    CHECK(count_for_mass(row, 2) == 1);
    CHECK(count_for_mass(row, 3) == 2);
    CHECK(count_for_mass(row, 3.5) == 6);
}

TEST_CASE("count_for_mass: one infinite score holds any mass", "[attention]") {
    CHECK(count_for_mass(std::vector<float>{1, infinity, 2}, 5) == 1);
    CHECK(count_for_mass(std::vector<float>{1, infinity, infinity}, 1e300) == 1);
    const auto any = static_cast<double>(infinity);
    CHECK(count_for_mass(std::vector<float>{infinity}, any) == 1);
    CHECK(count_for_mass(std::vector<float>{1, infinity, 2, infinity}, any) == 1);
    CHECK(count_for_mass(std::vector<float>{1, 3e38f, 2}, any) == 3);
}
