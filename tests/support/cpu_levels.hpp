// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Every instruction set that this machine has, one after the other.

#include <kvtrim/kernels/cpu.hpp>

namespace support {

// Calls fn(name of the level) with the level in force, and puts the old one back.
template <class Fn>
void for_each_cpu_level(Fn&& fn) {
    struct restored_level {
        kvtrim::cpu_level previous = kvtrim::active_cpu_level();
        ~restored_level() { kvtrim::set_cpu_level(previous); }
    };
    const restored_level guard;
    for (const auto level : {kvtrim::cpu_level::portable, kvtrim::cpu_level::avx512}) {
        if (kvtrim::set_cpu_level(level) == level) { fn(kvtrim::name_of(level)); }
    }
}

} // namespace support
