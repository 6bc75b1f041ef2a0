// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Includes KVTRIM_BODY, a file of kernels, once for each target that has products of bf16 of its own. KVTRIM_TARGET is the
// namespace below kvtrim::kernels in which these are: kernels/amx_products.hpp, kernels/bfmmla_products.hpp. The other names in
// it are those of the target whose kernels the products complete.

#if KVTRIM_HAS_X86
#define KVTRIM_TARGET amx
KVTRIM_BEGIN_AMX
#include KVTRIM_BODY
KVTRIM_END_REGION
#undef KVTRIM_TARGET
#endif

#if KVTRIM_HAS_NEON
#define KVTRIM_TARGET bfmmla
KVTRIM_BEGIN_NEON_BF16
#include KVTRIM_BODY
KVTRIM_END_REGION
#undef KVTRIM_TARGET
#endif

#undef KVTRIM_BODY
