// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/plan/find_top_k.hpp>

#include "support/checks.hpp"
#include "support/special_floats.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace {

using namespace kvtrim;
using support::infinity;
using support::not_a_number;

// Whether a ranks above b, by the words of the header.
bool above(float a, float b) {
    if (std::isnan(a)) { return false; }
    return std::isnan(b) || a > b;
}

struct rows {
    std::vector<index_t> offsets{0};
    std::vector<float> values;

    void add(const std::vector<float>& row) {
        values.insert(values.end(), row.begin(), row.end());
        offsets.push_back(static_cast<index_t>(values.size()));
    }
    [[nodiscard]] score_rows get() { return {offsets, values}; }
};

using flat_indices = std::vector<index_t>;

// The k best flat indices of the rows in use, ascending.
template <class UseRow>
flat_indices naive(const score_rows& scores, index_t k, UseRow&& use_row) {
    flat_indices order;
    for (index_t r = 0; r < scores.rows(); ++r) {
        if (!use_row(r)) { continue; }
        for (index_t c = 0; c < scores.length(r); ++c) {
            order.push_back(scores.offsets[static_cast<std::size_t>(r)] + c);
        }
    }
    std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) {
        return above(scores.values[static_cast<std::size_t>(a)], scores.values[static_cast<std::size_t>(b)]);
    });
    order.resize(static_cast<std::size_t>(k));
    std::sort(order.begin(), order.end());
    return order;
}

// The same by the cut; empty and wrong if counting and walking disagree.
template <class UseRow>
flat_indices selected(const score_rows& scores, index_t k, UseRow&& use_row) {
    const top_k_cut cut = find_top_k(scores, k, use_row);
    top_k_cut walking = cut;
    top_k_cut counting = cut;
    flat_indices chosen;
    for (index_t r = 0; r < scores.rows(); ++r) {
        if (!use_row(r)) { continue; }
        const std::size_t before = chosen.size();
        for_each_above(scores.row(r), walking,
                       [&](index_t c) { chosen.push_back(scores.offsets[static_cast<std::size_t>(r)] + c); });
        const bool same =
            count_above(scores.row(r), counting) == static_cast<index_t>(chosen.size() - before);
        if (!same || walking.ties != counting.ties) { return {-1}; }
    }
    return chosen;
}

std::vector<float> random_scores(support::random& r, index_t length) {
    const int kind = static_cast<int>(r.between(0, 4));
    std::vector<float> row;
    for (index_t c = 0; c < length; ++c) {
        const auto size = static_cast<float>(std::exp(20 * r.uniform() - 10));
        switch (kind) {
        case 0:
            row.push_back(r.chance(0.5) ? size : -size);
            break;
        case 1:
            row.push_back(static_cast<float>(r.between(-2, 2)));
            break; // ties everywhere
        case 2:
            row.push_back(0.25f);
            break; // all equal
        case 3:
            row.push_back(
                r.one_of({not_a_number, -not_a_number, infinity, -infinity, 0.0f, -0.0f, 1.0f, -1.0f,
                          std::numeric_limits<float>::denorm_min(), std::numeric_limits<float>::max(),
                          std::numeric_limits<float>::lowest()}));
            break;
        default: // neighbours in the last bits
            row.push_back(std::bit_cast<float>(0x3f800000u + static_cast<std::uint32_t>(r.between(0, 9))));
        }
    }
    return row;
}

const auto every_row = [](index_t) { return true; };

} // namespace

TEST_CASE("ordered_bits: integers have the order of the scores", "[attention]") {
    const std::vector<float> ascending{-infinity,
                                       std::numeric_limits<float>::lowest(),
                                       -1.0f,
                                       -std::numeric_limits<float>::denorm_min(),
                                       0.0f,
                                       std::numeric_limits<float>::denorm_min(),
                                       std::numeric_limits<float>::min(),
                                       1.0f,
                                       std::numeric_limits<float>::max(),
                                       infinity};
    for (std::size_t i = 1; i < ascending.size(); ++i) {
        CHECK(ordered_bits(ascending[i - 1]) < ordered_bits(ascending[i]));
    }
    CHECK(ordered_bits(-0.0f) == ordered_bits(0.0f));
    CHECK(ordered_bits(not_a_number) == 0);
    CHECK(ordered_bits(-not_a_number) == 0);
    CHECK(ordered_bits(-infinity) > 0);
    support::random r(3);
    int wrong = 0;
    for (int i = 0; i < 100000; ++i) {
        const auto a = std::bit_cast<float>(static_cast<std::uint32_t>(r.bits()));
        const auto b = std::bit_cast<float>(static_cast<std::uint32_t>(r.bits()));
        wrong += above(a, b) == (ordered_bits(a) > ordered_bits(b)) ? 0 : 1;
    }
    CHECK(wrong == 0);
}

