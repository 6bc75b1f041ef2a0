// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A row of codes to floats, with one scale and zero point for the row, or with one of each per channel.
//
//   to[i] = scale[i * step] * (code[i] - zero[i * step])        step 0 or 1
//
// Codes are signed bytes, or floats that were widened before. Numerics: one rounded difference, one rounded product; the
// same at every level. A zero point that is an integer costs no rounding.

#include <kvtrim/base/contract.hpp>
#include <kvtrim/base/status.hpp>
#include <kvtrim/simd/cpu.hpp>

#include <cstdint>

#if KVTRIM_HAS_X86
#include <immintrin.h>
#endif

namespace kvtrim::kernels {

struct code_scales {
    const float* scale;
    const float* zero; // null: 0 everywhere
    index_t step;      // 0: of the row, 1: of each channel
};

namespace detail {

#if KVTRIM_HAS_X86
KVTRIM_TARGET_AVX2 inline __m256 eight_codes(const std::int8_t* from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}
KVTRIM_TARGET_AVX2 inline __m256 eight_codes(const float* from) {
    return _mm256_loadu_ps(from);
}

template <bool PerChannel, class Code>
KVTRIM_TARGET_AVX2 index_t scale_codes_avx2(const Code* codes, index_t count, const float* scales,
                                            const float* zeros, float* to) {
    __m256 scale = _mm256_set1_ps(scales[0]);
    __m256 zero = zeros != nullptr ? _mm256_set1_ps(zeros[0]) : _mm256_setzero_ps();
    index_t i = 0;
    for (; i + 8 <= count; i += 8) {
        if constexpr (PerChannel) {
            scale = _mm256_loadu_ps(scales + i);
            if (zeros != nullptr) { zero = _mm256_loadu_ps(zeros + i); }
        }
        _mm256_storeu_ps(to + i, _mm256_mul_ps(scale, _mm256_sub_ps(eight_codes(codes + i), zero)));
    }
    return i;
}

KVTRIM_TARGET_AVX512 inline __m512 sixteen_codes(const std::int8_t* from) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepi8_epi32(0xffff, codes));
}
KVTRIM_TARGET_AVX512 inline __m512 sixteen_codes(const float* from) {
    return _mm512_loadu_ps(from);
}

template <bool PerChannel, class Code>
KVTRIM_TARGET_AVX512 index_t scale_codes_avx512(const Code* codes, index_t count, const float* scales,
                                                const float* zeros, float* to) {
    __m512 scale = _mm512_set1_ps(scales[0]);
    __m512 zero = zeros != nullptr ? _mm512_set1_ps(zeros[0]) : _mm512_setzero_ps();
    index_t i = 0;
    for (; i + 16 <= count; i += 16) {
        if constexpr (PerChannel) {
            scale = _mm512_loadu_ps(scales + i);
            if (zeros != nullptr) { zero = _mm512_loadu_ps(zeros + i); }
        }
        _mm512_storeu_ps(to + i, _mm512_mul_ps(scale, _mm512_sub_ps(sixteen_codes(codes + i), zero)));
    }
    return i;
}
#endif

template <bool PerChannel, class Code>
void scale_codes(const Code* codes, index_t count, const code_scales& by, float* to) {
    index_t done = 0;
#if KVTRIM_HAS_X86
    const cpu_level level = active_cpu_level();
    if (level >= cpu_level::avx512) {
        done = scale_codes_avx512<PerChannel>(codes, count, by.scale, by.zero, to);
    } else if (level >= cpu_level::avx2) {
        done = scale_codes_avx2<PerChannel>(codes, count, by.scale, by.zero, to);
    }
#endif
    for (index_t i = done; i < count; ++i) {
        const index_t s = PerChannel ? i : 0;
        const float zero = by.zero != nullptr ? by.zero[s] : 0.0f;
        to[i] = by.scale[s] * (static_cast<float>(codes[i]) - zero);
    }
}

} // namespace detail

// Requires count > 0 and step 0 or 1. to may be codes, where these are floats.
template <class Code>
void scale_codes(const Code* codes, index_t count, const code_scales& by, float* to) {
    if (by.step == 0) { return detail::scale_codes<false>(codes, count, by, to); }
    detail::scale_codes<true>(codes, count, by, to);
}

} // namespace kvtrim::kernels
