// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The eight tile registers of AMX: C [16][16] floats, A [16][32] bf16 and B [16 pairs][16][2] bf16, 16 rows of 64 bytes
// each.
//
//   C[m][n] += sum over k < 32 of A[m][k] * B[k / 2][n][k % 2]      TDPBF16PS: rounded to nearest after each product,
//                                                                  denormals read and written as 0
//
// A thread calls configure() before its first tile operation and release() after the last; between them the tiles belong to
// that thread. Tests run the same code over an emulation with these members (tests/support/emulated_tiles.hpp).
//
// The compilers' intrinsics are not used. Those of GCC 12 paste the register's number into text, so it cannot be a template
// argument, and they do not declare the memory that they read, so GCC may move earlier stores past them.

#include <kvtrim/core/status.hpp>
#include <kvtrim/simd/cpu_level.hpp>

#if KVTRIM_HAS_X86

namespace KVTRIM_NAMESPACE::simd {

/// Operand of ldtilecfg: 16 rows of 64 bytes in each of eight tiles.
struct alignas(64) amx_configuration {
    std::uint8_t palette = 1;                                       ///< 1: eight tiles
    std::uint8_t start_row = 0;                                     ///< 0: instructions are not resumed
    std::uint8_t reserved[14] = {};                                 ///< 0
    std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64}; ///< of each tile
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};       ///< of each tile
};
static_assert(sizeof(amx_configuration) == 64);

/// The tile operations. Requires cpu_level::amx. Each is written in both assembly dialects, because the including program
/// may be compiled with either.
struct amx_tiles {
    /// Before the first tile operation of a thread.
    KVTRIM_TARGET_AMX static void configure() {
        static constexpr amx_configuration all;
        __asm__ volatile("ldtilecfg %0" ::"m"(all));
    }
    /// After the last tile operation of a thread.
    KVTRIM_TARGET_AMX static void release() { __asm__ volatile("tilerelease"); }

    /// Tile = 0.
    template <int Tile>
    KVTRIM_TARGET_AMX static void zero() {
        __asm__ volatile("{tilezero %%tmm%c0|tilezero tmm%c0}" ::"i"(Tile));
    }
    /// Loads a tile: row r is the 64 bytes at from + r * stride_bytes.
    template <int Tile>
    KVTRIM_TARGET_AMX static void load(const void* from, index_t stride_bytes) {
        __asm__ volatile("{tileloadd (%0,%1,1), %%tmm%c2|tileloadd tmm%c2, [%0+%1*1]}" ::"r"(from),
                         "r"(stride_bytes), "i"(Tile)
                         : "memory");
    }
    /// Stores a tile: row r goes to the 64 bytes at to + r * stride_bytes.
    template <int Tile>
    KVTRIM_TARGET_AMX static void store(void* to, index_t stride_bytes) {
        __asm__ volatile("{tilestored %%tmm%c2, (%0,%1,1)|tilestored [%0+%1*1], tmm%c2}" ::"r"(to),
                         "r"(stride_bytes), "i"(Tile)
                         : "memory");
    }
    /// C += A * B.
    template <int C, int A, int B>
    KVTRIM_TARGET_AMX static void multiply_add() {
        __asm__ volatile("{tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0|tdpbf16ps tmm%c0, tmm%c1, tmm%c2}" ::"i"(C),
                         "i"(A), "i"(B));
    }
};

} // namespace KVTRIM_NAMESPACE::simd

#endif // KVTRIM_HAS_X86
