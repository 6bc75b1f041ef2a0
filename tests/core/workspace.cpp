// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/core/workspace.hpp>

#include "support/catch.hpp"
#include "support/random_layer.hpp"

#include <vector>

namespace {

using namespace kvtrim;

std::uintptr_t address(const void* p) {
    return reinterpret_cast<std::uintptr_t>(p);
}

// Blocks of any sizes and types, taken in nested frames.
struct taking {
    std::uint64_t seed;

    // Whether the blocks were aligned and disjoint; all_fit: whether each frame found that all it took fitted.
    struct outcome {
        bool sound = true;
        bool all_fit = true;
        index_t named = 0; // the most that an answer asked for
    };

    outcome operator()(workspace& scratch) const {
        support::random r(seed);
        outcome result;
        nested(scratch, r, 0, result);
        return result;
    }

  private:
    static void nested(workspace& scratch, support::random& r, int depth, outcome& result) {
        const workspace::frame frame(scratch);
        struct block {
            std::span<std::byte> bytes;
            std::byte mark;
        };
        std::vector<block> blocks;
        const auto take = [&](auto example) {
            using T = decltype(example);
            const auto elements = scratch.take<T>(r.between(0, 50));
            const auto mark = static_cast<std::byte>(r.between(1, 250));
            blocks.push_back({std::as_writable_bytes(elements), mark});
            std::fill(blocks.back().bytes.begin(), blocks.back().bytes.end(), mark);
            const bool aligned =
                elements.empty() || address(elements.data()) % workspace::alignment_bytes == 0;
            result.sound = result.sound && aligned;
        };
        for (index_t i = r.between(1, 4); i > 0; --i) {
            take(std::byte{});
            take(float{});
            take(double{});
            result.all_fit = result.all_fit && scratch.fits();
            if (!scratch.fits()) { result.named = std::max(result.named, scratch.too_small().needed()); }
            if (depth < 3 && r.chance(0.6)) { nested(scratch, r, depth + 1, result); }
        }
        for (const block& b : blocks) { // later blocks have not written into earlier ones
            for (const std::byte x : b.bytes) { result.sound = result.sound && x == b.mark; }
        }
    }
};

index_t counted(const taking& work) {
    workspace counting = workspace::counting();
    work(counting);
    return counting.needed_bytes();
}

} // namespace

TEST_CASE("workspace: the counted bytes suffice at any alignment, for any nesting of frames", "[core]") {
    for (std::uint64_t seed = 0; seed < 200; ++seed) {
        const taking work{seed};
        const index_t needed = counted(work);
        std::vector<std::byte> memory(static_cast<std::size_t>(needed) + 64);
        const auto offset = static_cast<std::size_t>(seed % 64);
        workspace scratch(std::span<std::byte>(memory).subspan(offset, static_cast<std::size_t>(needed)));
        CAPTURE(seed, needed);
        for (int again = 0; again < 2; ++again) { // the frames give everything back
            const taking::outcome outcome = work(scratch);
            CHECK(outcome.sound);
            CHECK(outcome.all_fit);
            CHECK(scratch.needed_bytes() == needed);
        }
    }
}

TEST_CASE("workspace: less than needed does not fit, and says how much would", "[core]") {
    for (std::uint64_t seed = 0; seed < 50; ++seed) {
        const taking work{seed};
        const index_t needed = counted(work);
        if (needed == 0) { continue; }
        // What alignment may cost is part of the number: aligned memory can do with 64 bytes less, never 65.
        alignas(64) static std::array<std::byte, 1 << 16> memory;
        workspace scratch(std::span<std::byte>(memory).first(static_cast<std::size_t>(needed - 65)));
        CHECK_FALSE(scratch.holds(needed));
        const taking::outcome outcome = work(scratch);
        CHECK_FALSE(outcome.all_fit);
        CHECK(outcome.named == needed);
        CHECK(scratch.too_small(needed).code() == errc::workspace_too_small);
        CHECK(scratch.too_small(needed).needed() == needed);
        workspace enough(std::span<std::byte>(memory).first(static_cast<std::size_t>(needed - 64)));
        CHECK(enough.holds(needed));
        CHECK(work(enough).all_fit);
    }
}

TEST_CASE("workspace: a block that does not fit is an empty span", "[core]") {
    std::vector<std::byte> memory(256);
    workspace scratch(memory);
    CHECK(scratch.take<float>(16).size() == 16);
    CHECK(scratch.fits());
    CHECK(scratch.take<float>(1000).empty());
    CHECK_FALSE(scratch.fits());
    CHECK(scratch.take<float>(1).empty()); // behind a block that is missing nothing is given
}

TEST_CASE("workspace: blocks are whole cache lines and start on one", "[core]") {
    std::vector<std::byte> memory(1000);
    workspace scratch(std::span<std::byte>(memory).subspan(1));
    const auto a = scratch.take<std::byte>(1);
    const auto b = scratch.take<double>(3);
    CHECK(address(a.data()) % 64 == 0);
    CHECK(address(b.data()) == address(a.data()) + 64);
    CHECK(scratch.needed_bytes() == 128 + 64);
}

