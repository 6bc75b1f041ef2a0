// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Chooses among the targets at run time. Each family of kernels has a struct of function pointers, and each target
// a constant of it, which its body defines:
//
//   const window_kernels& steps = KVTRIM_CHOOSE(level, window_table);
//
// Where targets differ in a class, the body defines a function template that calls its argument with that class, and
// KVTRIM_CHOOSE picks among those (kernels/with_query_tile.hpp).
//
// Level amx is level avx512 with products of tiles, where a family has them:
// KVTRIM_CHOOSE_TILES(level, tiles, others) is `tiles` at level amx, which is not compiled where there is no such level.

#include <kvtrim/simd/cpu_level.hpp>

#if KVTRIM_HAS_X86
#define KVTRIM_CHOOSE(level, ...)                                                                            \
    (level) >= cpu_level::avx512 ? avx512::__VA_ARGS__                                                       \
    : (level) >= cpu_level::avx2 ? avx2::__VA_ARGS__                                                         \
                                 : KVTRIM_BASELINE::__VA_ARGS__
#define KVTRIM_CHOOSE_TILES(level, tiles, ...) (level) >= cpu_level::amx ? tiles : (__VA_ARGS__)
#else
#define KVTRIM_CHOOSE_TILES(level, tiles, ...) (__VA_ARGS__)
#define KVTRIM_CHOOSE(level, ...)                                                                            \
    (level) == cpu_level::portable ? KVTRIM_BASELINE::__VA_ARGS__ : KVTRIM_BASELINE::__VA_ARGS__
#endif