TEST_CASE("find_top_k: it selects what sorting selects, for any rows, ties and odd scores",
          "[attention][oracle]") {
    support::random r(1);
    for (int round = 0; round < 400; ++round) {
        rows scores;
        for (index_t i = r.between(1, 6); i > 0; --i) { scores.add(random_scores(r, r.between(0, 60))); }
        const std::uint64_t used = round % 2 == 0 ? ~std::uint64_t{0} : r.bits();
        const auto use_row = [&](index_t row) { return (used >> row & 1) != 0; };
        index_t length = 0;
        for (index_t row = 0; row < scores.get().rows(); ++row) {
            length += use_row(row) ? scores.get().length(row) : 0;
        }
        for (const index_t k : {index_t{0}, index_t{1}, r.between(0, length), length - 1, length}) {
            if (k < 0 || k > length) { continue; }
            CAPTURE(round, k);
            CHECK(selected(scores.get(), k, use_row) == naive(scores.get(), k, use_row));
        }
    }
}

TEST_CASE("find_top_k: one long row is cut as sorting cuts it", "[attention][oracle]") {
    support::random r(2);
    for (const index_t length : {5000, 70000}) {
        rows scores;
        std::vector<float> row;
        for (index_t c = 0; c < length; ++c) { row.push_back(static_cast<float>(std::exp(4 * r.normal()))); }
        scores.add(row);
        for (const index_t k : {index_t{1}, length / 10, length - 1}) {
            const flat_indices expected = naive(scores.get(), k, every_row);
            CHECK(selected(scores.get(), k, every_row) == expected);
            top_k_cut cut = find_top_k(std::span(scores.values), k);
            flat_indices alone;
            for_each_above(scores.values, cut, [&](index_t c) { alone.push_back(c); });
            CHECK(alone == expected);
        }
    }
}

TEST_CASE("find_top_k: a sample that says nothing about the rows costs time, not exactness",
          "[attention][oracle]") {
    support::random r(3);
    for (int kind = 0; kind < 5; ++kind) {
        rows scores;
        for (const index_t length : {20000, 0, 13001}) {
            std::vector<float> row;
            for (index_t c = 0; c < length; ++c) {
                const auto any = static_cast<float>(r.normal());
                const bool sampled = c % 128 == 0; // of the first row, as it happens
                const float choices[]{sampled ? 9.0f : any, sampled ? -9.0f : any, sampled ? any : 1.0f, 2.0f,
                                      sampled ? not_a_number : any};
                row.push_back(choices[kind]);
            }
            scores.add(row);
        }
        for (const index_t k : {1, 150, 156, 157, 300, 20000, 33000, 33001}) {
            CAPTURE(kind, k);
            CHECK(selected(scores.get(), k, every_row) == naive(scores.get(), k, every_row));
        }
    }
}

TEST_CASE("find_top_k: the cut of another row is taken where it is this row's, and not where it is not",
          "[attention]") {
    support::random r(4);
    for (int round = 0; round < 300; ++round) {
        std::vector<float> row = random_scores(r, r.between(1, 40));
        const auto length = static_cast<index_t>(row.size());
        const float other = r.chance(0.7) ? row[static_cast<std::size_t>(r.between(0, length - 1))] : 0.5f;
        const index_t k = r.between(0, length);
        top_k_cut guessed = find_top_k(std::span(row), k, ordered_bits(other)),
                  found = find_top_k(std::span(row), k);
        flat_indices a, b;
        for_each_above(row, guessed, [&](index_t c) { a.push_back(c); });
        for_each_above(row, found, [&](index_t c) { b.push_back(c); });
        CAPTURE(round, k);
        CHECK(a == b);
        CHECK(static_cast<index_t>(a.size()) == k);
    }
}

