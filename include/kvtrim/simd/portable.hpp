// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Four lanes by the vector types that g++ and clang have for every processor: SSE2 on plain x86-64.
//
// What each primitive means is said in simd/simd.hpp. Numerics: fma rounds twice.

#include <kvtrim/core/fp8.hpp>
#include <kvtrim/core/region.hpp>
#include <kvtrim/core/status.hpp>

#include <algorithm>
#include <cstddef>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace KVTRIM_NAMESPACE::simd::portable {

using floats = float __attribute__((vector_size(16)));
using ints = std::int32_t __attribute__((vector_size(16)));
using uints = std::uint32_t __attribute__((vector_size(16)));
using mask = uints; // all bits of a lane, or none

inline constexpr index_t lanes = 4, product_registers = 12, product_vectors = 4;

KVTRIM_INLINE floats broadcast(float x) {
    return floats{x, x, x, x};
}
KVTRIM_INLINE floats load(const float* from) {
    floats x;
    __builtin_memcpy(&x, from, sizeof(x));
    return x;
}
KVTRIM_INLINE void store(float* to, floats x) {
    __builtin_memcpy(to, &x, sizeof(x));
}
KVTRIM_INLINE floats fma(floats a, floats b, floats c) {
    return a * b + c;
}
KVTRIM_INLINE floats min(floats a, floats b) {
    return a < b ? a : b;
}
KVTRIM_INLINE floats max(floats a, floats b) {
    return a > b ? a : b;
}
KVTRIM_INLINE mask greater(floats a, floats b) {
    return reinterpret_cast<mask>(a > b);
}
KVTRIM_INLINE floats select(mask m, floats a, floats b) {
    return m ? a : b;
}
KVTRIM_INLINE floats keep(mask m, floats x) {
    return reinterpret_cast<floats>(m & reinterpret_cast<mask>(x));
}
KVTRIM_INLINE floats absolute(floats x) {
    return reinterpret_cast<floats>(reinterpret_cast<ints>(x) & 0x7fffffff);
}
KVTRIM_INLINE bool any(mask m) {
    return (m[0] | m[1] | m[2] | m[3]) != 0;
}
#if defined(__SSE2__)
KVTRIM_INLINE unsigned lanes_of(mask m) {
    return static_cast<unsigned>(_mm_movemask_ps(reinterpret_cast<__m128>(m)));
}
#else
KVTRIM_INLINE unsigned lanes_of(mask m) {
    return (m[0] & 1u) | (m[1] & 2u) | (m[2] & 4u) | (m[3] & 8u);
}
#endif
KVTRIM_INLINE float sum_of_lanes(floats x) {
    return (x[0] + x[2]) + (x[1] + x[3]);
}
KVTRIM_INLINE float highest_of_lanes(floats x) {
    return std::max(std::max(x[0], x[2]), std::max(x[1], x[3]));
}

#include <kvtrim/simd/exp2.inl>

KVTRIM_INLINE floats exp2(floats x) {
    x = max(x, broadcast(-127.0f)); // for NaN as well: no conversion may overflow
    const ints truncated = __builtin_convertvector(x, ints);
    const ints whole = truncated + (__builtin_convertvector(truncated, floats) > x); // true is -1
    const floats fraction = x - __builtin_convertvector(whole, floats);
    const floats p = power_of_fraction(fraction);
    return reinterpret_cast<floats>(reinterpret_cast<ints>(p) + whole * 0x800000);
}

// ---- Other elements ----

using shorts = std::uint16_t __attribute__((vector_size(16)));
using bytes = std::uint8_t __attribute__((vector_size(16)));

// Four elements of 16 or 8 bits, each in the highest bits of a lane. By intrinsics where there are some, as GCC 12 makes
// single loads and stores of these shuffles.
#if defined(__SSE2__)
KVTRIM_INLINE uints load_high(const void* from, std::integral_constant<int, 2>) {
    const __m128i zero = _mm_setzero_si128();
    return reinterpret_cast<uints>(
        _mm_unpacklo_epi16(zero, _mm_loadl_epi64(static_cast<const __m128i*>(from))));
}
KVTRIM_INLINE uints load_high(const void* from, std::integral_constant<int, 1>) {
    const __m128i zero = _mm_setzero_si128();
    int x;
    __builtin_memcpy(&x, from, 4);
    return reinterpret_cast<uints>(_mm_unpacklo_epi16(zero, _mm_unpacklo_epi8(zero, _mm_cvtsi32_si128(x))));
}
KVTRIM_INLINE void store_high(void* to, uints x) {
    const __m128i low = _mm_srai_epi32(reinterpret_cast<__m128i>(x), 16);
    _mm_storel_epi64(static_cast<__m128i*>(to), _mm_packs_epi32(low, low));
}
#else
KVTRIM_INLINE uints load_high(const void* from, std::integral_constant<int, 2>) {
    shorts x{};
    __builtin_memcpy(&x, from, 8);
    return reinterpret_cast<uints>(__builtin_shufflevector(shorts{}, x, 0, 8, 1, 9, 2, 10, 3, 11));
}
KVTRIM_INLINE uints load_high(const void* from, std::integral_constant<int, 1>) {
    bytes x{};
    __builtin_memcpy(&x, from, 4);
    const auto high = reinterpret_cast<shorts>(
        __builtin_shufflevector(bytes{}, x, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23));
    return reinterpret_cast<uints>(__builtin_shufflevector(shorts{}, high, 0, 8, 1, 9, 2, 10, 3, 11));
}
KVTRIM_INLINE void store_high(void* to, uints x) {
    const auto high = reinterpret_cast<shorts>(x);
    const shorts packed = __builtin_shufflevector(high, high, 1, 3, 5, 7, 1, 3, 5, 7);
    __builtin_memcpy(to, &packed, 8);
}
#endif
template <class T>
KVTRIM_INLINE uints high_bits(const T* from) {
    return load_high(from, std::integral_constant<int, sizeof(T)>{});
}
// f16 in the highest bits of a lane, as element_traits<f16>.
KVTRIM_INLINE floats from_f16(uints high) {
    const uints magnitude = (high >> 3) & 0x0fffe000u;
    const floats scaled = reinterpret_cast<floats>(magnitude) * 0x1p112f;
    const auto special =
        reinterpret_cast<uints>(reinterpret_cast<ints>(magnitude) > 0x0f7fffff) & 0x7f800000u;
    return reinterpret_cast<floats>(reinterpret_cast<uints>(scaled) | special | (high & 0x80000000u));
}

