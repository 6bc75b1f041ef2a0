// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Chooses among the targets at run time. KVTRIM_CHOOSE(level, name) is `name` in the namespace of the level's target. It may be
// a table of function pointers, where a family of kernels has one, or a function:
//
//   const window_kernels& steps = KVTRIM_CHOOSE(level, window_table);
//   (KVTRIM_CHOOSE(level, scale_row<Code>))(codes, count, by, to);
//
// Where targets differ in a class, the body defines a function template that calls its argument with that class, and
// KVTRIM_CHOOSE picks among those (kernels/with_query_tile.hpp).
//
// Level amx is level avx512 with other products of bf16, and level neon_bf16 is NEON with others. For a family of kernels that
// has such products, KVTRIM_CHOOSE_PRODUCTS(level, of_amx, of_bfmmla, name) is `of_amx` or `of_bfmmla` at that level, and
// KVTRIM_CHOOSE(level, name) at all others. What is meant for another architecture is not compiled. What a family does with these
// products is also written once (simd/for_each_bf16_target.inl).

#include <kvtrim/simd/cpu_level.hpp>

#if KVTRIM_HAS_X86
#define KVTRIM_CHOOSE(level, ...)                                                                            \
    (level) >= cpu_level::avx512 ? avx512::__VA_ARGS__                                                       \
    : (level) >= cpu_level::avx2 ? avx2::__VA_ARGS__                                                         \
                                 : KVTRIM_BASELINE::__VA_ARGS__
#define KVTRIM_CHOOSE_PRODUCTS(level, of_amx, of_bfmmla, ...)                                                \
    (level) >= cpu_level::amx ? of_amx : KVTRIM_CHOOSE(level, __VA_ARGS__)
#else
#define KVTRIM_CHOOSE(level, ...)                                                                            \
    (level) == cpu_level::portable ? KVTRIM_BASELINE::__VA_ARGS__ : KVTRIM_BASELINE::__VA_ARGS__
#if KVTRIM_HAS_NEON
#define KVTRIM_CHOOSE_PRODUCTS(level, of_amx, of_bfmmla, ...)                                                \
    (level) >= cpu_level::neon_bf16 ? of_bfmmla : KVTRIM_BASELINE::__VA_ARGS__
#else
#define KVTRIM_CHOOSE_PRODUCTS(level, of_amx, of_bfmmla, ...) KVTRIM_CHOOSE(level, __VA_ARGS__)
#endif
#endif
