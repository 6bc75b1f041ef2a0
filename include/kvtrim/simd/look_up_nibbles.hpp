// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Sixteen floats in one vector, looked up by codes of four bits: a primitive that only targets of sixteen lanes have. A body
// asks for it: `if constexpr (requires { look_up_nibbles(table, from, to); })`, in a template.

#include <kvtrim/simd/avx512.hpp>

#if KVTRIM_HAS_X86

KVTRIM_BEGIN_AVX512

namespace KVTRIM_NAMESPACE::simd::avx512 {

/// to [32] = table [16] at 4 bits each: the low halves of 16 bytes, then the high ones.
KVTRIM_INLINE void look_up_nibbles(floats table, const std::uint8_t* from, floats* to) {
    const __m512i places = _mm512_maskz_cvtepu8_epi32(0xffff, bits_of(from)); // of which four bits count
    to[0] = _mm512_maskz_permutexvar_ps(0xffff, places, table);
    to[1] = _mm512_maskz_permutexvar_ps(0xffff, _mm512_maskz_srli_epi32(0xffff, places, 4), table);
}

} // namespace KVTRIM_NAMESPACE::simd::avx512

KVTRIM_END_REGION

#endif // KVTRIM_HAS_X86