KVTRIM_INLINE floats load(const bf16* from) {
    return reinterpret_cast<floats>(high_bits(from));
}
KVTRIM_INLINE floats load(const f16* from) {
    return from_f16(high_bits(from));
}
KVTRIM_INLINE floats load(const f8_e5m2* from) {
    return from_f16(high_bits(from));
}
// As an f16 with the same exponent field it is 2^8 times too small.
KVTRIM_INLINE floats load(const f8_e4m3* from) {
    const uints high = high_bits(from), magnitude = high & 0x7f000000u;
    const uints nan = reinterpret_cast<uints>(magnitude == 0x7f000000u) & 0x7e000000u;
    return from_f16((high & 0x80000000u) | (magnitude >> 1) | nan) * 256.0f;
}
KVTRIM_INLINE floats load(const std::int8_t* from) {
    return __builtin_convertvector(reinterpret_cast<ints>(high_bits(from)) >> 24, floats);
}
KVTRIM_INLINE void load_nibbles(const std::uint8_t* from, floats* to) {
    KVTRIM_UNROLL
    for (int i = 0; i < 4; ++i) {
        const uints high = high_bits(from + 4 * i);
        to[i] = __builtin_convertvector(reinterpret_cast<ints>(high << 4 >> 28) - 8, floats);
        to[4 + i] = __builtin_convertvector(reinterpret_cast<ints>(high >> 28) - 8, floats);
    }
}
KVTRIM_INLINE void look_up(const std::int8_t* table, std::int8_t* places) {
    for (int i = 0; i < 32; ++i) { places[i] = table[places[i]]; }
}
KVTRIM_INLINE void store(bf16* to, floats x) { // as element_traits<bf16>
    const uints bits = reinterpret_cast<uints>(x), rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    store_high(to, reinterpret_cast<ints>(bits & 0x7fffffffu) > 0x7f800000 ? bits | 0x400000u : rounded);
}
KVTRIM_INLINE void store(f16* to, floats x) { // as element_traits<f16>
    const uints bits = reinterpret_cast<uints>(x), magnitude = bits & 0x7fffffffu;
    const uints normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
    const uints small = reinterpret_cast<uints>(reinterpret_cast<floats>(magnitude) + 0.5f) & 0x7ffu;
    const auto size = reinterpret_cast<ints>(magnitude);
    const uints finite = size < 0x38800000 ? small : normal;
    const uints special = size > 0x7f800000 ? uints{} + 0x7e00u : uints{} + 0x7c00u;
    store_high(to, ((size < 0x477ff000 ? finite : special) | (bits >> 16 & 0x8000u)) << 16);
}
KVTRIM_INLINE floats broadcast(f16 x) {
    return broadcast(to_float(x));
}

KVTRIM_INLINE std::uint32_t* pack(std::uint32_t* to, unsigned chosen, uints x) {
    if (chosen == 0) { return to; }
    KVTRIM_UNROLL
    for (int i = 0; i < 4; ++i) {
        *to = x[i];
        to += chosen >> i & 1u;
    }
    return to;
}
KVTRIM_INLINE floats round_products(const double* a, const double* b, const double* c, const double* d,
                                    double sign) {
    floats x;
    for (int i = 0; i < 4; ++i) { x[i] = static_cast<float>(a[i] * b[i] + sign * (c[i] * d[i])); }
    return x;
}

#define KVTRIM_SIMD_TARGET portable
#include <kvtrim/simd/four_lanes.inl>

#include <kvtrim/simd/common.inl>
#include <kvtrim/simd/load_first_of_two.inl>
#undef KVTRIM_SIMD_TARGET

} // namespace KVTRIM_NAMESPACE::simd::portable
