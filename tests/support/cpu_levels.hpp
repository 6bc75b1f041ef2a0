// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The CPU levels, those of this machine, and one of them for the length of a scope.

#include "support/catch.hpp"

#include <kvtrim/simd/cpu_level.hpp>

#include <cstring>
#include <vector>

namespace support {

class cpu_level_guard {
  public:
    explicit cpu_level_guard(kvtrim::cpu_level level) : before_(kvtrim::active_cpu_level()) {
        kvtrim::set_cpu_level(level);
    }
    cpu_level_guard(const cpu_level_guard&) = delete;
    cpu_level_guard& operator=(const cpu_level_guard&) = delete;
    ~cpu_level_guard() { kvtrim::set_cpu_level(before_); }

  private:
    kvtrim::cpu_level before_;
};

// The levels of all architectures, the lowest first: as many as have a name.
inline std::vector<kvtrim::cpu_level> all_cpu_levels() {
    std::vector<kvtrim::cpu_level> levels;
    while (std::strcmp(kvtrim::name_of(static_cast<kvtrim::cpu_level>(levels.size())), "unknown") != 0) {
        levels.push_back(static_cast<kvtrim::cpu_level>(levels.size()));
    }
    return levels;
}

// Those of this machine.
inline std::vector<kvtrim::cpu_level> cpu_levels() {
    std::vector<kvtrim::cpu_level> levels = all_cpu_levels();
    std::erase_if(levels, [](auto level) { return kvtrim::detail::detect_cpu_level(level) != level; });
    return levels;
}

// The best level at which products of 16-bit elements sum as those of their floats do: the others multiply bf16 in pairs.
inline kvtrim::cpu_level level_of_float_sums() {
    const kvtrim::cpu_level best = kvtrim::active_cpu_level();
    return best == kvtrim::cpu_level::amx         ? kvtrim::cpu_level::avx512
           : best == kvtrim::cpu_level::neon_bf16 ? kvtrim::cpu_level::portable
                                                  : best;
}

// Whether the vector part of what multiplies in tiles of bf16 runs here, whatever multiplies: AVX-512 with bf16. Printed, so
// that a log shows what was not tested.
inline bool runs_bf16_vectors() {
#if KVTRIM_HAS_X86
    if (kvtrim::best_cpu_level() >= kvtrim::cpu_level::avx512 && __builtin_cpu_supports("avx512bf16")) {
        return true;
    }
#endif
    WARN("no AVX-512 with bf16 on this machine: not tested");
    return false;
}

// The same for what is AVX-512 without bf16.
inline bool runs_avx512() {
    if (kvtrim::best_cpu_level() >= kvtrim::cpu_level::avx512) { return true; }
    WARN("no AVX-512 on this machine: not tested");
    return false;
}

// Whether kernels of this level multiply bf16, where they are compiled for the processor's family.
inline bool has_bf16_products(kvtrim::cpu_level level) {
    return level >= (KVTRIM_HAS_X86 ? kvtrim::cpu_level::amx : kvtrim::cpu_level::neon_bf16) &&
           (KVTRIM_HAS_X86 || KVTRIM_HAS_NEON);
}

// Whether this machine multiplies bf16 by BFMMLA. Printed likewise.
inline bool runs_bfmmla() {
    if (kvtrim::best_cpu_level() == kvtrim::cpu_level::neon_bf16) { return true; }
    WARN("no BFMMLA on this machine: not tested");
    return false;
}

// Calls fn() at each level of this machine.
template <class Fn>
void at_each_cpu_level(Fn&& fn) {
    for (const kvtrim::cpu_level level : cpu_levels()) {
        const cpu_level_guard guard(level);
        CAPTURE(kvtrim::name_of(level));
        fn();
    }
}

} // namespace support
