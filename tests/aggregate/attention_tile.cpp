// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/aggregate/attention_tile.hpp>

#include "support/catch.hpp"
#include "support/random_layer.hpp"

#include <limits>
#include <tuple>

using namespace kvtrim;

TEST_CASE("attention_head: observers counts the queries that see a column", "[aggregate][oracle]") {
    support::random r(61);
    for (int i = 0; i < 300; ++i) {
        const index_t tokens = r.between(1, 40);
        const index_t queries = r.between(1, tokens);
        const index_t rollback = r.between(0, tokens - queries);
        const index_t window = r.chance(0.5) ? r.between(1, tokens + 3) : 0;
        const index_t begin = r.between(0, tokens - 1);
        const attention_head head{1, queries, tokens - begin, begin, tokens - rollback - queries, window};
        oracle::attention_setup setup;
        setup.sliding_window = static_cast<std::size_t>(window);
        setup.rollback_tokens = static_cast<std::size_t>(rollback);
        for (index_t c = 0; c < head.candidates; ++c) {
            index_t seen = 0;
            for (index_t q = 0; q < queries; ++q) {
                seen +=
                    oracle::sees(setup, static_cast<std::size_t>(tokens), static_cast<std::size_t>(queries),
                                 static_cast<std::size_t>(q), static_cast<std::size_t>(begin + c));
            }
            CAPTURE(tokens, queries, rollback, window, begin, c);
            REQUIRE(head.observers(c) == seen);
        }
    }
}

TEST_CASE("attention_head: a sliding window of any width is a count, not an overflow", "[aggregate]") {
    constexpr index_t most = std::numeric_limits<index_t>::max();
    for (const index_t window : {most, most - 5, index_t{10}}) {
        const attention_head head{1, 4, 8, 2, 6, window};
        CHECK(head.observers(0) == 4);
        CHECK(head.observers(7) == 1);
    }
}

TEST_CASE("attention_tile: its rows are handed out query head by query head", "[aggregate]") {
    const attention_head head{3, 4, 10, 0, 6, 0};
    using run = std::tuple<index_t, index_t, index_t>;
    const auto runs = [&](index_t first_row, index_t query_rows) {
        const attention_tile tile{nullptr, nullptr, query_rows, first_row, 0, 0, 0, 0, head};
        std::vector<run> result;
        tile.for_each_query_head(
            [&](index_t h, index_t begin, index_t end) { result.emplace_back(h, begin, end); });
        return result;
    };
    CHECK(runs(0, 12) == std::vector<run>{{0, 0, 4}, {1, 4, 8}, {2, 8, 12}});
    CHECK(runs(3, 6) == std::vector<run>{{0, 0, 1}, {1, 1, 5}, {2, 5, 6}});
    CHECK(runs(5, 2) == std::vector<run>{{1, 0, 2}});
    CHECK(runs(8, 4) == std::vector<run>{{2, 0, 4}});
}

TEST_CASE("attention_tile: columns before and after the tile are within reach", "[aggregate]") {
    const std::vector<float> attention{0, 1, 10, 11, 20, 21, 30, 31, 40, 41};
    const attention_tile tile{attention.data(), nullptr, 2, 0, 7, 2, 1, 2, {1, 2, 20, 0, 18, 0}};
    CHECK(tile.column(-1)[0] == 0);
    CHECK(tile.column(0)[1] == 11);
    CHECK(tile.column(3)[1] == 41);
}

TEST_CASE("attention_tile: the highest pooled attention counts columns of the halo, and never falls",
          "[aggregate]") {
    const std::vector<float> attention{1, 2, 3, 0, 0, 5, 1, 1, 4, 0}; // five columns of two rows
    const attention_tile tile{attention.data(), nullptr, 2, 0, 7, 2, 1, 2, {1, 2, 20, 0, 18, 0}};
    const float weights[] = {1, 0.5f};
    std::vector<float> best{0, 100};
    tile.raise_to_pooled(1, weights, best.data());
    CHECK(best == std::vector<float>{4, 100}); // columns 0 to 2: rows 4 and 7 / 2
    best = {0, 0};
    tile.raise_to_pooled(2, weights, best.data());
    CHECK(best == std::vector<float>{5, 9}); // columns 0 to 3: rows 5 and 8 / 2; 0 to 4: 9 and 8 / 2
    static_assert(attention_tile::most_query_rows >= 2);
}
