// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/base/scratch_slots.hpp>

#include "support/catch.hpp"

#include <atomic>
#include <thread>
#include <vector>

using namespace kvtrim;

TEST_CASE("scratch_slots: each lease has a block of its own until it ends", "[base]") {
    std::vector<float> memory(20);
    scratch_slots slots(memory, 2, 10);
    const scratch_slots::lease first(slots);
    CHECK(first.memory().data() == memory.data());
    CHECK(first.memory().size() == 10);
    {
        const scratch_slots::lease second(slots);
        CHECK(second.memory().data() == memory.data() + 10);
        const scratch_slots::lease third(slots);
        CHECK(third.memory().empty());
    }
    const scratch_slots::lease again(slots);
    CHECK(again.memory().data() == memory.data() + 10);
}

TEST_CASE("scratch_slots: without slots every lease is empty", "[base]") {
    scratch_slots slots({}, 0, 0);
    const scratch_slots::lease none(slots);
    CHECK(none.memory().empty());
}

TEST_CASE("scratch_slots: no two threads have the same block", "[base][threads]") {
    constexpr index_t slot_count = 3;
    std::vector<float> memory(slot_count);
    scratch_slots slots(memory, slot_count, 1);
    std::atomic<int> holders[slot_count] = {};
    std::atomic<bool> shared = false;
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
        threads.emplace_back([&] {
            for (int i = 0; i < 2000; ++i) {
                const scratch_slots::lease lease(slots);
                if (lease.memory().empty()) { continue; }
                auto& holder = holders[lease.memory().data() - memory.data()];
                if (holder++ != 0) { shared = true; }
                --holder;
            }
        });
    }
    for (std::thread& t : threads) { t.join(); }
    CHECK_FALSE(shared);
}
