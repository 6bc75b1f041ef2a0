// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Which instruction set the kernels use: found out at run time, so that a program compiled for plain x86-64 runs the
// best path of the machine it is on.
//
// KVTRIM_CPU_LEVEL=portable|avx512 in the environment, or set_cpu_level(), lowers the level; a level that the
// machine lacks is never used. Levels differ in speed, and in results within rounding.

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <string_view>

// The functions of a level are compiled for it one by one; the rest of the program is not touched.
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define KVTRIM_HAS_X86 1
#define KVTRIM_TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")))
#else
#define KVTRIM_HAS_X86 0
#endif

namespace kvtrim {

enum class cpu_level : std::uint8_t { portable, avx512 };

namespace detail {

[[nodiscard]] inline cpu_level detect_cpu_level() {
#if KVTRIM_HAS_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("fma")) {
        return cpu_level::avx512;
    }
#endif
    return cpu_level::portable;
}

[[nodiscard]] inline cpu_level wanted_cpu_level() {
    const char* wanted = std::getenv("KVTRIM_CPU_LEVEL");
    return wanted != nullptr && std::string_view(wanted) == "portable" ? cpu_level::portable
                                                                       : cpu_level::avx512;
}

[[nodiscard]] inline std::atomic<cpu_level>& current_cpu_level() {
    static std::atomic<cpu_level> level{wanted_cpu_level() < detect_cpu_level() ? wanted_cpu_level()
                                                                                : detect_cpu_level()};
    return level;
}

} // namespace detail

// The best level of this machine.
[[nodiscard]] inline cpu_level best_cpu_level() {
    static const cpu_level best = detail::detect_cpu_level();
    return best;
}

// The level that kernels use from now on, in the whole program.
[[nodiscard]] inline cpu_level active_cpu_level() {
    return detail::current_cpu_level().load(std::memory_order_relaxed);
}

// Sets it, at most to best_cpu_level(), and returns the one in force. Thread-safe; calls under way keep theirs.
inline cpu_level set_cpu_level(cpu_level level) {
    const cpu_level possible = level < best_cpu_level() ? level : best_cpu_level();
    detail::current_cpu_level().store(possible, std::memory_order_relaxed);
    return possible;
}

[[nodiscard]] constexpr const char* name_of(cpu_level level) {
    return level == cpu_level::avx512 ? "avx512" : "portable";
}

} // namespace kvtrim
