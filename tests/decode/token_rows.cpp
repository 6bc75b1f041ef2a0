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

void append(token_rows<int>& rows, index_t count, int first) {
    rows.append(count, [&](index_t i) { return first + static_cast<int>(i); });
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
    rows.drop_newest(3);
    CHECK(row_of(rows, 0) == std::vector<int>{0, 3});
    CHECK(row_of(rows, 1) == std::vector<int>{1, 2});
    CHECK(violation_of([&] { rows.drop_newest(1); }).find("cannot be undone") != std::string::npos);
    CHECK(violation_of([&] { rows.drop_newest(-1); }).find("cannot be undone") != std::string::npos);
    rows.drop_newest(0);
    REQUIRE(rows.compact(plan_of({{}, {}})).ok());
    CHECK(rows.droppable_tokens() == 0);
    CHECK(rows.total_tokens() == 0);
}

TEST_CASE("token rows: a copy lives its own life", "[decode]") {
    token_rows<int> rows(1, 8);
    append(rows, 3, 0);
    token_rows<int> fork = rows;
    append(fork, 1, 7);
    fork.drop_newest(2);
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
        state->drop_newest(1);
        append(*state, 9, 40);
    }
    CHECK(bytes_of(other) == bytes_of(rows));
    check_damaged_bytes(rows, other, 40);
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

TEST_CASE("token rows: negative sizes break the contract", "[decode][contract]") {
    CHECK(violation_of([] { token_rows<int>(-1); }) ==
          "token_rows: kv_heads and reserved_tokens must not be negative");
    token_rows<int> rows(1);
    CHECK(violation_of([&] { append(rows, -1, 0); }) == "append: the number of tokens must not be negative");
}
