// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/base/for_each_head.hpp>

#include "support/catch.hpp"
#include "support/random_layer.hpp"

#include <numeric>
#include <vector>

namespace {

using namespace kvtrim;

// A sum over scratch that each head fills for itself: any sharing of scratch changes it.
template <class Executor>
std::vector<std::uint64_t> sums(index_t heads, index_t elements, Executor ex) {
    workspace counting = workspace::counting();
    static_cast<void>(counting.take<std::uint64_t>(elements));
    const index_t head_bytes = counting.needed_bytes();
    std::vector<std::byte> memory(static_cast<std::size_t>(for_each_head_bytes(heads, head_bytes)));
    workspace scratch(memory);
    std::vector<std::uint64_t> result(static_cast<std::size_t>(heads));
    const status s = for_each_head(heads, head_bytes, scratch, ex, [&](index_t head, workspace& own) {
        const auto numbers = own.take<std::uint64_t>(elements);
        for (int repeat = 0; repeat < 20; ++repeat) {
            std::iota(numbers.begin(), numbers.end(), static_cast<std::uint64_t>(head * 1000));
        }
        result[static_cast<std::size_t>(head)] =
            own.fits() ? std::accumulate(numbers.begin(), numbers.end(), std::uint64_t{0}) : 0;
    });
    if (!s.ok()) { result.clear(); }
    return result;
}

} // namespace

TEST_CASE("for_each_head: heads have scratch of their own, on any threads and in any order", "[base]") {
    for (const index_t heads : {0, 1, 3, 32}) {
        const auto expected = sums(heads, 1000, serial_executor{});
        CHECK(expected.size() == static_cast<std::size_t>(heads));
        for (std::size_t h = 0; h < expected.size(); ++h) { CHECK(expected[h] == h * 1000000 + 499500); }
        CHECK(sums(heads, 1000, support::thread_executor{4}) == expected);
        CHECK(sums(heads, 1000, support::shuffling_executor{5}) == expected);
    }
}

TEST_CASE("for_each_head: without enough scratch it calls nothing and says how much is needed", "[base]") {
    const index_t needed = for_each_head_bytes(3, 1024);
    std::vector<std::byte> memory(static_cast<std::size_t>(needed));
    serial_executor ex;
    int calls = 0;
    const auto count = [&](index_t, workspace&) { ++calls; };
    workspace short_of(std::span<std::byte>(memory).first(memory.size() - 64 - 64));
    const status refused = for_each_head(3, 1024, short_of, ex, count);
    CHECK(refused.code() == errc::workspace_too_small);
    CHECK(refused.needed() == needed);
    CHECK(calls == 0);
    workspace enough(memory);
    CHECK(for_each_head(3, 1024, enough, ex, count).ok());
    CHECK(calls == 3);
}

TEST_CASE("for_each_head: its scratch is given back", "[base]") {
    std::vector<std::byte> memory(static_cast<std::size_t>(for_each_head_bytes(2, 512)));
    workspace scratch(memory);
    serial_executor ex;
    for (int i = 0; i < 3; ++i) {
        CHECK(for_each_head(2, 512, scratch, ex, [](index_t, workspace&) {}).ok());
    }
}
