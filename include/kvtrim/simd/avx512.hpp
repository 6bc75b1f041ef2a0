// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Sixteen lanes of AVX-512 (F, BW, DQ, VL). What each primitive means is said in simd/simd.hpp.
//
// Many intrinsics are called with a mask of all lanes: the plain ones make GCC 12 warn about its own headers.

#include <kvtrim/simd/avx2.hpp>

#if KVTRIM_HAS_X86

KVTRIM_BEGIN_AVX512

namespace KVTRIM_NAMESPACE::simd::avx512 {

using floats = __m512;
using mask = __mmask16;
using ints = std::int32_t __attribute__((vector_size(64)));
using uints = std::uint32_t __attribute__((vector_size(64)));

inline constexpr index_t lanes = 16, product_registers = 16, product_vectors = 2;

KVTRIM_INLINE floats broadcast(float x) {
    return _mm512_set1_ps(x);
}
KVTRIM_INLINE floats load(const float* from) {
    return _mm512_loadu_ps(from);
}
KVTRIM_INLINE void store(float* to, floats x) {
    _mm512_storeu_ps(to, x);
}
KVTRIM_INLINE floats fma(floats a, floats b, floats c) {
    return _mm512_fmadd_ps(a, b, c);
}
KVTRIM_INLINE floats min(floats a, floats b) {
    return _mm512_maskz_min_ps(0xffff, a, b);
}
KVTRIM_INLINE floats max(floats a, floats b) {
    return _mm512_maskz_max_ps(0xffff, a, b);
}
KVTRIM_INLINE mask greater(floats a, floats b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
}
KVTRIM_INLINE floats select(mask m, floats a, floats b) {
    return _mm512_mask_mov_ps(b, m, a);
}
KVTRIM_INLINE floats keep(mask m, floats x) {
    return _mm512_maskz_mov_ps(m, x);
}
KVTRIM_INLINE floats absolute(floats x) {
    return _mm512_abs_ps(x);
}
KVTRIM_INLINE bool any(mask m) {
    return m != 0;
}
KVTRIM_INLINE float sum_of_lanes(floats x) {
    return avx2::sum_of_lanes(_mm512_maskz_extractf32x8_ps(0xff, x, 0) +
                              _mm512_maskz_extractf32x8_ps(0xff, x, 1));
}
KVTRIM_INLINE float highest_of_lanes(floats x) {
    return avx2::highest_of_lanes(
        _mm256_max_ps(_mm512_maskz_extractf32x8_ps(0xff, x, 0), _mm512_maskz_extractf32x8_ps(0xff, x, 1)));
}

#include <kvtrim/simd/exp2.inl>
KVTRIM_INLINE floats exp2(floats x) {
    const floats fraction = _mm512_maskz_reduce_ps(0xffff, x, 0x09);
    const floats p = power_of_fraction(fraction);
    return _mm512_maskz_scalef_ps(0xffff, p, x);
}

class first_lanes {
  public:
    explicit first_lanes(index_t count)
        : mask_(static_cast<mask>((1u << std::clamp<index_t>(count, 0, lanes)) - 1u)) {}

    [[nodiscard]] KVTRIM_INLINE floats load(const float* from) const {
        return _mm512_maskz_loadu_ps(mask_, from);
    }
    KVTRIM_INLINE void store(float* to, floats x) const { _mm512_mask_storeu_ps(to, mask_, x); }
    [[nodiscard]] KVTRIM_INLINE floats keep(floats x) const { return _mm512_maskz_mov_ps(mask_, x); }
    [[nodiscard]] index_t count() const { return __builtin_popcount(mask_); }

  private:
    mask mask_;
};

// ---- Other elements ----

template <class T>
KVTRIM_INLINE auto bits_of(const T* from) {
    if constexpr (sizeof(T) == 2) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    } else {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    }
}

