// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The one place that chooses among the targets. Each family of kernels has a struct of function pointers, and each target
// a constant of it, which its body defines:
//
//   const window_kernels& steps = KVTRIM_CHOOSE(level, window_table);
//
// Between avx512 and amx, which a table of its own may extend by products of tiles, nothing else differs.

#include <kvtrim/simd/cpu.hpp>

#if KVTRIM_HAS_X86
#define KVTRIM_CHOOSE(level, table)                                                                          \
    (level) >= cpu_level::avx512 ? avx512::table                                                             \
    : (level) >= cpu_level::avx2 ? avx2::table                                                               \
                                 : KVTRIM_BASELINE::table
#else
#define KVTRIM_CHOOSE(level, table)                                                                          \
    (level) == cpu_level::portable ? KVTRIM_BASELINE::table : KVTRIM_BASELINE::table
#endif
