// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Eight lanes of AVX2 with FMA and F16C. What each primitive means is said in simd/simd.hpp.

#include <kvtrim/core/fp8.hpp>
#include <kvtrim/core/region.hpp>
#include <kvtrim/core/status.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>

#if KVTRIM_HAS_X86

#include <immintrin.h>

KVTRIM_BEGIN_AVX2

namespace KVTRIM_NAMESPACE::simd::avx2 {

using floats = __m256;
using mask = __m256; // all bits of a lane, or none
using ints = std::int32_t __attribute__((vector_size(32)));
using uints = std::uint32_t __attribute__((vector_size(32)));

inline constexpr index_t lanes = 8, product_registers = 12, product_vectors = 2;

KVTRIM_INLINE floats broadcast(float x) {
    return _mm256_set1_ps(x);
}
KVTRIM_INLINE floats load(const float* from) {
    return _mm256_loadu_ps(from);
}
KVTRIM_INLINE void store(float* to, floats x) {
    _mm256_storeu_ps(to, x);
}
KVTRIM_INLINE floats fma(floats a, floats b, floats c) {
    return _mm256_fmadd_ps(a, b, c);
}
KVTRIM_INLINE floats min(floats a, floats b) {
    return _mm256_min_ps(a, b);
}
KVTRIM_INLINE floats max(floats a, floats b) {
    return _mm256_max_ps(a, b);
}
KVTRIM_INLINE mask greater(floats a, floats b) {
    return _mm256_cmp_ps(a, b, _CMP_GT_OQ);
}
KVTRIM_INLINE floats select(mask m, floats a, floats b) {
    return _mm256_blendv_ps(b, a, m);
}
KVTRIM_INLINE floats keep(mask m, floats x) {
    return _mm256_and_ps(m, x);
}
KVTRIM_INLINE floats absolute(floats x) {
    return _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)));
}
KVTRIM_INLINE bool any(mask m) {
    return _mm256_movemask_ps(m) != 0;
}
KVTRIM_INLINE float sum_of_lanes(floats x) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
KVTRIM_INLINE float highest_of_lanes(floats x) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

#include <kvtrim/simd/exp2.inl>

// x = whole + fraction; the whole part is added to the exponent's bits.
KVTRIM_INLINE floats exp2(floats x) {
    const floats whole = _mm256_floor_ps(x);
    const floats fraction = x - whole;
    const floats p = power_of_fraction(fraction);
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
}

class first_lanes {
  public:
    explicit first_lanes(index_t count) : count_(std::clamp<index_t>(count, 0, lanes)) {}

    [[nodiscard]] KVTRIM_INLINE floats load(const float* from) const {
        return _mm256_maskload_ps(from, wanted());
    }
    KVTRIM_INLINE void store(float* to, floats x) const { _mm256_maskstore_ps(to, wanted(), x); }
    [[nodiscard]] KVTRIM_INLINE floats keep(floats x) const {
        return _mm256_and_ps(_mm256_castsi256_ps(wanted()), x);
    }
    [[nodiscard]] index_t count() const { return count_; }

  private:
    [[nodiscard]] KVTRIM_INLINE __m256i wanted() const {
        const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count_)), lane);
    }

    index_t count_;
};

// ---- Other elements ----

KVTRIM_INLINE __m128i load_bits(const void* from, std::integral_constant<int, 16>) {
    return _mm_loadu_si128(static_cast<const __m128i*>(from));
}
KVTRIM_INLINE __m128i load_bits(const void* from, std::integral_constant<int, 8>) {
    return _mm_loadl_epi64(static_cast<const __m128i*>(from));
}
template <class T>
KVTRIM_INLINE __m128i bits_of(const T* from) {
    return load_bits(from, std::integral_constant<int, 8 * sizeof(T)>{});
}

KVTRIM_INLINE floats load(const bf16* from) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits_of(from)), 16));
}
KVTRIM_INLINE floats load(const f16* from) {
    return _mm256_cvtph_ps(bits_of(from));
}
// fp8 by way of f16: e5m2 is its high byte; e4m3 moves to its place below the sign, 2^8 too small.
KVTRIM_INLINE floats load(const f8_e5m2* from) {
    return _mm256_cvtph_ps(_mm_unpacklo_epi8(_mm_setzero_si128(), bits_of(from)));
}
KVTRIM_INLINE floats load(const f8_e4m3* from) {
    const __m128i magnitude = _mm_set1_epi16(0x3f80);
    const __m128i half =
        _mm_and_si128(_mm_slli_epi16(_mm_cvtepi8_epi16(bits_of(from)), 7), _mm_set1_epi16(-0x4080)); // 0xbf80
    const __m128i is_nan = _mm_cmpeq_epi16(_mm_and_si128(half, magnitude), magnitude);
    const __m128i kept = _mm_or_si128(half, _mm_and_si128(is_nan, _mm_set1_epi16(0x7e00)));
    return _mm256_cvtph_ps(kept) * broadcast(256.0f);
}
KVTRIM_INLINE floats load(const std::int8_t* from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bits_of(from)));
}
KVTRIM_INLINE void load_nibbles(const std::uint8_t* from, floats* to) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    const __m128i halves[2] = {bytes, _mm_srli_epi16(bytes, 4)};
    KVTRIM_UNROLL
    for (int i = 0; i < 2; ++i) {
        const __m128i codes = _mm_sub_epi8(_mm_and_si128(halves[i], _mm_set1_epi8(15)), _mm_set1_epi8(8));
        to[2 * i] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
        to[2 * i + 1] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(codes, 8)));
    }
}
KVTRIM_INLINE void look_up(const std::int8_t* table, std::int8_t* places) {
    const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    KVTRIM_UNROLL
    for (int i = 0; i < 32; i += 16) {
        auto* const at = reinterpret_cast<__m128i*>(places + i);
        _mm_storeu_si128(at, _mm_shuffle_epi8(values, _mm_loadu_si128(at)));
    }
}
KVTRIM_INLINE void store(f16* to, floats x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
KVTRIM_INLINE void store(bf16* to, floats x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(last, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                     _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)));
}

