// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/allocate/round_to_total.hpp>

#include "support/checks.hpp"

#include <algorithm>
#include <array>
#include <numeric>
#include <vector>

namespace {

using namespace kvtrim;
using counts = std::vector<index_t>;

constexpr index_t no_cap = 1000000;

counts rounded(const std::vector<double>& ideal, const counts& caps, index_t total) {
    growing_workspace memory;
    workspace counting = workspace::counting();
    static_cast<void>(counting.take<index_t>(static_cast<index_t>(ideal.size())));
    workspace scratch = memory.of_bytes(counting.needed_bytes());
    counts out(ideal.size(), -7);
    if (!round_to_total(ideal, caps, total, out, scratch).ok()) { out.clear(); }
    return out;
}

counts rounded(const std::vector<double>& ideal, index_t total) {
    return rounded(ideal, counts(ideal.size(), no_cap), total);
}

// The shares numerators[i] / denominator in integer arithmetic: no rounding of any kind.
counts exact(const counts& numerators, index_t denominator, const counts& caps, index_t total) {
    counts out;
    for (std::size_t i = 0; i < numerators.size(); ++i) {
        out.push_back(std::min(caps[i], numerators[i] / denominator));
    }
    counts order(numerators.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) {
        return numerators[static_cast<std::size_t>(a)] % denominator >
               numerators[static_cast<std::size_t>(b)] % denominator;
    });
    for (std::size_t i = 0; std::accumulate(out.begin(), out.end(), index_t{0}) < total; ++i) {
        const auto row = static_cast<std::size_t>(order[i % order.size()]);
        if (out[row] < caps[row]) { ++out[row]; }
    }
    return out;
}

} // namespace

TEST_CASE("round_to_total: it equals integer arithmetic, sums to the total and respects the caps",
          "[attention][oracle]") {
    support::random r(1);
    for (int round = 0; round < 1000; ++round) {
        const auto row_count = static_cast<std::size_t>(r.between(1, 40));
        const index_t denominator = r.between(1, 997);
        counts numerators;
        counts caps;
        std::vector<double> ideal;
        for (std::size_t i = 0; i < row_count; ++i) {
            numerators.push_back(r.chance(0.1) ? 0 : r.between(0, 200 * denominator));
            ideal.push_back(static_cast<double>(numerators.back()) / static_cast<double>(denominator));
            caps.push_back(r.chance(0.7) ? no_cap : r.between(0, 200));
        }
        // The shares need not sum to the total: any total that floors and caps allow.
        index_t floors = 0;
        index_t room = 0;
        for (std::size_t i = 0; i < row_count; ++i) {
            floors += std::min(caps[i], numerators[i] / denominator);
            room += caps[i];
        }
        const index_t total = std::min(room, floors + r.between(0, 2 * static_cast<index_t>(row_count)));
        const counts out = rounded(ideal, caps, total);
        CAPTURE(round, total);
        CHECK(out == exact(numerators, denominator, caps, total));
        CHECK(std::accumulate(out.begin(), out.end(), index_t{0}) == total);
    }
}

TEST_CASE("round_to_total: equal fractions go to the lower row", "[attention]") {
    CHECK(rounded({1.5, 1.5, 1.5, 1.5}, 6) == counts{2, 2, 1, 1});
    CHECK(rounded({0.25, 0.75, 0.25, 0.75}, 2) == counts{0, 1, 0, 1});
    CHECK(rounded({0.25, 0.75, 0.25, 0.75}, 3) == counts{1, 1, 0, 1});
}

TEST_CASE("round_to_total: rounding noise in a share decides nothing", "[attention]") {
    CHECK(rounded({0.1 + 0.2, 0.3, 0.4}, 1) == counts{0, 0, 1});
    CHECK(rounded({0.3, 0.1 + 0.2, 0.4}, 2) == counts{1, 0, 1}); // 0.30000000000000004 ties with 0.3
    CHECK(rounded({2.9999999999, 1.0}, 4) == counts{3, 1});      // counts as whole
    // ... so that its fourth unit comes before the second of the last row.
    CHECK(rounded({2.9999999999, 1.5, 1.0}, 7) == counts{4, 2, 1});
    CHECK(rounded({10 * 0.29999999999999999, 7}, 10) == counts{3, 7});
}

TEST_CASE("round_to_total: what a full row can not take goes to the next, as often as needed",
          "[attention]") {
    CHECK(rounded({5.9, 0.1, 0.0}, {5, 10, 10}, 6) == counts{5, 1, 0});
    CHECK(rounded({5.0, 5.0, 0.0}, {1, 1, 10}, 10) == counts{1, 1, 8});
    CHECK(rounded({1.0}, {9}, 9) == counts{9});
    CHECK(rounded({}, 0).empty());
}

TEST_CASE("round_to_total: without workspace it says how much it needs and writes nothing", "[attention]") {
    workspace none({});
    counts out{-7, -7};
    const status s = round_to_total(std::vector<double>{1, 1}, counts{5, 5}, 2, out, none);
    CHECK(s.code() == errc::workspace_too_small);
    CHECK(s.needed() == 128);
    CHECK(out == counts{-7, -7});
}

TEST_CASE(
    "round_to_total: sizes that differ, shares that are none and caps below the total are refused, with "
    "nothing written",
    "[attention][errors]") {
    std::vector<std::byte> memory(1024);
    workspace scratch(memory);
    counts out{-7, -7};
    const auto answer = [&](const std::vector<double>& ideal, const counts& caps) {
        return std::string(round_to_total(ideal, caps, 9, out, scratch).what());
    };
    CHECK(answer({1, 1, 1}, {5, 5, 5}) == "round_to_total: sizes must agree");
    CHECK(answer({1, 1}, {5, 5, 5}) == "round_to_total: sizes must agree");
    CHECK(answer({1, 1}, {4, 4}) == "round_to_total: the caps are below the total");
    constexpr index_t most = std::numeric_limits<index_t>::max();
    CHECK(answer({1, 1}, {most, -1}) == "round_to_total: a cap must not be negative");
    for (const double share : {-1.0, 1e300, std::numeric_limits<double>::quiet_NaN()}) {
        CHECK(answer({1, share}, {9, 9}) == "round_to_total: a share must not be negative or NaN");
    }
    CHECK(out == counts{-7, -7});
    CHECK(answer({1, 1}, {5, 4}) == "ok");
    CHECK(out == counts{5, 4});
    CHECK(answer({1, 1}, {most, most}) == "ok"); // caps are not added past 64 bits
    CHECK(out == counts{5, 4});
}
