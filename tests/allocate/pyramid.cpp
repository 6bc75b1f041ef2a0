// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/allocate/pyramid.hpp>

#include "support/allocate.hpp"

#include <cmath>

using namespace kvtrim;
using namespace support;

namespace {

status pyramid_budgets(const pyramid& p, index_t tokens, index_t window, double kept,
                       std::vector<index_t>& budgets) {
    growing_workspace memory;
    workspace scratch = memory.of_bytes(p.workspace_bytes(std::ssize(budgets)));
    return p.allocate(tokens, window, kept, budgets, scratch);
}

std::vector<index_t> pyramid_of(const pyramid& p, index_t layers, index_t tokens, index_t window,
                                index_t kept) {
    std::vector<index_t> budgets(static_cast<std::size_t>(layers), -7);
    REQUIRE(pyramid_budgets(p, tokens, window, static_cast<double>(kept), budgets).ok());
    return budgets;
}

} // namespace

TEST_CASE("pyramid: budgets fall, hold the window, and sum exactly to what all layers keep", "[policy]") {
    support::random r(911);
    for (int i = 0; i < 500; ++i) {
        const index_t layers = r.between(1, 40);
        const index_t tokens = r.between(1, 3000);
        const index_t window = r.between(0, std::min<index_t>(64, tokens));
        const index_t kept = r.between(std::max<index_t>(1, window), tokens + 50);
        const pyramid p{.beta = r.one_of({1.0, 2.0, 5.0, 20.0, 100.0})};
        CAPTURE(i, layers, tokens, window, kept, p.beta);
        const auto budgets = pyramid_of(p, layers, tokens, window, kept);
        CHECK(sum_of(budgets) == layers * std::min(kept, tokens));
        for (std::size_t l = 0; l < budgets.size(); ++l) {
            CHECK(budgets[l] >= window);
            CHECK(budgets[l] <= tokens);
            if (l > 0) { CHECK(budgets[l] <= budgets[l - 1] + 1); }
        }
    }
}

TEST_CASE("pyramid: one layer keeps what it is asked to, and no prompt leaves its budgets to the next",
          "[policy]") {
    CHECK(pyramid_of({}, 1, 100, 8, 40) == std::vector<index_t>{40});
    for (const auto schedule :
         {pyramid_schedule::adakv, pyramid_schedule::kvcache_factory, pyramid_schedule::kvpress}) {
        CHECK(pyramid_of({.schedule = schedule}, 1, 100, 8, 40) == std::vector<index_t>{40});
    }
    const auto expected = pyramid_of({}, 4, 2000, 32, 500);
    static_cast<void>(pyramid_of({}, 4, 300, 32, 500));
    CHECK(pyramid_of({}, 4, 2000, 32, 500) == expected);
}

TEST_CASE("pyramid: the references' totals drift, the exact schedule's does not", "[policy][reference]") {
    // A step of 0: every layer gets the top of the pyramid.
    CHECK(sum_of(pyramid_of({.schedule = pyramid_schedule::adakv}, 32, 2000, 8, 23)) == 32 * (8 + 30));
    CHECK(sum_of(pyramid_of({}, 32, 2000, 8, 23)) == 32 * 23);
}

TEST_CASE("pyramid: bad input is refused with the budgets as they were", "[policy][errors]") {
    const auto answer = [](const pyramid& p, index_t tokens, index_t window, double kept) {
        std::vector<index_t> budgets(3, -7);
        const status s = pyramid_budgets(p, tokens, window, kept, budgets);
        CHECK(budgets == std::vector<index_t>(3, -7));
        return s;
    };
    CHECK(answer({.beta = 0.5}, 100, 8, 40).code() == errc::invalid_parameter);
    CHECK(answer({.beta = std::numeric_limits<double>::quiet_NaN()}, 100, 8, 40).code() ==
          errc::invalid_parameter);
    CHECK(answer({}, 100, 8, 0).code() == errc::budget_zero);
    CHECK(answer({}, 100, 8, std::numeric_limits<double>::quiet_NaN()).code() == errc::budget_zero);
    CHECK(answer({}, 100, 101, 99).code() == errc::budget_below_protection); // the window is the prompt
    CHECK(answer({}, 100, 101, 99).needed() == 100);
    constexpr index_t most = std::numeric_limits<index_t>::max();
    for (const index_t negative : {index_t{-1}, -most - 1}) {
        CHECK(answer({}, 100, negative, 40).code() == errc::invalid_parameter);
        CHECK(answer({}, negative, 8, 40).code() == errc::invalid_parameter);
    }
    for (const index_t tokens : {index_t{1} << 31, most}) {
        CHECK(answer({}, tokens, 8, 40).code() == errc::index_overflow);
        CHECK(answer({}, tokens, 8, 40).needed() == tokens);
    }
    CHECK(answer({.schedule = pyramid_schedule::kvpress}, 4, 5, 3).code() == errc::budget_below_protection);
    CHECK(answer({}, 100, 41, 40).code() == errc::budget_below_protection);
    CHECK(answer({}, 100, 41, 40).needed() == 41);
    std::vector<index_t> budgets(3, -7);
    workspace none(std::span<std::byte>{});
    CHECK(pyramid{}.allocate(100, 8, 40, budgets, none).code() == errc::workspace_too_small);
    CHECK(budgets == std::vector<index_t>(3, -7));
    std::vector<index_t> no_layers;
    CHECK(pyramid_budgets({}, 100, 8, 40, no_layers).ok());
}

