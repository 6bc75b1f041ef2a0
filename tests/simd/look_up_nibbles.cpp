// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/simd/look_up_nibbles.hpp>

#include <kvtrim/simd/cpu_level.hpp>

#include "support/catch.hpp"

#include <vector>

#if KVTRIM_HAS_X86

namespace {

// to [32], in memory.
KVTRIM_TARGET_AVX512 void look_up(const float* table, const std::uint8_t* from, float* to) {
    namespace target = kvtrim::simd::avx512;
    target::floats found[2];
    target::look_up_nibbles(target::load(table), from, found);
    target::store(to, found[0]);
    target::store(to + 16, found[1]);
}

} // namespace

TEST_CASE("look_up_nibbles: each code finds its float, low halves first", "[simd]") {
    if (kvtrim::best_cpu_level() < kvtrim::cpu_level::avx512) {
        WARN("no AVX-512 on this machine: not tested");
        return;
    }
    std::vector<float> table, found(32), expected(32);
    for (int i = 0; i < 16; ++i) { table.push_back(static_cast<float>(3 * i - 20) * 0.5f); }
    for (unsigned turn = 0; turn < 16; ++turn) {
        std::vector<std::uint8_t> bytes;
        for (unsigned i = 0; i < 16; ++i) {
            const unsigned low = (i + turn) % 16, high = (5 * i + 3 * turn) % 16;
            bytes.push_back(static_cast<std::uint8_t>(low | high << 4));
            expected[i] = table[low];
            expected[16 + i] = table[high];
        }
        look_up(table.data(), bytes.data(), found.data());
        CAPTURE(turn);
        CHECK(found == expected);
    }
}

#endif // KVTRIM_HAS_X86
