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
    cached.append(5);
    REQUIRE(cached.compact(plan_of({{0, 4}, {2, 3, 4}})).ok());
    cached.append(2);
    REQUIRE(cached.compact(plan_of({{1, 2, 3}, {0, 4}})).ok());
    CHECK(of(cached, 0) == std::vector<int>{4, 5, 6});
    CHECK(of(cached, 1) == std::vector<int>{2, 6});
    CHECK(cached.next_position() == 7);
}

TEST_CASE("cache positions: undone tokens give their positions to the next ones", "[decode]") {
    cache_positions cached(1);
    cached.append(4);
    cached.rollback(2);
    cached.append(1);
    CHECK(of(cached, 0) == std::vector<int>{0, 1, 2});
    CHECK(cached.next_position() == 3);
    REQUIRE(cached.compact(plan_of({{0, 1}})).ok());
    CHECK(violation_of([&] { cached.rollback(1); }).find("cannot be undone") != std::string::npos);
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
                cached.append(count);
                for (auto& row : slow) {
                    for (index_t i = 0; i < count; ++i) { row.push_back(static_cast<int>(next + i)); }
                }
                next += count;
                const index_t undone = r.between(0, count);
                cached.rollback(undone);
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
    cached.append(3);
    check_damaged_bytes(cached, cache_positions(1), 60);
    CHECK(restore(cached, bytes_of(token_rows<int>(2))).code() == errc::invalid_parameter);
    CHECK(of(cached, 1) == std::vector<int>{0, 1, 2});
}

TEST_CASE("cache positions: 2^31 tokens break the contract", "[decode][contract]") {
    cache_positions cached(0);
    cached.append(std::numeric_limits<std::int32_t>::max());
    CHECK(violation_of([&] { cached.append(1); }) == "cache_positions: a position must be below 2^31");
}
