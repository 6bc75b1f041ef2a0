// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The instruction set that the kernels use, detected at run time, so that a program compiled for plain x86-64 runs the
// best path of the machine it is on.
//
// KVTRIM_CPU_LEVEL=portable|neon_bf16|avx2|avx512|amx in the environment, or set_cpu_level(), lowers the level; a level that the
// machine lacks is never used. Levels differ in speed, and in results within rounding.
// portable is what every processor of the architecture has: SSE2 on x86-64, NEON on aarch64.
//
// AMX needs a permission from Linux, which is requested once for the whole process when the level is detected. It makes
// signal frames larger by 8 KiB. A process that must not request it sets KVTRIM_CPU_LEVEL=avx512 and calls neither
// best_cpu_level() nor set_cpu_level().

#include <kvtrim/core/region.hpp>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#if KVTRIM_HAS_NEON && defined(__linux__)
#include <sys/auxv.h>
#endif
#if KVTRIM_HAS_X86
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace KVTRIM_NAMESPACE {

/// Instruction sets, each level above those before it that the architecture has.
enum class cpu_level : std::uint8_t {
    portable,  ///< of every processor of the architecture: SSE2, NEON
    neon_bf16, ///< ARM's products of bf16 matrices, with NEON for all else
    avx2,      ///< AVX2 with FMA and F16C
    avx512,    ///< AVX-512 F, BW, DQ and VL
    amx,       ///< bf16 tiles, with AVX-512 for all else
};

namespace detail {

#if KVTRIM_HAS_X86
[[nodiscard]] inline bool has_avx2() {
    __builtin_cpu_init();
    unsigned a = 0, b = 0, c = 0, d = 0;
    constexpr unsigned f16_conversions = 1u << 29; // __builtin_cpu_supports of clang 14 does not know it
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & f16_conversions) != 0;
}

[[nodiscard]] inline bool has_avx512() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("fma");
}

// The processor multiplies bf16 tiles and the system saves them when it switches threads. Requires has_avx512().
[[nodiscard]] inline bool has_amx() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    constexpr unsigned tiles = 1u << 24, bf16_products = 1u << 22, bf16_vectors = 1u << 5;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & tiles) == 0 || (d & bf16_products) == 0) {
        return false;
    }
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d) == 0 || (a & bf16_vectors) == 0) { return false; }
    unsigned low = 0, high = 0; // XCR0; AVX-512 is enabled, so xgetbv is
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    constexpr unsigned tile_states = 3u << 17; // configuration and data
    return (low & tile_states) == tile_states;
}

// Requests the permission to use AMX; it may be requested again.
[[nodiscard]] inline bool is_permitted_amx() {
#if defined(__linux__) && defined(SYS_arch_prctl)
    constexpr long request_permission = 0x1023, tile_data = 18; // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}
#endif

// The highest level of this machine that is not above `highest`.
[[nodiscard]] KVTRIM_NOINLINE inline cpu_level detect_cpu_level(cpu_level highest) {
#if KVTRIM_HAS_X86
    if (highest >= cpu_level::avx512 && has_avx512()) {
        return highest >= cpu_level::amx && has_amx() && is_permitted_amx() ? cpu_level::amx
                                                                            : cpu_level::avx512;
    }
    if (highest >= cpu_level::avx2 && has_avx2()) { return cpu_level::avx2; }
#elif KVTRIM_HAS_NEON && defined(__linux__)
    constexpr unsigned long bf16_products = 1ul << 14; // HWCAP2_BF16, which old headers do not name
    if (highest >= cpu_level::neon_bf16 && (getauxval(AT_HWCAP2) & bf16_products) != 0) {
        return cpu_level::neon_bf16;
    }
#endif
    static_cast<void>(highest);
    return cpu_level::portable;
}

[[nodiscard]] KVTRIM_NOINLINE inline cpu_level wanted_cpu_level() {
    const char* variable = std::getenv("KVTRIM_CPU_LEVEL");
    const auto is = [&](const char* name) { return variable != nullptr && std::strcmp(variable, name) == 0; };
    if (is("portable")) { return cpu_level::portable; }
    if (is("neon_bf16")) { return cpu_level::neon_bf16; }
    if (is("avx2")) { return cpu_level::avx2; }
    return is("avx512") ? cpu_level::avx512 : cpu_level::amx;
}

// Read and written by the compilers' atomic operations: <atomic> brings std::string and costs each file 0.2 s.
[[nodiscard]] inline cpu_level& current_cpu_level() {
    static cpu_level level = detect_cpu_level(wanted_cpu_level());
    return level;
}

} // namespace detail

/// The highest level of this machine.
[[nodiscard]] inline cpu_level best_cpu_level() {
    static const cpu_level best = detail::detect_cpu_level(cpu_level::amx);
    return best;
}

/// The level that kernels use now, in the whole program.
[[nodiscard]] inline cpu_level active_cpu_level() {
    cpu_level level;
    __atomic_load(&detail::current_cpu_level(), &level, __ATOMIC_RELAXED);
    return level;
}

/// Sets the active level, at most to best_cpu_level(), and returns it. Thread-safe; a call that is running keeps its level.
inline cpu_level set_cpu_level(cpu_level level) {
    cpu_level possible = detail::detect_cpu_level(level < best_cpu_level() ? level : best_cpu_level());
    __atomic_store(&detail::current_cpu_level(), &possible, __ATOMIC_RELAXED);
    return possible;
}

/// The name of a level, as KVTRIM_CPU_LEVEL takes it.
[[nodiscard]] constexpr const char* name_of(cpu_level level) {
    switch (level) {
    case cpu_level::portable:
        return "portable";
    case cpu_level::neon_bf16:
        return "neon_bf16";
    case cpu_level::avx2:
        return "avx2";
    case cpu_level::avx512:
        return "avx512";
    case cpu_level::amx:
        return "amx";
    }
    return "unknown";
}

} // namespace KVTRIM_NAMESPACE
