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

#include <kvtrim/version.hpp>

// All names are in an inline namespace with the version, with what the including file is compiled for, and with whether the
// kernels are compiled apart (kernels/compiled.hpp): copies of kvtrim that differ in one of them share no inline function, of
// which a linker would keep either one's (docs/compatibility.md). Every header opens `namespace KVTRIM_NAMESPACE`.
#if !defined(KVTRIM_NAMESPACE_TAG)
#if defined(__AVX512FP16__)
#define KVTRIM_COMPILED_FOR _avx512fp16
#elif defined(__AVX512BF16__)
#define KVTRIM_COMPILED_FOR _avx512bf16
#elif defined(__AVX512VBMI__) || defined(__AVX512VNNI__)
#define KVTRIM_COMPILED_FOR _avx512vnni
#elif defined(__AVX512F__)
#define KVTRIM_COMPILED_FOR _avx512
#elif defined(__AVX2__)
#define KVTRIM_COMPILED_FOR _avx2
#elif defined(__AVX__)
#define KVTRIM_COMPILED_FOR _avx
#elif defined(__SSE4_1__) || defined(__BMI2__)
#define KVTRIM_COMPILED_FOR _sse4
#elif defined(__ARM_FEATURE_SVE2)
#define KVTRIM_COMPILED_FOR _sve2
#elif defined(__ARM_FEATURE_SVE)
#define KVTRIM_COMPILED_FOR _sve
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define KVTRIM_COMPILED_FOR _neon_bf16
#elif defined(__ARM_FEATURE_DOTPROD) || defined(__ARM_FEATURE_FP16_VECTOR_ARITHMETIC)
#define KVTRIM_COMPILED_FOR _neon_fp16
#elif defined(__ARM_FEATURE_ATOMICS)
#define KVTRIM_COMPILED_FOR _lse
#else
#define KVTRIM_COMPILED_FOR
#endif
#if defined(KVTRIM_COMPILED_KERNELS)
#define KVTRIM_KERNELS_ARE _compiled
#else
#define KVTRIM_KERNELS_ARE
#endif
#define KVTRIM_JOIN_(major, minor, patch, level, kernels) v##major##_##minor##_##patch##level##kernels
#define KVTRIM_JOIN(...) KVTRIM_JOIN_(__VA_ARGS__)
#define KVTRIM_NAMESPACE_TAG                                                                                 \
    KVTRIM_JOIN(KVTRIM_VERSION_MAJOR, KVTRIM_VERSION_MINOR, KVTRIM_VERSION_PATCH, KVTRIM_COMPILED_FOR,       \
                KVTRIM_KERNELS_ARE)
#endif
#define KVTRIM_NAMESPACE kvtrim::inline KVTRIM_NAMESPACE_TAG

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

// KVTRIM_INLINE: a function that is always inlined. KVTRIM_INLINED: the same of a lambda, behind its parameters.
// KVTRIM_NOINLINE: a function that never is.
#define KVTRIM_INLINED __attribute__((always_inline))
#define KVTRIM_INLINE KVTRIM_INLINED inline
#define KVTRIM_NOINLINE __attribute__((noinline))

// Before every loop over an array that is meant to live in registers: g++ unrolls no such loop at -O2 by itself, and
// an array that is indexed by a variable lives in memory.
#if defined(__clang__)
#define KVTRIM_UNROLL KVTRIM_PRAGMA(clang loop unroll(full))
#else
#define KVTRIM_UNROLL KVTRIM_PRAGMA(GCC unroll 32)
#endif
