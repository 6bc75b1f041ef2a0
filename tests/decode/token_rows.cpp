// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/decode/token_rows.hpp>

#include "support/states.hpp"

using namespace kvtrim;
using namespace support;

namespace {

std::vector<int> row_of(const token_rows<int>& rows, index_t head) {
    return {rows.row(head).begin(), rows.row(head).end()};
}

constexpr index_t most = std::numeric_limits<index_t>::max();
constexpr index_t least = std::numeric_limits<index_t>::min();

void append(token_rows<int>& rows, index_t count, int first) {
    REQUIRE(rows.append(count, [&](index_t i) { return first + static_cast<int>(i); }).ok());
}

// What a cache's life asks of a state that came from bytes of unknown origin.
void use(token_rows<int>& rows) {
    const index_t undone = rows.droppable_tokens();
    CHECK(rows.append(2, [](index_t) { return 3; }).ok());
    CHECK(rows.drop_newest(undone + 2).ok());
    std::vector<oracle::token_set> every_other(static_cast<std::size_t>(rows.kv_heads()));
    for (index_t g = 0; g < rows.kv_heads(); ++g) {
        for (index_t t = 0; t < rows.tokens(g); t += 2) {
            every_other[static_cast<std::size_t>(g)].push_back(static_cast<std::size_t>(t));
        }
    }
    CHECK(rows.compact(plan_of(every_other)).ok());
}

} // namespace

TEST_CASE("token rows: every head grows by the same tokens and loses those that the plan loses", "[decode]") {
    token_rows<int> rows(2);
    append(rows, 4, 10);
    CHECK(row_of(rows, 1) == std::vector<int>{10, 11, 12, 13});
    REQUIRE(rows.compact(plan_of({{0, 3}, {1, 2, 3}})).ok());
    append(rows, 2, 20);
    CHECK(row_of(rows, 0) == std::vector<int>{10, 13, 20, 21});
    CHECK(row_of(rows, 1) == std::vector<int>{11, 12, 13, 20, 21});
    CHECK(rows.total_tokens() == 9);
    CHECK(rows.longest_row() == 5);
    CHECK(std::vector<index_t>(rows.lengths().begin(), rows.lengths().end()) == std::vector<index_t>{4, 5});
}

TEST_CASE("token rows: tokens that memory was reserved for move none that are there", "[decode]") {
    token_rows<int> rows(2, 8);
    append(rows, 1, 0);
    const int* const second = rows.row(1).data();
    CHECK(second == rows.row(0).data() + 8);
    append(rows, 7, 1);
    CHECK(rows.row(1).data() == second);
}

TEST_CASE("token rows: a plan for another cache is refused, nothing changes", "[decode]") {
    token_rows<int> rows(2);
    append(rows, 3, 0);
    const auto before = bytes_of(rows);
    for (const auto& plan :
         {plan_of({{0}}), plan_of({{0}, {0}, {0}}), plan_of({{0}, {3}}), plan_of({{1, 0}, {}})}) {
        CHECK(rows.compact(plan).code() == errc::plan_mismatch);
    }
    CHECK(bytes_of(rows) == before);
}

TEST_CASE("token rows: newest tokens can be dropped while no head has lost one of them", "[decode]") {
    token_rows<int> rows(2);
    append(rows, 6, 0);
    CHECK(rows.droppable_tokens() == 6);
    REQUIRE(rows.compact(plan_of({{0, 3, 4, 5}, {1, 2, 4, 5}})).ok()); // head 1 lost token 3
    CHECK(rows.droppable_tokens() == 2);
    append(rows, 1, 6);
    CHECK(rows.droppable_tokens() == 3);
    REQUIRE(rows.drop_newest(3).ok());
    CHECK(row_of(rows, 0) == std::vector<int>{0, 3});
    CHECK(row_of(rows, 1) == std::vector<int>{1, 2});
    const auto before = bytes_of(rows);
    for (const index_t count : {index_t{1}, index_t{-1}, most, least}) {
        const status s = rows.drop_newest(count);
        CHECK(s.code() == errc::invalid_parameter);
        CHECK(std::string(s.what()).find("cannot be undone") != std::string::npos);
    }
    CHECK(bytes_of(rows) == before);
    REQUIRE(rows.drop_newest(0).ok());
    REQUIRE(rows.compact(plan_of({{}, {}})).ok());
    CHECK(rows.droppable_tokens() == 0);
    CHECK(rows.total_tokens() == 0);
}

