// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Blocks of 32 quantised elements, as ggml stores them, to floats.
//
//   q8_0   f16 scale d, 32 signed bytes q:   x[i] = d * q[i]                                        34 bytes
//   q4_0   f16 scale d, 16 bytes b:          x[i] = d * ((b[i] & 15) - 8), x[16 + i] = d * ((b[i] >> 4) - 8)   18 bytes
//
// and codes of 8 bits with a scale per row or per channel. Source: the layouts of ggml's block_q8_0 and block_q4_0.
// Numerics: one rounded product per element, the same at every level.

#include <kvtrim/base/element.hpp>
#include <kvtrim/base/status.hpp>
#include <kvtrim/simd/cpu.hpp>

#include <array>
#include <cstddef>
#include <cstring>

#if KVTRIM_HAS_X86
#include <immintrin.h>
#endif

namespace kvtrim {

// Layout-compatible with ggml's blocks; memory of them may lie at any even address.
struct block_q8_0 {
    static constexpr index_t elements = 32;
    f16 scale;
    std::array<std::int8_t, 32> codes;
};
static_assert(sizeof(block_q8_0) == 34);

struct block_q4_0 {
    static constexpr index_t elements = 32;
    f16 scale;
    std::array<std::uint8_t, 16> codes; // element i in the low half of byte i, element 16 + i in the high one
};
static_assert(sizeof(block_q4_0) == 18);

} // namespace kvtrim

namespace kvtrim::kernels {

namespace detail {

template <class = void>
void decode_portable(const block_q8_0* blocks, index_t count, float* to) {
    for (index_t b = 0; b < count; ++b, to += 32) {
        const float scale = to_float(blocks[b].scale);
        for (std::size_t i = 0; i < 32; ++i) { to[i] = scale * static_cast<float>(blocks[b].codes[i]); }
    }
}

template <class = void>
void decode_portable(const block_q4_0* blocks, index_t count, float* to) {
    for (index_t b = 0; b < count; ++b, to += 32) {
        const float scale = to_float(blocks[b].scale);
        for (std::size_t i = 0; i < 16; ++i) {
            to[i] = scale * static_cast<float>((blocks[b].codes[i] & 15) - 8);
            to[16 + i] = scale * static_cast<float>((blocks[b].codes[i] >> 4) - 8);
        }
    }
}

#if KVTRIM_HAS_X86
// Element codes - 8 of a q4_0 block, one per byte.
KVTRIM_TARGET_AVX2 inline __m128i q4_low(__m128i codes) {
    return _mm_sub_epi8(_mm_and_si128(codes, _mm_set1_epi8(15)), _mm_set1_epi8(8));
}
KVTRIM_TARGET_AVX2 inline __m128i q4_high(__m128i codes) {
    return q4_low(_mm_srli_epi16(codes, 4));
}

KVTRIM_TARGET_AVX2 inline __m128i load_codes(const void* from) {
    return _mm_loadu_si128(static_cast<const __m128i*>(from));
}
// The scale in every lane.
KVTRIM_TARGET_AVX2 inline __m128 scale_of(f16 scale) {
    return _mm_cvtph_ps(_mm_cvtsi32_si128(scale.bits));
}

// to [16] = scale * codes
KVTRIM_TARGET_AVX2 inline void scale_codes_avx2(__m128i codes, __m256 scale, float* to) {
    const __m256 low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
    const __m256 high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(codes, 8)));
    _mm256_storeu_ps(to, _mm256_mul_ps(scale, low));
    _mm256_storeu_ps(to + 8, _mm256_mul_ps(scale, high));
}
KVTRIM_TARGET_AVX2 inline void decode_avx2(const block_q8_0* blocks, index_t count, float* to) {
    for (index_t b = 0; b < count; ++b, to += 32) {
        const __m256 scale = _mm256_broadcastss_ps(scale_of(blocks[b].scale));
        scale_codes_avx2(load_codes(blocks[b].codes.data()), scale, to);
        scale_codes_avx2(load_codes(blocks[b].codes.data() + 16), scale, to + 16);
    }
}
KVTRIM_TARGET_AVX2 inline void decode_avx2(const block_q4_0* blocks, index_t count, float* to) {
    for (index_t b = 0; b < count; ++b, to += 32) {
        const __m256 scale = _mm256_broadcastss_ps(scale_of(blocks[b].scale));
        const __m128i codes = load_codes(blocks[b].codes.data());
        scale_codes_avx2(q4_low(codes), scale, to);
        scale_codes_avx2(q4_high(codes), scale, to + 16);
    }
}

KVTRIM_TARGET_AVX512 inline void scale_codes_avx512(__m128i codes, __m512 scale, float* to) {
    const __m512i wide = _mm512_maskz_cvtepi8_epi32(0xffff, codes);
    _mm512_storeu_ps(to, _mm512_mul_ps(scale, _mm512_maskz_cvtepi32_ps(0xffff, wide)));
}
KVTRIM_TARGET_AVX512 inline void decode_avx512(const block_q8_0* blocks, index_t count, float* to) {
    for (index_t b = 0; b < count; ++b, to += 32) {
        const __m512 scale = _mm512_maskz_broadcastss_ps(0xffff, scale_of(blocks[b].scale));
        scale_codes_avx512(load_codes(blocks[b].codes.data()), scale, to);
        scale_codes_avx512(load_codes(blocks[b].codes.data() + 16), scale, to + 16);
    }
}
KVTRIM_TARGET_AVX512 inline void decode_avx512(const block_q4_0* blocks, index_t count, float* to) {
    for (index_t b = 0; b < count; ++b, to += 32) {
        const __m512 scale = _mm512_maskz_broadcastss_ps(0xffff, scale_of(blocks[b].scale));
        const __m128i codes = load_codes(blocks[b].codes.data());
        scale_codes_avx512(q4_low(codes), scale, to);
        scale_codes_avx512(q4_high(codes), scale, to + 16);
    }
}
#endif

} // namespace detail

// Brings blocks near that will soon be decoded.
template <class Block>
void fetch_blocks(const Block* blocks, index_t count) {
#if KVTRIM_HAS_X86
    const auto* begin = reinterpret_cast<const char*>(blocks);
    for (index_t b = 0; b < count * static_cast<index_t>(sizeof(Block)); b += 64) {
        _mm_prefetch(begin + b, _MM_HINT_T0);
    }
#else
    static_cast<void>(blocks);
    static_cast<void>(count);
#endif
}

// to [32 * count] = the elements of consecutive blocks.
template <class Block>
void decode_blocks(const Block* blocks, index_t count, float* to) {
#if KVTRIM_HAS_X86
    const cpu_level level = active_cpu_level();
    if (level >= cpu_level::avx512) { return detail::decode_avx512(blocks, count, to); }
    if (level >= cpu_level::avx2) { return detail::decode_avx2(blocks, count, to); }
#endif
    detail::decode_portable(blocks, count, to);
}

} // namespace kvtrim::kernels