KVTRIM_INLINE floats load(const bf16* from) {
    const __m512i wide = _mm512_maskz_cvtepu16_epi32(0xffff, bits_of(from));
    return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, wide, 16));
}
KVTRIM_INLINE floats load(const f16* from) {
    return _mm512_maskz_cvtph_ps(0xffff, bits_of(from));
}
// fp8 by way of f16, as in AVX2.
KVTRIM_INLINE floats load(const f8_e5m2* from) {
    return _mm512_maskz_cvtph_ps(0xffff, _mm256_slli_epi16(_mm256_cvtepu8_epi16(bits_of(from)), 8));
}
KVTRIM_INLINE floats load(const f8_e4m3* from) {
    const __m256i magnitude = _mm256_set1_epi16(0x3f80);
    const __m256i half = _mm256_and_si256(_mm256_slli_epi16(_mm256_cvtepi8_epi16(bits_of(from)), 7),
                                          _mm256_set1_epi16(-0x4080)); // 0xbf80
    const __m256i is_nan = _mm256_cmpeq_epi16(_mm256_and_si256(half, magnitude), magnitude);
    const __m256i kept = _mm256_or_si256(half, _mm256_and_si256(is_nan, _mm256_set1_epi16(0x7e00)));
    return _mm512_maskz_cvtph_ps(0xffff, kept) * broadcast(256.0f);
}
KVTRIM_INLINE floats load(const std::int8_t* from) {
    return _mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepi8_epi32(0xffff, bits_of(from)));
}
// By a table, of whose places four bits count.
KVTRIM_INLINE void load_nibbles(const std::uint8_t* from, floats* to) {
    const floats values = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
    const __m512i places = _mm512_maskz_cvtepu8_epi32(0xffff, bits_of(from));
    to[0] = _mm512_maskz_permutexvar_ps(0xffff, places, values);
    to[1] = _mm512_maskz_permutexvar_ps(0xffff, _mm512_maskz_srli_epi32(0xffff, places, 4), values);
}
using avx2::look_up; // sixteen bytes at a time as well
KVTRIM_INLINE void store(f16* to, floats x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                        _mm512_maskz_cvtps_ph(0xffff, x, _MM_FROUND_TO_NEAREST_INT));
}
KVTRIM_INLINE void store(bf16* to, floats x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i last = _mm512_and_si512(_mm512_maskz_srli_epi32(0xffff, bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff)));
    const mask is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i kept = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                        _mm512_maskz_cvtepi32_epi16(0xffff, _mm512_maskz_srli_epi32(0xffff, kept, 16)));
}

KVTRIM_INLINE floats broadcast(f16 x) {
    return _mm512_maskz_broadcastss_ps(0xffff, _mm_cvtph_ps(_mm_cvtsi32_si128(x.bits)));
}

// ---- Integers ----

