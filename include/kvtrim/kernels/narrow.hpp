// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Contiguous floats to elements, rounded to nearest even: the way back of widen.hpp. A NaN stays one; which, differs.

#include <kvtrim/base/element.hpp>
#include <kvtrim/base/status.hpp>
#include <kvtrim/simd/cpu.hpp>

#if KVTRIM_HAS_X86
#include <immintrin.h>
#endif

namespace kvtrim::kernels {

namespace detail {

#if KVTRIM_HAS_X86
KVTRIM_TARGET_AVX2 inline index_t narrow_avx2(const float* from, index_t count, f16* to) {
    index_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), half);
    }
    return i;
}
KVTRIM_TARGET_AVX2 inline index_t narrow_avx2(const float* from, index_t count, bf16* to) {
    index_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const __m256 x = _mm256_loadu_ps(from + i);
        const __m256i bits = _mm256_castps_si256(x);
        const __m256i last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(last, _mm256_set1_epi32(0x7fff)));
        const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
        const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
        const __m128i half =
            _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), half);
    }
    return i;
}

KVTRIM_TARGET_AVX512 inline index_t narrow_avx512(const float* from, index_t count, f16* to) {
    index_t i = 0;
    for (; i + 16 <= count; i += 16) {
        const __m256i half =
            _mm512_maskz_cvtps_ph(0xffff, _mm512_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), half);
    }
    return i;
}
KVTRIM_TARGET_AVX512 inline index_t narrow_avx512(const float* from, index_t count, bf16* to) {
    index_t i = 0;
    for (; i + 16 <= count; i += 16) {
        const __m512 x = _mm512_loadu_ps(from + i);
        const __m512i bits = _mm512_castps_si512(x);
        const __m512i last =
            _mm512_and_si512(_mm512_maskz_srli_epi32(0xffff, bits, 16), _mm512_set1_epi32(1));
        const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff)));
        const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
        const __m512i kept = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
        const __m256i half = _mm512_maskz_cvtepi32_epi16(0xffff, _mm512_maskz_srli_epi32(0xffff, kept, 16));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), half);
    }
    return i;
}
#endif

} // namespace detail

template <class T>
void narrow(const float* from, index_t count, T* to) {
    index_t done = 0;
#if KVTRIM_HAS_X86
    if constexpr (requires { detail::narrow_avx512(from, count, to); }) {
        const cpu_level level = active_cpu_level();
        if (level >= cpu_level::avx512) {
            done = detail::narrow_avx512(from, count, to);
        } else if (level >= cpu_level::avx2) {
            done = detail::narrow_avx2(from, count, to);
        }
    }
#endif
    for (index_t i = done; i < count; ++i) { to[i] = element_traits<T>::from_float(from[i]); }
}

} // namespace kvtrim::kernels
