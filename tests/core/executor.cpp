// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/core/executor.hpp>

#include "support/catch.hpp"
#include "support/random_layer.hpp"

#include <algorithm>
#include <atomic>
#include <vector>

namespace {

using namespace kvtrim;

static_assert(executor<serial_executor> && executor<const serial_executor>);
static_assert(executor<support::thread_executor> && executor<support::shuffling_executor>);
static_assert(!executor<int>);
static_assert(!executor<decltype([](index_t) {})>);
static_assert(executor<decltype([](index_t count, const auto& fn) {
    for (index_t i = count; i-- > 0;) { fn(i); }
})>);

} // namespace

TEST_CASE("serial_executor: it calls each piece once, in order", "[core]") {
    std::vector<index_t> seen;
    serial_executor{}(4, [&](index_t i) { seen.push_back(i); });
    CHECK(seen == std::vector<index_t>{0, 1, 2, 3});
    serial_executor{}(0, [&](index_t i) { seen.push_back(i); });
    CHECK(seen.size() == 4);
}

TEST_CASE("executors of the tests: each piece is called once, whatever the threads and the order", "[core]") {
    const auto calls_of = [](auto ex) {
        std::vector<std::atomic<int>> calls(100);
        ex(100, [&](index_t i) { ++calls[static_cast<std::size_t>(i)]; });
        return std::all_of(calls.begin(), calls.end(), [](const auto& count) { return count == 1; });
    };
    CHECK(calls_of(serial_executor{}));
    CHECK(calls_of(support::thread_executor{8}));
    CHECK(calls_of(support::shuffling_executor{3}));
}
