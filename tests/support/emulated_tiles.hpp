// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// simd::amx_tiles in plain C++, for machines without AMX: the same registers, products and roundings.
//
// Source: TDPBF16PS in Intel's Software Developer's Manual, volume 2. Even and odd products are summed apart with fused
// multiply-adds, then both sums are added to C; rounded to nearest, denormals read and written as 0.
// Departures: what is tiny is decided after rounding to a denormal, by the processor as if there were none.

#include <kvtrim/core/element.hpp>
#include <kvtrim/core/status.hpp>
#include <kvtrim/simd/avx512.hpp>
#include <kvtrim/simd/cpu_level.hpp>

#if KVTRIM_HAS_X86

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

    // Sixteen columns at once: element by element a program without optimisation takes minutes for a prompt.
    KVTRIM_TARGET_AVX512 static void multiply_add(tile_data& c, const tile_data& a, const tile_data& b) {
        namespace vec = kvtrim::simd::avx512;
        using namespace vec;
        floats even_b[16], odd_b[16];
        for (int k = 0; k < 16; ++k) { load_pairs(b.rows[k], even_b[k], odd_b[k]); }
        for (int m = 0; m < 16; ++m) {
            floats pair[2];
            load_pairs(a.rows[m], pair[0], pair[1]);
            float even_a[16], odd_a[16], sums[16];
            vec::store(even_a, pair[0]);
            vec::store(odd_a, pair[1]);
            floats even = broadcast(0.0f), odd = even;
            for (int k = 0; k < 16; ++k) {
                even = normal(fma(broadcast(even_a[k]), even_b[k], even));
                odd = normal(fma(broadcast(odd_a[k]), odd_b[k], odd));
            }
            std::memcpy(sums, c.rows[m], 64);
            vec::store(sums, normal(normal(vec::load(sums)) + normal(even + odd)));
            std::memcpy(c.rows[m], sums, 64);
        }
    }
    KVTRIM_TARGET_AVX512 static void load_pairs(const unsigned char* row, kvtrim::simd::avx512::floats& even,
                                                kvtrim::simd::avx512::floats& odd) {
        kvtrim::bf16 pairs[32];
        std::memcpy(pairs, row, 64);
        kvtrim::simd::avx512::load_split(pairs, even, odd);
        even = normal(even);
        odd = normal(odd);
    }
    KVTRIM_TARGET_AVX512 static kvtrim::simd::avx512::floats normal(kvtrim::simd::avx512::floats x) {
        using namespace kvtrim::simd::avx512;
        const floats smallest = broadcast(std::numeric_limits<float>::min());
        return select(greater(smallest, absolute(x)), x * broadcast(0.0f), x); // 0 of the same sign
    }
};

} // namespace support

#endif // KVTRIM_HAS_X86
