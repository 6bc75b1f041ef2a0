// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/simd/amx_tiles.hpp>

#include "support/cpu_levels.hpp"
#include "support/trapped_tiles.hpp"

#include <vector>

using namespace kvtrim;
using namespace support;

#if KVTRIM_HAS_X86

namespace {

using bf16_tile = std::vector<bf16>; // [16][32]

void set(bf16_tile& t, index_t row, index_t column, float x) {
    t[static_cast<std::size_t>(row * 32 + column)] = element_traits<bf16>::from_float(x);
}

template <class Tiles>
void multiply_add(const bf16_tile& a, const bf16_tile& b, std::vector<float>& c) {
    Tiles::configure();
    Tiles::template load<0>(c.data(), 64);
    Tiles::template load<1>(a.data(), 64);
    Tiles::template load<2>(b.data(), 64);
    Tiles::template multiply_add<0, 1, 2>();
    Tiles::template store<0>(c.data(), 64);
    Tiles::release();
}

template <class Tiles>
void check_products() {
    bf16_tile a(512), b(512);
    std::vector<float> c(256);
    // Row 1 of A times column 2 of B.
    float expected = 10;
    for (index_t k = 0; k < 32; ++k) {
        set(a, 1, k, static_cast<float>(k + 1));
        set(b, k / 2, 2 * 2 + k % 2, 0.5f * static_cast<float>(k));
        expected += 0.5f * static_cast<float>(k * (k + 1));
    }
    c[1 * 16 + 2] = 10;
    // Row 3 times column 5: 2^-130 alone is a denormal and so 0. Column 6: it counts beside 2^-120, but not in the
    // other sum.
    set(a, 3, 0, 0x1p-60f);
    set(a, 3, 2, 0x1p-65f);
    set(a, 3, 3, 0x1p-65f);
    set(b, 1, 2 * 5, 0x1p-65f);
    set(b, 0, 2 * 6, 0x1p-60f);
    set(b, 1, 2 * 6, 0x1p-65f);
    set(b, 1, 2 * 6 + 1, 0x1p-65f);
    // Row 4 times column 7: a denormal factor is 0, though its product would count.
    set(a, 4, 4, 0x1p-127f);
    set(b, 2, 2 * 7, 0x1p100f);
    multiply_add<Tiles>(a, b, c);
    CHECK(c[1 * 16 + 2] == expected);
    CHECK(c[3 * 16 + 5] == 0.0f);
    CHECK(c[3 * 16 + 6] == 0x1p-120f + 0x1p-130f);
    CHECK(c[4 * 16 + 7] == 0.0f);
}

// Rows at any distance, and what lies between them left alone.
template <class Tiles>
void check_strides() {
    std::vector<float> from(16 * 24), to(16 * 40, -1.0f);
    for (std::size_t i = 0; i < from.size(); ++i) { from[i] = static_cast<float>(i); }
    Tiles::configure();
    Tiles::template zero<6>();
    Tiles::template load<7>(from.data() + 1, 24 * 4);
    Tiles::template store<7>(to.data() + 3, 40 * 4);
    Tiles::template store<6>(from.data() + 1, 24 * 4);
    Tiles::release();
    int wrong = 0;
    for (std::size_t r = 0; r < 16; ++r) {
        for (std::size_t i = 0; i < 40; ++i) {
            const bool inside = 3 <= i && i < 19;
            wrong += to[r * 40 + i] == (inside ? static_cast<float>(r * 24 + i - 2) : -1.0f) ? 0 : 1;
        }
        for (std::size_t i = 0; i < 24 && r * 24 + i < from.size(); ++i) {
            const bool inside = 1 <= i && i < 17;
            wrong += from[r * 24 + i] == (inside ? 0.0f : static_cast<float>(r * 24 + i)) ? 0 : 1;
        }
    }
    CHECK(wrong == 0);
}

} // namespace

TEST_CASE("emulated_tiles: products of pairs, fused, even and odd apart, denormals as 0", "[kernels]") {
    if (!runs_avx512()) { return; } // the emulation is compiled for it
    check_products<emulated_tiles>();
}

TEST_CASE("emulated_tiles: rows are read and written at a stride", "[kernels]") {
    if (!runs_avx512()) { return; }
    check_strides<emulated_tiles>();
}

#if defined(__linux__)
TEST_CASE("amx_tiles: the same by the processor, or decoded where it has no AMX", "[kernels]") {
    if (!runs_tile_instructions()) { return; }
    const trapped_tiles scope;
    check_products<simd::amx_tiles>();
    check_strides<simd::amx_tiles>();
}
#endif

#endif // KVTRIM_HAS_X86
