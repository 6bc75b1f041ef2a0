// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Runs the AMX instructions of this program on a machine without them: each traps, is decoded and handed to
// emulated_tiles. What is tested this way is the code that the compiler made of simd::amx_tiles: which instruction, which
// registers, which memory, in which order among the stores and loads around it.
//
// Source: the encodings of LDTILECFG, TILERELEASE, TILEZERO, TILELOADD, TILESTORED and TDPBF16PS in Intel's Software
// Developer's Manual, volume 2: VEX.128.0F38.W0, three-byte form.

#include "support/cpu_levels.hpp"
#include "support/emulated_tiles.hpp"

#if KVTRIM_HAS_X86 && defined(__linux__)

#include <kvtrim/simd/amx_tiles.hpp>

#include <csignal>
#include <ucontext.h>
#include <utility>

namespace support {

// Whether AMX's instructions may be executed: by the processor, or, where it has none, by trapped_tiles.
inline bool may_execute_tiles() {
    const bool real = kvtrim::best_cpu_level() >= kvtrim::cpu_level::amx;
    if (kvtrim::detail::has_amx() && !real) {
        WARN("AMX on this machine may not be used: its instructions are not tested");
        return false;
    }
    if (!real) { WARN("no AMX on this machine: its instructions are decoded, not executed"); }
    return true;
}
// The same of what is AVX-512 around them, without bf16 and with it.
inline bool runs_tile_instructions() {
    return runs_avx512() && may_execute_tiles();
}
inline bool runs_bf16_tile_instructions() {
    return runs_bf16_vectors() && may_execute_tiles();
}

class trapped_tiles {
  public:
    trapped_tiles() {
        struct sigaction action = {};
        action.sa_sigaction = &on_trap;
        action.sa_flags = SA_SIGINFO;
        sigaction(SIGILL, &action, &before_);
    }
    trapped_tiles(const trapped_tiles&) = delete;
    trapped_tiles& operator=(const trapped_tiles&) = delete;
    ~trapped_tiles() { sigaction(SIGILL, &before_, nullptr); }

  private:
    // One instruction at `code`: an operation, and a place in memory or three registers.
    struct instruction {
        unsigned opcode, prefix; // prefix: 0 none, 2 F3, 3 F2
        bool in_memory;
        int reg, rm, vvvv;
        char* address;
        std::int64_t stride;
        std::int64_t length;
    };

    static instruction decode(const unsigned char* code, const greg_t* registers) {
        static constexpr int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                          REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                          REG_R12, REG_R13, REG_R14, REG_R15};
        const auto value = [&](unsigned number) {
            return static_cast<std::int64_t>(registers[order[number]]);
        };
        // 0F38 map, registers below 8 for tiles, W0, 128 bits.
        if (code[0] != 0xc4 || (code[1] & 0x9f) != 0x82 || (code[2] & 0x84) != 0) { refuse(code); }
        const unsigned x = (code[1] & 0x40) != 0 ? 0 : 8, b = (code[1] & 0x20) != 0 ? 0 : 8;
        const unsigned mode = code[4] >> 6, rm = code[4] & 7u;
        instruction i{code[3],
                      code[2] & 3u,
                      mode != 3,
                      (code[4] >> 3) & 7,
                      static_cast<int>(rm),
                      static_cast<int>(~(code[2] >> 3) & 15u),
                      nullptr,
                      0,
                      5};
        if (!i.in_memory) { return i; }
        std::int64_t address = 0;
        bool relative = false;
        if (rm == 4) { // base + index * scale
            const unsigned sib = code[5], index = (sib >> 3 & 7u) | x;
            ++i.length;
            if (mode == 0 && (sib & 7u) == 5) { refuse(code); } // without a base: not from a pointer
            address = value((sib & 7u) | b);
            i.stride = index == 4 ? 0 : value(index) << (sib >> 6);
        } else if (rm == 5 && mode == 0) {
            relative = true;
        } else {
            address = value(rm | b);
        }
        if (mode == 1) {
            address += static_cast<signed char>(code[i.length]);
            i.length += 1;
        } else if (mode == 2 || relative) {
            std::int32_t displacement = 0;
            std::memcpy(&displacement, code + i.length, 4);
            address += displacement;
            i.length += 4;
        }
        if (relative) { address += static_cast<std::int64_t>(registers[REG_RIP]) + i.length; }
        i.address = reinterpret_cast<char*>(address);
        return i;
    }

    static void run(const unsigned char* code, const instruction& i) {
        if (i.opcode == 0x49 && i.prefix == 0 && i.in_memory) {
            const kvtrim::simd::amx_configuration expected;
            if (std::memcmp(i.address, &expected, sizeof expected) != 0) { refuse(code); }
            emulated_tiles::configure();
        } else if (i.opcode == 0x49 && i.prefix == 0) {
            emulated_tiles::release();
        } else if (i.opcode == 0x49 && i.prefix == 3 && !i.in_memory) {
            for_tile(i.reg, [](auto t) { emulated_tiles::zero<t()>(); });
        } else if (i.opcode == 0x4b && i.prefix == 3 && i.in_memory) {
            for_tile(i.reg, [&](auto t) { emulated_tiles::load<t()>(i.address, i.stride); });
        } else if (i.opcode == 0x4b && i.prefix == 2 && i.in_memory) {
            for_tile(i.reg, [&](auto t) { emulated_tiles::store<t()>(i.address, i.stride); });
        } else if (i.opcode == 0x5c && i.prefix == 2 && !i.in_memory) {
            emulated_tiles::multiply_add(i.reg, i.rm, i.vvvv);
        } else {
            refuse(code);
        }
    }

    // Calls fn(std::integral_constant) of a number that is known only now.
    template <class Fn>
    static void for_tile(int tile, Fn&& fn) {
        [&]<int... T>(std::integer_sequence<int, T...>) {
            ((tile == T ? fn(std::integral_constant<int, T>{}) : void()), ...);
        }
        (std::make_integer_sequence<int, 8>{});
    }

    static void on_trap(int, siginfo_t*, void* context) {
        greg_t* const registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
        const auto* const code = reinterpret_cast<const unsigned char*>(registers[REG_RIP]);
        const instruction i = decode(code, registers);
        run(code, i);
        registers[REG_RIP] += i.length;
    }

    [[noreturn]] static void refuse(const unsigned char* code) {
        std::fprintf(stderr, "trapped_tiles: not an instruction of amx_tiles: %02x %02x %02x %02x %02x\n",
                     code[0], code[1], code[2], code[3], code[4]);
        std::abort();
    }

    struct sigaction before_ = {};
};

} // namespace support

#endif
