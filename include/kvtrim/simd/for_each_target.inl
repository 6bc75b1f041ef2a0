// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Includes KVTRIM_BODY, a file of kernels with the primitives of simd/simd.hpp, once for each target: there KVTRIM_TARGET is
// the name of the target's namespace, below kvtrim::simd (its primitives) and below kvtrim::kernels (its kernels).

#define KVTRIM_TARGET KVTRIM_BASELINE
#include KVTRIM_BODY
#undef KVTRIM_TARGET

#if KVTRIM_HAS_X86
#define KVTRIM_TARGET avx2
KVTRIM_BEGIN_AVX2
#include KVTRIM_BODY
KVTRIM_END_REGION
#undef KVTRIM_TARGET

#define KVTRIM_TARGET avx512
KVTRIM_BEGIN_AVX512
#include KVTRIM_BODY
KVTRIM_END_REGION
#undef KVTRIM_TARGET
#endif

#undef KVTRIM_BODY
