// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Regions of source that are compiled for one instruction set, whatever the including program is compiled for.
//
//   KVTRIM_BEGIN_AVX2        every function from here on, templates and lambdas too, may use AVX2, FMA and F16C
//   KVTRIM_END_REGION        and from here on only what the program may
//
// A function of a region is never inlined into one outside of it, so code outside calls it through a table of function
// pointers (simd/choose.hpp). Standard headers are included before a region begins.

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define KVTRIM_HAS_X86 1
#else
#define KVTRIM_HAS_X86 0
#endif
#if defined(__aarch64__) && defined(__ARM_NEON)
#define KVTRIM_HAS_NEON 1
#define KVTRIM_BASELINE neon // the target of every processor of the architecture
#else
#define KVTRIM_HAS_NEON 0
#define KVTRIM_BASELINE portable
#endif

// On aarch64 g++ 12 defines __FLT16_MANT_DIG__, but it has the type in C only.
#if defined(__FLT16_MANT_DIG__) && (defined(__clang__) || defined(__SSE2__) || __GNUC__ >= 13)
#define KVTRIM_HAS_FLOAT16 1
#else
#define KVTRIM_HAS_FLOAT16 0
#endif

#define KVTRIM_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define KVTRIM_BEGIN_REGION(features)                                                                        \
    KVTRIM_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define KVTRIM_END_REGION KVTRIM_PRAGMA(clang attribute pop)
#else
#define KVTRIM_BEGIN_REGION(features) KVTRIM_PRAGMA(GCC push_options) KVTRIM_PRAGMA(GCC target(features))
#define KVTRIM_END_REGION KVTRIM_PRAGMA(GCC pop_options)
#endif

#define KVTRIM_AVX2_FEATURES "avx2,fma,f16c"
#define KVTRIM_AVX512_FEATURES "avx512f,avx512bw,avx512dq,avx512vl,fma,f16c"
#define KVTRIM_AMX_FEATURES "amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,f16c"
#define KVTRIM_BEGIN_AVX2 KVTRIM_BEGIN_REGION(KVTRIM_AVX2_FEATURES)
#define KVTRIM_BEGIN_AVX512 KVTRIM_BEGIN_REGION(KVTRIM_AVX512_FEATURES)
#define KVTRIM_BEGIN_AMX KVTRIM_BEGIN_REGION(KVTRIM_AMX_FEATURES)

#if defined(__clang__)
#define KVTRIM_BEGIN_NEON_BF16 KVTRIM_BEGIN_REGION("bf16")
#else
#define KVTRIM_BEGIN_NEON_BF16 KVTRIM_BEGIN_REGION("+bf16")
#endif

// The same for single functions.
#define KVTRIM_TARGET_AVX2 __attribute__((target(KVTRIM_AVX2_FEATURES)))
#define KVTRIM_TARGET_AVX512 __attribute__((target(KVTRIM_AVX512_FEATURES)))
#define KVTRIM_TARGET_AMX __attribute__((target(KVTRIM_AMX_FEATURES)))

// A function that is always inlined.
#define KVTRIM_INLINE __attribute__((always_inline)) inline

// Before every loop over an array that is meant to live in registers: g++ unrolls no such loop at -O2 by itself, and
// an array that is indexed by a variable lives in memory.
#if defined(__clang__)
#define KVTRIM_UNROLL KVTRIM_PRAGMA(clang loop unroll(full))
#else
#define KVTRIM_UNROLL KVTRIM_PRAGMA(GCC unroll 32)
#endif
