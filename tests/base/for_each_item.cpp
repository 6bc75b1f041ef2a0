// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/base/for_each_item.hpp>

#include "support/checks.hpp"

using namespace kvtrim;
using namespace support;

namespace {

struct two_workers {
    [[nodiscard]] int workers() const { return 2; }
    template <class Fn>
    void operator()(index_t count, Fn&& fn) const {
        thread_executor{static_cast<int>(count)}(count, fn);
    }
};

} // namespace

TEST_CASE("for_each_item: every item once, with scratch of its own, on any executor", "[base]") {
    const auto check = [](auto ex, index_t items) {
        std::vector<std::atomic<int>> visits(static_cast<std::size_t>(items));
        growing_workspace memory;
        workspace scratch = memory.of_bytes(for_each_item_bytes(ex, items, 256 + workspace::alignment_bytes));
        const status s = for_each_item(items, 256 + workspace::alignment_bytes, scratch, ex,
                                       [&](index_t item, workspace& own) {
                                           const auto mine = own.take<index_t>(32);
                                           std::fill(mine.begin(), mine.end(), item);
                                           ++visits[static_cast<std::size_t>(item)];
                                           for (const index_t x : mine) {
                                               visits[static_cast<std::size_t>(item)] += x == item ? 0 : 1000;
                                           }
                                       });
        CHECK(s.ok());
        for (const auto& v : visits) { CHECK(v == 1); }
    };
    for (const index_t items : {0, 1, 3, 200}) {
        check(serial_executor{}, items);
        check(two_workers{}, items);
        check(thread_executor{4}, items);
        check(shuffling_executor{5}, items);
    }
}

TEST_CASE("for_each_item: memory for as many workers as the executor names, at most one an item", "[base]") {
    CHECK(worker_count(serial_executor{}, 10) == 1);
    CHECK(worker_count(two_workers{}, 10) == 2);
    CHECK(worker_count(two_workers{}, 1) == 1);
    CHECK(worker_count(two_workers{}, 0) == 1);
    CHECK(worker_count(thread_executor{4}, 1000000) >= 1);
    CHECK(for_each_item_bytes(two_workers{}, 10, 640) - for_each_item_bytes(serial_executor{}, 10, 640) ==
          640);
}

TEST_CASE("for_each_item: too little memory calls nothing", "[base][errors]") {
    two_workers ex;
    std::vector<std::byte> bytes(1000);
    workspace scratch(bytes);
    int calls = 0;
    CHECK(for_each_item(10, 1024, scratch, ex, [&](index_t, workspace&) { ++calls; }).code() ==
          errc::workspace_too_small);
    CHECK(calls == 0);
}
