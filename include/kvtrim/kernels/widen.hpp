// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Contiguous f16 and bf16 elements to floats, exactly.

#include <kvtrim/base/element.hpp>
#include <kvtrim/base/status.hpp>
#include <kvtrim/kernels/cpu.hpp>

#if KVTRIM_HAS_X86
#include <immintrin.h>
#endif

namespace kvtrim::kernels {

namespace detail {

template <class Half>
void widen_portable(const Half* from, index_t count, float* to) {
    for (index_t i = 0; i < count; ++i) { to[i] = to_float(from[i]); }
}

#if KVTRIM_HAS_X86
KVTRIM_TARGET_AVX2 inline index_t widen_avx2(const bf16* from, index_t count, float* to) {
    index_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
        const __m256i wide = _mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16);
        _mm256_storeu_ps(to + i, _mm256_castsi256_ps(wide));
    }
    return i;
}
KVTRIM_TARGET_AVX2 inline index_t widen_avx2(const f16* from, index_t count, float* to) {
    index_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(bits));
    }
    return i;
}

KVTRIM_TARGET_AVX512 inline index_t widen_avx512(const bf16* from, index_t count, float* to) {
    index_t i = 0;
    for (; i + 16 <= count; i += 16) {
        const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i));
        _mm512_storeu_si512(to + i,
                            _mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, bits), 16));
    }
    return i;
}
KVTRIM_TARGET_AVX512 inline index_t widen_avx512(const f16* from, index_t count, float* to) {
    index_t i = 0;
    for (; i + 16 <= count; i += 16) {
        const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i));
        _mm512_storeu_ps(to + i, _mm512_maskz_cvtph_ps(0xffff, bits));
    }
    return i;
}
#endif

} // namespace detail

template <class Half>
void widen(const Half* from, index_t count, float* to) {
    index_t done = 0;
#if KVTRIM_HAS_X86
    const cpu_level level = active_cpu_level();
    if (level >= cpu_level::avx512) {
        done = detail::widen_avx512(from, count, to);
    } else if (level >= cpu_level::avx2) {
        done = detail::widen_avx2(from, count, to);
    }
#endif
    detail::widen_portable(from + done, count - done, to + done);
}

} // namespace kvtrim::kernels