TEST_CASE("workspace: nothing is needed for nothing, and no bytes give nothing", "[core]") {
    workspace counting = workspace::counting();
    CHECK(counting.needed_bytes() == 0);
    CHECK(counting.fits());
    CHECK(counting.take<float>(0).empty());
    CHECK(counting.needed_bytes() == 0);
    CHECK(counting.fits());
    CHECK(counting.take<float>(1).empty());
    CHECK_FALSE(counting.fits());
    CHECK(counting.needed_bytes() == 128);
    std::byte one{};
    workspace tiny(std::span(&one, 1));
    CHECK(tiny.take<std::byte>(1).size() <= 1); // fits only if that byte starts a cache line
}

TEST_CASE("workspace: what a frame took is given again after it", "[core]") {
    std::vector<std::byte> memory(4096);
    workspace scratch(memory);
    const auto kept = scratch.take<float>(4);
    const float* first = nullptr;
    {
        const workspace::frame frame(scratch);
        first = scratch.take<float>(8).data();
    }
    CHECK(scratch.take<float>(8).data() == first);
    CHECK(kept.data() < first);
}

TEST_CASE("workspace: after a frame that did not fit, a smaller one does", "[core]") {
    std::vector<std::byte> memory(256);
    workspace scratch(memory);
    {
        const workspace::frame frame(scratch);
        static_cast<void>(scratch.take<std::byte>(1000));
        REQUIRE_FALSE(scratch.fits());
    }
    const workspace::frame frame(scratch);
    REQUIRE(scratch.take<std::byte>(64).size() == 64);
    CHECK(scratch.fits());
}

TEST_CASE("workspace: what did not fit before is not in the answer to a smaller request", "[core]") {
    std::vector<std::byte> memory(256);
    workspace scratch(memory);
    const auto answer = [&](index_t bytes) {
        const workspace::frame frame(scratch);
        static_cast<void>(scratch.take<std::byte>(bytes));
        CHECK_FALSE(scratch.fits());
        return scratch.too_small().needed();
    };
    CHECK(answer(100000) == 100032 + 64);
    CHECK(answer(1000) == 1024 + 64);
}

TEST_CASE("workspace: what it holds and what it misses counts what is taken already", "[core]") {
    alignas(64) static std::array<std::byte, 256> memory;
    workspace scratch(memory);
    CHECK(scratch.holds(0));
    CHECK(scratch.holds(256 + 64));
    CHECK_FALSE(scratch.holds(256 + 128));
    const workspace::frame frame(scratch);
    static_cast<void>(scratch.take<std::byte>(100));
    CHECK(scratch.holds(128 + 64));
    CHECK_FALSE(scratch.holds(192 + 64));
    CHECK(scratch.too_small(192 + 64).needed() == 128 + 192 + 64);
    CHECK(workspace::counting().holds(0));
    CHECK_FALSE(workspace::counting().holds(128));
}

TEST_CASE("growing_workspace: it grows to the largest size asked for and keeps it", "[core]") {
    growing_workspace memory;
    CHECK(memory.capacity_bytes() == 0);
    CHECK(memory.of_bytes(0).fits());
    workspace a = memory.of_bytes(960 + 64); // 900 in whole cache lines, and what alignment may cost
    const auto block = a.take<std::byte>(900);
    CHECK(block.size() == 900);
    CHECK(memory.capacity_bytes() == 1024);
    workspace b = memory.of_bytes(500);
    CHECK(b.take<std::byte>(900).data() == block.data());
    CHECK(memory.capacity_bytes() == 1024);
}

TEST_CASE("workspace: a count below 0, or of more than memory holds, never fits, however many there are",
          "[core][errors]") {
    std::vector<std::byte> memory(4096);
    constexpr index_t most = std::numeric_limits<index_t>::max();
    for (const index_t count :
         {index_t{-1}, std::numeric_limits<index_t>::min(), most, most / 4, most / 8 + 1}) {
        workspace scratch(memory), counting = workspace::counting();
        for (int i = 0; i < 5; ++i) { // sums do not wrap around either
            CHECK(scratch.take<double>(count).empty());
            CHECK(counting.take<double>(count).empty());
        }
        CHECK_FALSE(scratch.fits());
        CHECK(scratch.too_small().needed() > index_t{1} << 60);
        CHECK(counting.needed_bytes() > index_t{1} << 60);
        CHECK_FALSE(workspace(memory).holds(counting.needed_bytes()));
        CHECK(workspace(memory).too_small(counting.needed_bytes()).needed() > index_t{1} << 60);
        const workspace::frame frame(scratch);
        CHECK(scratch.take<float>(1).empty()); // behind a block that did not fit nothing does
    }
}

TEST_CASE("growing_workspace: more than a machine addresses is not allocated, and does not fit",
          "[core][errors]") {
    growing_workspace memory;
    static_cast<void>(memory.of_bytes(1000));
    workspace counting = workspace::counting();
    static_cast<void>(counting.take<float>(-1));
    CHECK_FALSE(memory.of_bytes(counting.needed_bytes()).holds(counting.needed_bytes()));
    CHECK_FALSE(memory.of_bytes(std::numeric_limits<index_t>::max()).holds(1 << 20));
    CHECK(memory.capacity_bytes() == 1000);
}
