// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/allocate/preference.hpp>

#include "support/allocate.hpp"

#include <cmath>

using namespace kvtrim;
using namespace support;

namespace {

std::vector<index_t> shares(const preference& p, const std::vector<double>& preferences,
                            const std::vector<index_t>& caps, index_t total) {
    std::vector<index_t> budgets(caps.size(), -7);
    growing_workspace memory;
    workspace scratch = memory.of_bytes(p.workspace_bytes(std::ssize(caps)));
    REQUIRE(p.allocate(preferences, caps, total, budgets, scratch).ok());
    return budgets;
}

} // namespace

TEST_CASE("preference: shares follow the preferences, under the caps, with an exact sum", "[policy]") {
    support::random r(912);
    for (int i = 0; i < 500; ++i) {
        const auto layers = static_cast<std::size_t>(r.between(1, 32));
        std::vector<double> preferences;
        std::vector<index_t> caps;
        for (std::size_t l = 0; l < layers; ++l) {
            preferences.push_back(r.chance(0.1) ? 0.0 : std::exp(3 * r.normal()));
            caps.push_back(r.between(0, 500));
        }
        const index_t total = r.between(0, sum_of(caps));
        const auto budgets = shares({}, preferences, caps, total);
        CAPTURE(i, layers, total);
        CHECK(sum_of(budgets) == total);
        for (std::size_t a = 0; a < layers; ++a) {
            CHECK(budgets[a] >= 0);
            CHECK(budgets[a] <= caps[a]);
            for (std::size_t b = 0; b < layers; ++b) { // more preferred, not less unless capped
                if (preferences[a] > preferences[b] && budgets[a] < caps[a]) {
                    CHECK(budgets[a] + 1 >= budgets[b]);
                }
            }
        }
    }
}

TEST_CASE("preference: units above a cap are not lost", "[policy][regression]") {
    const std::vector<double> preferences{100, 50, 1, 1};
    const std::vector<index_t> caps(4, 100);
    CHECK(shares({}, preferences, caps, 300) == std::vector<index_t>{100, 100, 50, 50});
    // The authors' single pass loses 31 of them.
    CHECK(shares({.rule = preference_rule::authors}, preferences, caps, 300) ==
          std::vector<index_t>{100, 100, 35, 34});
}

TEST_CASE("preference: without preferences layers are equal", "[policy][odd]") {
    const std::vector<index_t> caps(4, 100);
    CHECK(shares({}, {0, 0, 0, 0}, caps, 10) == std::vector<index_t>{3, 3, 2, 2});
    constexpr double nan = std::numeric_limits<double>::quiet_NaN();
    constexpr double infinity = std::numeric_limits<double>::infinity();
    CHECK(shares({}, {nan, infinity, -1, 0}, caps, 10) == std::vector<index_t>{3, 3, 2, 2});
    CHECK(shares({}, {nan, 1, 1, 0}, caps, 10) == std::vector<index_t>{0, 5, 5, 0});
    CHECK(shares({}, {}, {}, 0).empty());
}

TEST_CASE("preference: a total above the caps is all of them", "[policy][regression]") {
    for (const auto rule : {preference_rule::exact, preference_rule::authors}) {
        for (const index_t total : {index_t{7}, index_t{8}, std::numeric_limits<index_t>::max()}) {
            CHECK(shares({.rule = rule}, {1, 2}, {3, 4}, total) == std::vector<index_t>{3, 4});
            CHECK(shares({.rule = rule}, {0, 0}, {3, 4}, total) == std::vector<index_t>{3, 4});
            CHECK(shares({.rule = rule}, {1, 2}, {0, 0}, total) == std::vector<index_t>{0, 0});
        }
    }
}

TEST_CASE("preference: the authors' rule too takes any preference, and sums of huge ones are finite",
          "[policy][odd]") {
    constexpr double nan = std::numeric_limits<double>::quiet_NaN();
    constexpr double infinity = std::numeric_limits<double>::infinity();
    const std::vector<index_t> caps(4, 100);
    const preference authors{.rule = preference_rule::authors};
    CHECK(shares(authors, {0, 0, 0, 0}, caps, 12) == std::vector<index_t>(4, 3));
    CHECK(shares(authors, {nan, infinity, -1, 0}, caps, 12) == std::vector<index_t>(4, 3));
    for (const index_t budget : shares(authors, {nan, 1, 1, -5}, caps, 10)) { CHECK(budget >= 0); }
    const index_t many = index_t{1} << 50;
    const std::vector<index_t> wide(2, many);
    CHECK(shares({}, {1e308, 1e308}, wide, many) == std::vector<index_t>(2, many / 2));
    CHECK(shares({}, {5e-324, 5e-324}, wide, many) == std::vector<index_t>(2, many / 2));
}