KVTRIM_INLINE floats broadcast(f16 x) {
    return _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(x.bits)));
}

// ---- Integers ----

KVTRIM_INLINE mask equal(uints a, uints b) {
    return reinterpret_cast<mask>(
        _mm256_cmpeq_epi32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}
KVTRIM_INLINE mask at_most(uints a, uints b) {
    return equal(
        reinterpret_cast<uints>(_mm256_max_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b))),
        b);
}
KVTRIM_INLINE uints add_one(mask m, uints x) {
    return x - reinterpret_cast<uints>(m);
}
KVTRIM_INLINE unsigned lanes_of(mask m) {
    return static_cast<unsigned>(_mm256_movemask_ps(m));
}
// For each set of lanes the indices of the lanes in it, a byte each.
inline constexpr auto chosen_lanes = [] {
    std::array<std::uint64_t, 256> numbers{};
    for (unsigned chosen = 0; chosen < 256; ++chosen) {
        int place = 0;
        for (unsigned rest = chosen; rest != 0; rest &= rest - 1) {
            numbers[chosen] |= static_cast<std::uint64_t>(std::countr_zero(rest)) << 8 * place++;
        }
    }
    return numbers;
}();
KVTRIM_INLINE __m256i packed(unsigned chosen, uints x) {
    const __m128i from = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(&chosen_lanes[chosen]));
    return _mm256_permutevar8x32_epi32(reinterpret_cast<__m256i>(x), _mm256_cvtepu8_epi32(from));
}
KVTRIM_INLINE std::uint32_t* pack(std::uint32_t* to, unsigned chosen, uints x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), packed(chosen, x));
    return to + __builtin_popcount(chosen);
}
KVTRIM_INLINE std::int32_t* pack_only(std::int32_t* to, unsigned chosen, uints x) {
    const int count = __builtin_popcount(chosen);
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    _mm256_maskstore_epi32(to, _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane), packed(chosen, x));
    return to + count;
}

KVTRIM_INLINE void store_low_bytes(void* to, ints x) {
    const __m256i low = _mm256_set1_epi32(0x0c080400);
    const __m256i four = _mm256_shuffle_epi8(reinterpret_cast<__m256i>(x), low); // in each half
    const __m128i both = _mm_unpacklo_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
    _mm_storel_epi64(static_cast<__m128i*>(to), both);
}

// ---- Pairs, and doubles ----

KVTRIM_INLINE void load_split(const bf16* from, floats& even, floats& odd) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    even = _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
    odd = _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(-0x10000)));
}
KVTRIM_INLINE floats sums_of_lanes(const floats* x) {
    const floats a = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
    const floats b = _mm256_hadd_ps(_mm256_hadd_ps(x[4], x[5]), _mm256_hadd_ps(x[6], x[7]));
    return _mm256_permute2f128_ps(a, b, 0x20) + _mm256_permute2f128_ps(a, b, 0x31);
}
KVTRIM_INLINE floats sum_of_fours(floats x) {
    return x + _mm256_permute2f128_ps(x, x, 0x01);
}
KVTRIM_INLINE floats highest_of_fours(floats x) {
    return max(x, _mm256_permute2f128_ps(x, x, 0x01));
}

KVTRIM_INLINE floats in_order(floats x) { // from the order in which shuffles within halves leave the quarters
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(x), 0xd8));
}
KVTRIM_INLINE floats even_lanes(floats a, floats b) {
    return in_order(_mm256_shuffle_ps(a, b, 0x88));
}
KVTRIM_INLINE floats odd_lanes(floats a, floats b) {
    return in_order(_mm256_shuffle_ps(a, b, 0xdd));
}
KVTRIM_INLINE floats zip_low(floats a, floats b) {
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x20);
}
KVTRIM_INLINE floats zip_high(floats a, floats b) {
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x31);
}
KVTRIM_INLINE floats round_products(const double* a, const double* b, const double* c, const double* d,
                                    double sign) {
    const auto half = [&](int i) KVTRIM_INLINED {
        const __m256d other = _mm256_loadu_pd(c + i) * _mm256_loadu_pd(d + i);
        return _mm256_cvtpd_ps(_mm256_loadu_pd(a + i) * _mm256_loadu_pd(b + i) +
                               _mm256_set1_pd(sign) * other);
    };
    return _mm256_set_m128(half(4), half(0));
}

#define KVTRIM_SIMD_TARGET avx2
#include <kvtrim/simd/common.inl>
#include <kvtrim/simd/load_first_of_two.inl>
#undef KVTRIM_SIMD_TARGET

} // namespace KVTRIM_NAMESPACE::simd::avx2

KVTRIM_END_REGION

#endif // KVTRIM_HAS_X86
