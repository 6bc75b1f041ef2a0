// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/decode/cache_positions.hpp>

#include "support/states.hpp"

using namespace kvtrim;
using namespace support;

namespace {

std::vector<int> of(const cache_positions& cached, index_t head) {
    return {cached.positions(head).begin(), cached.positions(head).end()};
}

} // namespace

TEST_CASE("cache positions: every token keeps its place in the text through evictions", "[decode]") {
    cache_positions cached(2);
    REQUIRE(cached.append(5).ok());
    REQUIRE(cached.compact(plan_of({{0, 4}, {2, 3, 4}})).ok());
    REQUIRE(cached.append(2).ok());
    REQUIRE(cached.compact(plan_of({{1, 2, 3}, {0, 4}})).ok());
    CHECK(of(cached, 0) == std::vector<int>{4, 5, 6});
    CHECK(of(cached, 1) == std::vector<int>{2, 6});
    CHECK(cached.next_position() == 7);
}

TEST_CASE("cache positions: undone tokens give their positions to the next ones", "[decode]") {
    cache_positions cached(1);
    REQUIRE(cached.append(4).ok());
    REQUIRE(cached.rollback(2).ok());
    REQUIRE(cached.append(1).ok());
    CHECK(of(cached, 0) == std::vector<int>{0, 1, 2});
    CHECK(cached.next_position() == 3);
    REQUIRE(cached.compact(plan_of({{0, 1}})).ok());
    for (const index_t count : {index_t{1}, index_t{-1}, std::numeric_limits<index_t>::max()}) {
        const status s = cached.rollback(count);
        CHECK(s.code() == errc::invalid_parameter);
        CHECK(s.needed() == 0); // tokens that can be undone
        CHECK(of(cached, 0) == std::vector<int>{0, 1});
        CHECK(cached.next_position() == 3);
    }
}

TEST_CASE("cache positions: random lives equal a list of positions per head", "[decode][oracle]") {
    support::random r(71);
    for (int life = 0; life < 40; ++life) {
        const index_t heads = r.between(1, 3);
        cache_positions cached(heads, r.between(0, 10));
        std::vector<std::vector<int>> slow(static_cast<std::size_t>(heads));
        index_t next = 0;
        for (int step = 0; step < 30; ++step) {
            if (r.chance(0.6)) {
                const index_t count = r.between(0, 5);
                REQUIRE(cached.append(count).ok());
                for (auto& row : slow) {
                    for (index_t i = 0; i < count; ++i) { row.push_back(static_cast<int>(next + i)); }
                }
                next += count;
                const index_t undone = r.between(0, count);
                REQUIRE(cached.rollback(undone).ok());
                for (auto& row : slow) { row.resize(row.size() - static_cast<std::size_t>(undone)); }
                next -= undone;
            } else {
                std::vector<oracle::token_set> sets;
                for (auto& row : slow) {
                    oracle::token_set kept;
                    std::vector<int> left;
                    for (std::size_t t = 0; t < row.size(); ++t) {
                        if (r.chance(0.7)) { kept.push_back(t), left.push_back(row[t]); }
                    }
                    sets.push_back(kept);
                    row = left;
                }
                REQUIRE(cached.compact(plan_of(sets)).ok());
            }
            for (index_t g = 0; g < heads; ++g) { CHECK(of(cached, g) == slow[static_cast<std::size_t>(g)]); }
            CHECK(cached.next_position() == next);
        }
        cache_positions restored(0);
        REQUIRE(restore(restored, bytes_of(cached)).ok());
        for (index_t g = 0; g < heads; ++g) { CHECK(of(restored, g) == slow[static_cast<std::size_t>(g)]); }
        CHECK(restored.next_position() == next);
    }
}

TEST_CASE("cache positions: damaged bytes are refused or harmless, those of another state refused",
          "[decode]") {
    cache_positions cached(2);
    REQUIRE(cached.append(3).ok());
    check_damaged_bytes(cached, cache_positions(1), 60, true, [](cache_positions& state) {
        static_cast<void>(state.append(1));
        static_cast<void>(state.close_up());
        static_cast<void>(state.rollback(1));
    });
    CHECK(restore(cached, bytes_of(token_rows<int>(2))).code() == errc::invalid_parameter);
    CHECK(of(cached, 1) == std::vector<int>{0, 1, 2});
}

TEST_CASE("cache positions: wrong numbers are named with nothing changed", "[decode][errors]") {
    cache_positions cached(0);
    constexpr index_t most_positions = std::numeric_limits<std::int32_t>::max();
    REQUIRE(cached.append(most_positions).ok());
    CHECK(cached.append(1).code() == errc::index_overflow);
    CHECK(cached.append(1).needed() == most_positions + 1);
    constexpr index_t most = std::numeric_limits<index_t>::max();
    CHECK(cached.append(most).code() == errc::index_overflow);
    CHECK(cached.append(most).needed() == most);
    CHECK(cached.append(most - most_positions).needed() == most);
    CHECK(cached.append(most - most_positions - 1).needed() == most - 1);
    CHECK(cached.append(-1).code() == errc::invalid_parameter);
    CHECK(cached.next_position() == most_positions);
    for (const auto& [heads, reserved] :
         {std::pair<index_t, index_t>{-1, 0}, {1, -1}, {index_t{1} << 62, 8}, {8, index_t{1} << 62}}) {
        cache_positions wrong(heads, reserved);
        CHECK(!wrong.validate().ok());
        CHECK(wrong.kv_heads() == 0);
        CHECK(wrong.append(1) == wrong.validate());
        CHECK(wrong.rollback(0) == wrong.validate());
        CHECK(wrong.compact(keep_plan{}) == wrong.validate());
        CHECK(wrong.close_up() == wrong.validate());
        CHECK(wrong.next_position() == 0);
    }
}