TEST_CASE(
    "preference: sizes that differ, negative numbers and too many tokens are refused, with nothing written",
    "[policy][errors]") {
    constexpr index_t most = std::numeric_limits<index_t>::max();
    std::vector<index_t> budgets(2, -7);
    const std::vector<double> preferences{1, 2, 3};
    const std::vector<index_t> caps{3, 4, 5};
    growing_workspace memory;
    const auto answer = [&](std::size_t p, std::span<const index_t> c, index_t total) {
        workspace scratch = memory.of_bytes(4096);
        const status s = preference{}.allocate(std::span(preferences).first(p), c, total, budgets, scratch);
        CHECK(budgets == std::vector<index_t>(2, -7));
        return s;
    };
    const auto two = std::span(caps).first(2);
    CHECK(answer(2, std::span(caps).first(1), 3).code() == errc::invalid_parameter);
    CHECK(answer(2, caps, 3).needed() == 2);
    CHECK(answer(1, two, 3).code() == errc::invalid_parameter);
    CHECK(answer(3, two, 3).code() == errc::invalid_parameter);
    CHECK(answer(2, two, -1).code() == errc::invalid_parameter);
    CHECK(answer(2, two, -most - 1).code() == errc::invalid_parameter);
    CHECK(answer(2, std::vector<index_t>{3, -4}, 1).code() == errc::invalid_parameter);
    CHECK(answer(2, std::vector<index_t>{most, most}, 1).code() == errc::index_overflow);
    workspace none(std::span<std::byte>{});
    CHECK(preference{}.allocate(std::span(preferences).first(2), two, 3, budgets, none).code() ==
          errc::workspace_too_small);
    CHECK(budgets == std::vector<index_t>(2, -7));
}

TEST_CASE("preference: with a floor every layer has its part of an even share, and the sum stays",
          "[policy]") {
    support::random r(918);
    for (int i = 0; i < 300; ++i) {
        const auto layers = static_cast<std::size_t>(r.between(1, 40));
        std::vector<double> preferences(layers);
        std::vector<index_t> caps(layers);
        for (std::size_t l = 0; l < layers; ++l) {
            preferences[l] = r.chance(0.2) ? 0.0 : r.uniform();
            caps[l] = r.between(0, 500);
        }
        const index_t total = r.between(0, sum_of(caps));
        const double ratio = r.uniform();
        CAPTURE(i, layers, total, ratio);
        const auto budgets = shares({.floor_ratio = ratio}, preferences, caps, total);
        CHECK(sum_of(budgets) == total);
        const double even = ratio * static_cast<double>(total) / static_cast<double>(layers);
        for (std::size_t l = 0; l < layers; ++l) {
            CHECK(static_cast<double>(budgets[l]) >=
                  std::floor(std::min(even, static_cast<double>(caps[l]))));
            CHECK(budgets[l] <= caps[l]);
        }
    }
    CHECK(shares({}, {0, 1}, {100, 100}, 100) == std::vector<index_t>{0, 100});
    CHECK(shares({.floor_ratio = 0.5}, {0, 1}, {100, 100}, 100) == std::vector<index_t>{25, 75});
    CHECK(shares({.floor_ratio = 1}, {0, 1}, {100, 100}, 100) == std::vector<index_t>{50, 50});
}

TEST_CASE("preference: caps of 2^53 tokens are dealt out, one token more is refused", "[policy][errors]") {
    growing_workspace memory;
    workspace scratch = memory.of_bytes(4096);
    const index_t half = index_t{1} << 52;
    std::vector<index_t> budgets(2, -7);
    const auto answer = [&](index_t second) {
        return preference{}.allocate(std::vector<double>{1, 1}, std::vector<index_t>{half, second}, 10,
                                     budgets, scratch);
    };
    CHECK(answer(half + 1).code() == errc::index_overflow);
    CHECK(answer(half + 1).needed() == 2 * half + 1);
    CHECK(budgets == std::vector<index_t>(2, -7));
    CHECK(answer(half).ok());
    CHECK(budgets == std::vector<index_t>(2, 5));
}

TEST_CASE("preference: a floor outside [0, 1] is named, with nothing written", "[policy][errors]") {
    growing_workspace memory;
    workspace scratch = memory.of_bytes(4096);
    for (const double bad : {-0.1, 1.1, std::numeric_limits<double>::quiet_NaN()}) {
        std::vector<index_t> budgets(3, -7);
        CHECK(preference{.floor_ratio = bad}
                  .allocate(std::vector<double>{1, 2, 3}, std::vector<index_t>{9, 9, 9}, 9, budgets, scratch)
                  .code() == errc::ratio_out_of_range);
        CHECK(budgets == std::vector<index_t>(3, -7));
    }
}
