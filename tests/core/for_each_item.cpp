// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/core/for_each_item.hpp>

#include "support/catch.hpp"
#include "support/random_layer.hpp"

#include <algorithm>
#include <atomic>
#include <vector>

namespace {

using namespace kvtrim;

using support::counted_executor;

std::vector<std::byte> memory_for(const auto& ex, index_t items, index_t worker_bytes) {
    return std::vector<std::byte>(static_cast<std::size_t>(for_each_item_bytes(ex, items, worker_bytes)));
}

// Says how many calls it was asked for.
struct watched_executor {
    index_t width;
    index_t* calls;

    [[nodiscard]] index_t workers() const { return width; }
    template <class Fn>
    void operator()(index_t count, Fn&& fn) const {
        *calls = count;
        for (index_t i = 0; i < count; ++i) { fn(i); }
    }
};

// How often each item was called.
template <class Executor>
std::vector<int> calls_of(Executor ex, index_t items) {
    std::vector<std::atomic<int>> calls(static_cast<std::size_t>(items));
    auto memory = memory_for(ex, items, 100);
    workspace scratch(memory);
    const status s = for_each_item(
        items, 100, scratch, ex, [&](index_t item, workspace&) { ++calls[static_cast<std::size_t>(item)]; });
    REQUIRE(s.ok());
    return std::vector<int>(calls.begin(), calls.end());
}

} // namespace

TEST_CASE("worker_count: what the executor says, else the same on every machine, at most one per item",
          "[core]") {
    CHECK(worker_count(counted_executor{5}, 100) == 5);
    CHECK(worker_count(counted_executor{5}, 3) == 3);
    CHECK(worker_count(counted_executor{5}, 0) == 1);
    CHECK(worker_count(counted_executor{0}, 100) == 1);
    CHECK(worker_count(counted_executor{-3}, 100) == 1);
    CHECK(worker_count(support::thread_executor{77}, 1000000) == untold_workers);
    CHECK(worker_count(support::thread_executor{77}, 1) == 1);
}

TEST_CASE("for_each_item: each item is called once, whatever the executor", "[core]") {
    for (const index_t items : {0, 1, 2, 3, 64, 257}) {
        const std::vector<int> once(static_cast<std::size_t>(items), 1);
        CHECK(calls_of(serial_executor{}, items) == once);
        CHECK(calls_of(support::thread_executor{4}, items) == once);
        CHECK(calls_of(support::shuffling_executor{9}, items) == once);
        CHECK(calls_of(counted_executor{1}, items) == once);
        CHECK(calls_of(counted_executor{3}, items) == once);
        CHECK(calls_of(counted_executor{200}, items) == once);
    }
}

TEST_CASE("for_each_item: one worker sees the items in ascending order", "[core]") {
    counted_executor one{1};
    auto memory = memory_for(one, 20, 8);
    workspace scratch(memory);
    std::vector<index_t> seen;
    REQUIRE(for_each_item(20, 8, scratch, one, [&](index_t item, workspace&) { seen.push_back(item); }).ok());
    CHECK(seen.size() == 20);
    CHECK(std::is_sorted(seen.begin(), seen.end()));
}

TEST_CASE("for_each_item: each worker has its bytes to itself, and each item all of them", "[core]") {
    constexpr index_t floats = 50;
    const index_t worker_bytes = [] {
        workspace counting = workspace::counting();
        static_cast<void>(counting.take<float>(floats));
        return counting.needed_bytes();
    }();
    for (const index_t bytes : {worker_bytes, worker_bytes + 1, worker_bytes + 63}) { // any alignment
        counted_executor ex{4};
        auto memory = memory_for(ex, 300, bytes);
        workspace scratch(memory);
        std::atomic<int> wrong = 0;
        const status s = for_each_item(300, bytes, scratch, ex, [&](index_t item, workspace& own) {
            const auto mine = own.take<float>(floats);
            if (mine.size() != static_cast<std::size_t>(floats) || !own.fits()) {
                ++wrong;
                return;
            }
            std::fill(mine.begin(), mine.end(), static_cast<float>(item));
            std::this_thread::yield();
            const bool kept =
                std::all_of(mine.begin(), mine.end(), [&](float x) { return x == static_cast<float>(item); });
            wrong += kept ? 0 : 1;
        });
        CHECK(s.ok());
        CHECK(wrong == 0);
    }
}

TEST_CASE("for_each_item: there are as many workers as the memory holds, one at least", "[core]") {
    alignas(64) std::byte memory[1024];
    CHECK(for_each_item_bytes(counted_executor{3}, 10, 200) ==
          640 + workspace::alignment_bytes); // 600 in whole cache lines, and what alignment may cost
    int calls = 0;
    const auto workers_of = [&](std::size_t bytes, index_t& workers) {
        workspace scratch({memory, bytes});
        watched_executor ex{8, &workers};
        workers = calls = 0;
        return for_each_item(10, 200, scratch, ex, [&](index_t, workspace& own) {
            CHECK(own.free_bytes() >= 200 - workspace::alignment_bytes);
            ++calls;
        });
    };
    index_t workers = 0;
    for (const auto& [bytes, expected] :
         {std::pair<std::size_t, index_t>{1024, 5}, {640, 3}, {599, 2}, {256, 1}}) {
        REQUIRE(workers_of(bytes, workers).ok());
        CHECK(workers == expected);
        CHECK(calls == 10);
    }
    for (const std::size_t bytes : {std::size_t{255}, std::size_t{64}, std::size_t{0}}) {
        const status s = workers_of(bytes, workers);
        CHECK(s.code() == errc::workspace_too_small);
        CHECK(s.needed() == for_each_item_bytes(serial_executor{}, 10, 200));
        CHECK(calls == 0);
    }
}

TEST_CASE("for_each_item: what it took is given back", "[core]") {
    serial_executor ex;
    auto memory = memory_for(ex, 10, 200);
    workspace scratch(memory);
    for (int turn = 0; turn < 3; ++turn) {
        CHECK(for_each_item(10, 200, scratch, ex, [](index_t, workspace&) {}).ok());
    }
}

TEST_CASE("for_each_item: an executor that calls nothing is answered, not taken for one that did the work",
          "[core][errors]") {
    const auto lazy = [](index_t, const auto&) {};
    auto memory = memory_for(serial_executor{}, 10, 200);
    workspace scratch(memory);
    int calls = 0;
    const auto count = [&](index_t, workspace&) { ++calls; };
    CHECK(for_each_item(10, 200, scratch, lazy, count).code() == errc::invalid_parameter);
    CHECK(calls == 0);
    CHECK(for_each_item(0, 200, scratch, lazy, count).ok());
    serial_executor serial;
    CHECK(for_each_item(10, 200, scratch, serial, count).ok());
    CHECK(calls == 10);
}