TEST_CASE("token rows: a copy lives its own life", "[decode]") {
    token_rows<int> rows(1, 8);
    append(rows, 3, 0);
    token_rows<int> fork = rows;
    append(fork, 1, 7);
    REQUIRE(fork.drop_newest(2).ok());
    CHECK(row_of(rows, 0) == std::vector<int>{0, 1, 2});
    CHECK(row_of(fork, 0) == std::vector<int>{0, 1});
}

TEST_CASE("token rows: what was saved is restored, and goes on as the original does", "[decode]") {
    token_rows<int> rows(2, 5);
    append(rows, 4, 0);
    REQUIRE(rows.compact(plan_of({{0, 3}, {1, 2, 3}})).ok());
    token_rows<int> other(0);
    REQUIRE(restore(other, bytes_of(rows)).ok());
    for (auto* state : {&rows, &other}) {
        REQUIRE(state->drop_newest(1).ok());
        append(*state, 9, 40);
    }
    CHECK(bytes_of(other) == bytes_of(rows));
    check_damaged_bytes(rows, other, 40, false, use);
}

TEST_CASE("token rows: no heads and no tokens are states too", "[decode]") {
    token_rows<int> none(0);
    append(none, 3, 0);
    CHECK(none.total_tokens() == 0);
    CHECK(none.longest_row() == 0);
    CHECK(none.compact(keep_plan{}).ok());
    token_rows<int> empty(2);
    append(empty, 0, 0);
    CHECK(empty.longest_row() == 0);
    CHECK(empty.compact(plan_of({{}, {}})).ok());
    CHECK(restore(none, bytes_of(empty)).ok());
    CHECK(none.kv_heads() == 2);
}

TEST_CASE("token rows: made with sizes that cannot be they are empty, and say why to every call",
          "[decode]") {
    const auto check = [](index_t heads, index_t reserved, errc code) {
        token_rows<int> rows(heads, reserved);
        CAPTURE(heads, reserved);
        CHECK(rows.validate().code() == code);
        CHECK(rows.kv_heads() == 0);
        CHECK(rows.longest_row() == 0);
        CHECK(rows.append(1, [](index_t) { return 0; }).code() == code);
        CHECK(rows.drop_newest(0).code() == code);
        CHECK(rows.compact(keep_plan{}).code() == code);
        CHECK(rows.droppable_tokens() == 0);
        token_rows<int> sound(2, 3);
        append(sound, 1, 5);
        REQUIRE(restore(rows, bytes_of(sound)).ok());
        CHECK(rows.validate().ok());
        CHECK(row_of(rows, 1) == std::vector<int>{5});
    };
    check(-1, 0, errc::invalid_parameter);
    check(1, -1, errc::invalid_parameter);
    check(least, least, errc::invalid_parameter);
    check(most, most, errc::invalid_parameter);
    check(2, index_t{1} << 31, errc::index_overflow);
    check(index_t{1} << 31, 0, errc::index_overflow);
    check((index_t{1} << 31) - 1, (index_t{1} << 31) - 1, errc::invalid_parameter); // 2^64 bytes
    check(1, most / 4, errc::index_overflow); // what memory could hold, but no table could name
    check(1, most / 4 + 1, errc::invalid_parameter);
}

TEST_CASE("token rows: no number of new tokens but one that can be is taken", "[decode]") {
    token_rows<int> rows(2);
    append(rows, 3, 0);
    const auto before = bytes_of(rows);
    const auto answer = [&](index_t count) { return rows.append(count, [](index_t) { return 9; }); };
    CHECK(answer(-1).code() == errc::invalid_parameter);
    CHECK(answer(least).code() == errc::invalid_parameter);
    CHECK(answer(most).code() == errc::index_overflow);
    CHECK(answer((index_t{1} << 31) - 3).code() == errc::index_overflow);
    CHECK(answer((index_t{1} << 31) - 3).needed() == index_t{1} << 31);
    CHECK(bytes_of(rows) == before);
    token_rows<int> none(0);
    append(none, (index_t{1} << 31) - 1, 0); // without heads there is nothing to fill
    CHECK(none.append(1, [](index_t) { return 0; }).code() == errc::index_overflow);
}
