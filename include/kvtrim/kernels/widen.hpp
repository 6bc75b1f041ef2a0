// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Contiguous f16, bf16 and fp8 elements to floats, exactly.

#include <kvtrim/base/fp8.hpp>
#include <kvtrim/base/status.hpp>
#include <kvtrim/simd/cpu.hpp>

#if KVTRIM_HAS_X86
#include <immintrin.h>
#endif

#include <type_traits>

namespace kvtrim::kernels {

// The elements that have a vector path here.
template <class T>
inline constexpr bool is_widened = std::is_same_v<T, f16> || std::is_same_v<T, bf16> ||
                                   std::is_same_v<T, f8_e4m3> || std::is_same_v<T, f8_e5m2>;

namespace detail {

template <class T>
void widen_portable(const T* from, index_t count, float* to) {
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
// fp8 by way of f16: e5m2 is its high byte; e4m3 moves to its place below the sign, 2^8 too small.
KVTRIM_TARGET_AVX2 inline index_t widen_avx2(const f8_e5m2* from, index_t count, float* to) {
    index_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const __m128i bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + i));
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_unpacklo_epi8(_mm_setzero_si128(), bits)));
    }
    return i;
}
KVTRIM_TARGET_AVX2 inline index_t widen_avx2(const f8_e4m3* from, index_t count, float* to) {
    const __m128i magnitude = _mm_set1_epi16(0x3f80);
    index_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const __m128i bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + i));
        const __m128i half =
            _mm_and_si128(_mm_slli_epi16(_mm_cvtepi8_epi16(bits), 7), _mm_set1_epi16(-0x4080)); // 0xbf80
        const __m128i is_nan = _mm_cmpeq_epi16(_mm_and_si128(half, magnitude), magnitude);
        const __m128i kept = _mm_or_si128(half, _mm_and_si128(is_nan, _mm_set1_epi16(0x7e00)));
        _mm256_storeu_ps(to + i, _mm256_mul_ps(_mm256_cvtph_ps(kept), _mm256_set1_ps(256.0f)));
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
KVTRIM_TARGET_AVX512 inline index_t widen_avx512(const f8_e5m2* from, index_t count, float* to) {
    index_t i = 0;
    for (; i + 16 <= count; i += 16) {
        const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
        const __m256i half = _mm256_slli_epi16(_mm256_cvtepu8_epi16(bits), 8);
        _mm512_storeu_ps(to + i, _mm512_maskz_cvtph_ps(0xffff, half));
    }
    return i;
}
KVTRIM_TARGET_AVX512 inline index_t widen_avx512(const f8_e4m3* from, index_t count, float* to) {
    const __m256i magnitude = _mm256_set1_epi16(0x3f80);
    index_t i = 0;
    for (; i + 16 <= count; i += 16) {
        const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
        const __m256i half = _mm256_and_si256(_mm256_slli_epi16(_mm256_cvtepi8_epi16(bits), 7),
                                              _mm256_set1_epi16(-0x4080)); // 0xbf80
        const __m256i is_nan = _mm256_cmpeq_epi16(_mm256_and_si256(half, magnitude), magnitude);
        const __m256i kept = _mm256_or_si256(half, _mm256_and_si256(is_nan, _mm256_set1_epi16(0x7e00)));
        _mm512_storeu_ps(to + i, _mm512_mul_ps(_mm512_maskz_cvtph_ps(0xffff, kept), _mm512_set1_ps(256.0f)));
    }
    return i;
}
#endif

} // namespace detail

template <class T>
void widen(const T* from, index_t count, float* to) {
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