KVTRIM_INLINE mask equal(uints a, uints b) {
    return _mm512_cmpeq_epi32_mask(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
}
KVTRIM_INLINE mask at_most(uints a, uints b) {
    return _mm512_cmple_epu32_mask(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
}
KVTRIM_INLINE uints add_one(mask m, uints x) {
    const auto to = reinterpret_cast<__m512i>(x);
    return reinterpret_cast<uints>(_mm512_mask_add_epi32(to, m, to, _mm512_set1_epi32(1)));
}
KVTRIM_INLINE unsigned lanes_of(mask m) {
    return m;
}
KVTRIM_INLINE __m512i packed(unsigned chosen, uints x) {
    return _mm512_maskz_compress_epi32(static_cast<mask>(chosen), reinterpret_cast<__m512i>(x));
}
KVTRIM_INLINE std::uint32_t* pack(std::uint32_t* to, unsigned chosen, uints x) {
    _mm512_storeu_si512(to, packed(chosen, x));
    return to + __builtin_popcount(chosen);
}
KVTRIM_INLINE std::int32_t* pack_only(std::int32_t* to, unsigned chosen, uints x) {
    const int count = __builtin_popcount(chosen);
    _mm512_mask_storeu_epi32(to, static_cast<mask>((1u << count) - 1u), packed(chosen, x));
    return to + count;
}

KVTRIM_INLINE void store_low_bytes(void* to, ints x) {
    const __m128i low = _mm512_maskz_cvtepi32_epi8(0xffff, reinterpret_cast<__m512i>(x));
    _mm_storeu_si128(static_cast<__m128i*>(to), low);
}

// ---- Pairs, and doubles ----

KVTRIM_INLINE void split(__m512i bits, floats& even, floats& odd) {
    even = _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, bits, 16));
    odd = _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(-0x10000)));
}
KVTRIM_INLINE void load_split(const bf16* from, floats& even, floats& odd) {
    split(_mm512_loadu_si512(from), even, odd);
}
template <class T>
KVTRIM_INLINE void load_first_of_two(const T* from, index_t count, floats& first, floats& second) {
    const auto wanted = static_cast<__mmask32>((std::uint64_t{1} << std::clamp<index_t>(count, 0, 32)) - 1);
    const auto low = static_cast<mask>(wanted), high = static_cast<mask>(wanted >> 16);
    if constexpr (std::is_same_v<T, float>) {
        first = _mm512_maskz_loadu_ps(low, from);
        second = _mm512_maskz_loadu_ps(high, from + 16);
    } else if constexpr (std::is_same_v<T, bf16>) {
        split(_mm512_maskz_loadu_epi16(wanted, from), first, second);
    } else {
        first = _mm512_maskz_cvtph_ps(0xffff, _mm256_maskz_loadu_epi16(low, from));
        second = _mm512_maskz_cvtph_ps(0xffff, _mm256_maskz_loadu_epi16(high, from + 16));
    }
}
// Neighbouring lanes of a and b added; twice applied, each quarter holds one sum of each of four vectors.
KVTRIM_INLINE floats add_pairs(floats a, floats b) {
    return _mm512_maskz_unpacklo_ps(0xffff, a, b) + _mm512_maskz_unpackhi_ps(0xffff, a, b);
}
KVTRIM_INLINE floats add_quarters(floats a, floats b) {
    return _mm512_maskz_shuffle_f32x4(0xffff, a, b, 0x88) + _mm512_maskz_shuffle_f32x4(0xffff, a, b, 0xdd);
}
KVTRIM_INLINE floats sums_of_four(const floats* x) {
    const __m512d a = _mm512_castps_pd(add_pairs(x[0], x[1])), b = _mm512_castps_pd(add_pairs(x[2], x[3]));
    return _mm512_castpd_ps(_mm512_maskz_unpacklo_pd(0xff, a, b)) +
           _mm512_castpd_ps(_mm512_maskz_unpackhi_pd(0xff, a, b));
}
KVTRIM_INLINE floats sums_of_lanes(const floats* x) {
    return add_quarters(add_quarters(sums_of_four(x), sums_of_four(x + 4)),
                        add_quarters(sums_of_four(x + 8), sums_of_four(x + 12)));
}
KVTRIM_INLINE floats sum_of_fours(floats x) {
    x = x + _mm512_maskz_shuffle_f32x4(0xffff, x, x, 0x4e);
    return x + _mm512_maskz_shuffle_f32x4(0xffff, x, x, 0xb1);
}
KVTRIM_INLINE floats highest_of_fours(floats x) {
    x = max(x, _mm512_maskz_shuffle_f32x4(0xffff, x, x, 0x4e));
    return max(x, _mm512_maskz_shuffle_f32x4(0xffff, x, x, 0xb1));
}

KVTRIM_INLINE floats even_lanes(floats a, floats b) {
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}
KVTRIM_INLINE floats odd_lanes(floats a, floats b) {
    return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}
KVTRIM_INLINE floats zip_low(floats a, floats b) {
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
KVTRIM_INLINE floats zip_high(floats a, floats b) {
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
KVTRIM_INLINE floats round_products(const double* a, const double* b, const double* c, const double* d,
                                    double sign) {
    const auto half = [&](int i) KVTRIM_INLINED {
        const __m512d other = _mm512_loadu_pd(c + i) * _mm512_loadu_pd(d + i);
        return _mm512_maskz_cvtpd_ps(0xff, _mm512_loadu_pd(a + i) * _mm512_loadu_pd(b + i) +
                                               _mm512_set1_pd(sign) * other);
    };
    return _mm512_maskz_insertf32x8(0xffff, _mm512_castps256_ps512(half(0)), half(8), 1);
}

#define KVTRIM_SIMD_TARGET avx512
#include <kvtrim/simd/common.inl>
#undef KVTRIM_SIMD_TARGET

} // namespace KVTRIM_NAMESPACE::simd::avx512

KVTRIM_END_REGION

#endif // KVTRIM_HAS_X86