TEST_CASE("find_top_k: of equal scores those with the lower flat index are in, row by row", "[attention]") {
    rows scores;
    scores.add({1, 2, 1, 2});
    scores.add({2, 1, 2});
    CHECK(selected(scores.get(), 3, every_row) == flat_indices{1, 3, 4});
    CHECK(selected(scores.get(), 5, every_row) == flat_indices{0, 1, 3, 4, 6});
    CHECK(selected(scores.get(), 3, [](index_t row) { return row == 1; }) == flat_indices{4, 5, 6});
}

TEST_CASE("find_top_k: plus and minus zero tie, NaN of either sign is last", "[attention]") {
    rows scores;
    scores.add({-0.0f, 0.0f, -0.0f, not_a_number, -infinity, -not_a_number, not_a_number});
    CHECK(selected(scores.get(), 1, every_row) == flat_indices{0});
    CHECK(selected(scores.get(), 2, every_row) == flat_indices{0, 1});
    CHECK(selected(scores.get(), 4, every_row) == flat_indices{0, 1, 2, 4});
    CHECK(selected(scores.get(), 6, every_row) == flat_indices{0, 1, 2, 3, 4, 5});
}

TEST_CASE("find_top_k: of rows that are sampled nothing behind their end is read", "[attention]") {
    std::vector<float> row(128 * 128); // the last sample is a whole step from the end
    for (std::size_t i = 0; i < row.size(); ++i) { row[i] = static_cast<float>(i * 7919 % row.size()); }
    rows scores;
    scores.add(row);
    CHECK(selected(scores.get(), 5000, every_row) == naive(scores.get(), 5000, every_row));
}

TEST_CASE("find_top_k: none of none is nothing", "[attention]") {
    rows scores;
    scores.add({});
    CHECK(selected(scores.get(), 0, every_row).empty());
    scores.add({infinity, not_a_number});
    CHECK(selected(scores.get(), 0, every_row).empty());
    CHECK(selected(scores.get(), 0, [](index_t) { return false; }).empty());
}

TEST_CASE("find_top_k: more than there is counts as all, less than nothing as none", "[attention][errors]") {
    rows scores;
    scores.add({1, 2, 3});
    scores.add({4});
    for (const index_t k : {index_t{4}, index_t{5}, std::numeric_limits<index_t>::max()}) {
        CHECK(selected(scores.get(), k, every_row) == flat_indices{0, 1, 2, 3});
        CHECK(selected(scores.get(), k, [](index_t row) { return row == 0; }) == flat_indices{0, 1, 2});
        top_k_cut cut = find_top_k(std::span(scores.values), k);
        CHECK(count_above(scores.values, cut) == 4);
    }
    for (const index_t k : {index_t{-1}, std::numeric_limits<index_t>::min()}) {
        CHECK(selected(scores.get(), k, every_row).empty());
        top_k_cut cut = find_top_k(std::span(scores.values), k);
        CHECK(count_above(scores.values, cut) == 0);
    }
}

TEST_CASE("A sample is cut at its exact rank in any order, sorted, turned and of equal numbers too",
          "[plan]") {
    constexpr std::size_t count = 300;
    std::vector<std::vector<std::uint32_t>> orders(5, std::vector<std::uint32_t>(count));
    for (std::size_t i = 0; i < count; ++i) {
        const auto n = static_cast<std::uint32_t>(i);
        orders[0][i] = n;
        orders[1][i] = 1000 - n;
        orders[2][i] = 7;
        orders[3][i] = i < count / 2 ? n : 1000 - n;
        orders[4][i] = n * 2654435761u >> (i % 3 == 0 ? 0 : 28);
    }
    for (const auto& order : orders) {
        for (const std::size_t length : {std::size_t{1}, std::size_t{2}, std::size_t{3}, count}) {
            std::vector<std::uint32_t> expected(order.begin(),
                                                order.begin() + static_cast<std::ptrdiff_t>(length));
            std::sort(expected.rbegin(), expected.rend());
            for (std::size_t rank = 0; rank < length; ++rank) {
                std::vector<std::uint32_t> list(order.begin(),
                                                order.begin() + static_cast<std::ptrdiff_t>(length));
                detail::select_descending(list, static_cast<index_t>(rank));
                REQUIRE(list[rank] == expected[rank]);
                const auto at = list.begin() + static_cast<std::ptrdiff_t>(rank);
                REQUIRE(std::all_of(list.begin(), at, [&](std::uint32_t x) { return x >= *at; }));
            }
        }
    }
}
