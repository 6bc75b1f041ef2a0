// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// kernels::amx_tiles in plain C++, for machines without AMX: the same registers, products and roundings.
//
// Source: TDPBF16PS in Intel's Software Developer's Manual, volume 2. Even and odd products are summed apart with fused
// multiply-adds, then both sums are added to C; rounded to nearest, denormals read and written as 0.
// Departures: what is tiny is decided after rounding to a denormal, by the processor as if there were none.

#include <kvtrim/base/element.hpp>
#include <kvtrim/base/status.hpp>
#include <kvtrim/simd/cpu.hpp>

#if KVTRIM_HAS_X86

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>

namespace support {

struct emulated_tiles {
    static void configure() {
        registers() = {};
        registers().configured = true;
    }
    static void release() { registers() = {}; }

    template <int Tile>
    static void zero() {
        tile(Tile) = {};
    }
    template <int Tile>
    static void load(const void* from, kvtrim::index_t stride_bytes) {
        const auto* const bytes = static_cast<const char*>(from);
        for (int r = 0; r < 16; ++r) { std::memcpy(tile(Tile).rows[r], bytes + r * stride_bytes, 64); }
    }
    template <int Tile>
    static void store(void* to, kvtrim::index_t stride_bytes) {
        auto* const bytes = static_cast<char*>(to);
        for (int r = 0; r < 16; ++r) { std::memcpy(bytes + r * stride_bytes, tile(Tile).rows[r], 64); }
    }
    template <int C, int A, int B>
    static void multiply_add() {
        static_assert(C != A && C != B && A != B, "the processor refuses");
        multiply_add(C, A, B);
    }
    static void multiply_add(int c, int a, int b) { multiply_add(tile(c), tile(a), tile(b)); }

  private:
    struct tile_data {
        unsigned char rows[16][64] = {};
    };
    struct all_tiles {
        bool configured = false;
        tile_data tiles[8];
    };

    static all_tiles& registers() {
        static thread_local all_tiles all;
        return all;
    }
    // The processor faults on a tile that is not configured.
    static tile_data& tile(int number) {
        if (!registers().configured) {
            std::fputs("emulated_tiles: a tile was used outside of configure() and release()\n", stderr);
            std::abort();
        }
        return registers().tiles[number];
    }

    KVTRIM_TARGET_AVX512 static void multiply_add(tile_data& c, const tile_data& a, const tile_data& b) {
        float left[16][32], right[16][32];
        widen(a, left);
        widen(b, right);
        for (int m = 0; m < 16; ++m) {
            float even[16] = {}, odd[16] = {}, sum[16];
            for (int k = 0; k < 16; ++k) {
                for (int n = 0; n < 16; ++n) {
                    even[n] = normal(std::fma(left[m][2 * k], right[k][2 * n], even[n]));
                    odd[n] = normal(std::fma(left[m][2 * k + 1], right[k][2 * n + 1], odd[n]));
                }
            }
            std::memcpy(sum, c.rows[m], 64);
            for (int n = 0; n < 16; ++n) { sum[n] = normal(normal(sum[n]) + normal(even[n] + odd[n])); }
            std::memcpy(c.rows[m], sum, 64);
        }
    }
    static void widen(const tile_data& t, float (&to)[16][32]) {
        for (int r = 0; r < 16; ++r) {
            for (int i = 0; i < 32; ++i) {
                kvtrim::bf16 x{};
                std::memcpy(&x.bits, t.rows[r] + 2 * i, 2);
                to[r][i] = normal(kvtrim::to_float(x));
            }
        }
    }
    static float normal(float x) {
        return std::abs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
    }
};

} // namespace support

#endif // KVTRIM_HAS_X86