TEST_CASE("pyramid: a prompt shorter than the window is kept whole in every layer and schedule",
          "[policy][regression]") {
    for (const auto schedule : {pyramid_schedule::exact, pyramid_schedule::adakv,
                                pyramid_schedule::kvcache_factory, pyramid_schedule::kvpress}) {
        const pyramid p{.schedule = schedule};
        for (const index_t window : {index_t{9}, index_t{32}, std::numeric_limits<index_t>::max()}) {
            for (const index_t tokens : {0, 1, 7, 8}) {
                for (const index_t kept : {index_t{8}, index_t{40}, index_t{1} << 40}) {
                    CHECK(pyramid_of(p, 3, tokens, window, kept) == std::vector<index_t>(3, tokens));
                }
            }
        }
        for (const index_t tokens : {8, 9, 20}) { // within the budget, though not within the window
            for (const index_t budget : pyramid_of(p, 3, tokens, 8, 64)) { CHECK(budget >= tokens); }
        }
    }
}

TEST_CASE("pyramid: numbers as large as they go give budgets, not an overflow", "[policy][odd]") {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    const index_t tokens = std::numeric_limits<std::int32_t>::max();
    for (const auto schedule : {pyramid_schedule::exact, pyramid_schedule::adakv,
                                pyramid_schedule::kvcache_factory, pyramid_schedule::kvpress}) {
        for (const double kept : {1e3, 1e300, infinity}) {
            for (const double beta : {1.0, 1e18, 1e300}) {
                std::vector<index_t> budgets(3, -7);
                REQUIRE(
                    pyramid_budgets({.beta = beta, .schedule = schedule}, tokens, 64, kept, budgets).ok());
                for (const index_t budget : budgets) { CHECK(budget >= (kept > 1e3 ? tokens : 0)); }
            }
        }
    }
}

TEST_CASE("pyramid: with a floor every layer has its part of an even share, and the sum stays", "[policy]") {
    support::random r(917);
    for (int i = 0; i < 300; ++i) {
        const index_t layers = r.between(1, 40), tokens = r.between(1, 3000);
        const index_t window = r.between(0, std::min<index_t>(64, tokens));
        const index_t kept = r.between(std::max<index_t>(1, window), tokens + 50);
        const double ratio = r.uniform();
        CAPTURE(i, layers, tokens, window, kept, ratio);
        const auto budgets = pyramid_of({.floor_ratio = ratio}, layers, tokens, window, kept);
        const index_t base = std::min(kept, tokens) - window;
        CHECK(sum_of(budgets) == layers * (base + window));
        for (std::size_t l = 0; l < budgets.size(); ++l) {
            CHECK(static_cast<double>(budgets[l] - window) >= std::floor(ratio * static_cast<double>(base)));
            CHECK(budgets[l] <= tokens);
            if (l > 0) { CHECK(budgets[l] <= budgets[l - 1] + 1); }
        }
    }
    CHECK(pyramid_of({.floor_ratio = 1}, 4, 1000, 10, 110) == std::vector<index_t>(4, 110));
}

TEST_CASE("pyramid: a floor outside [0, 1] is named, with nothing written", "[policy][errors]") {
    growing_workspace memory;
    workspace scratch = memory.of_bytes(4096);
    for (const double bad : {-0.1, 1.1, std::numeric_limits<double>::quiet_NaN()}) {
        std::vector<index_t> budgets(3, -7);
        CHECK(pyramid{.floor_ratio = bad}.allocate(100, 4, 20, budgets, scratch).code() ==
              errc::ratio_out_of_range);
        CHECK(budgets == std::vector<index_t>(3, -7));
    }
}
