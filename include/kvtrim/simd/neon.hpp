// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Four lanes of NEON, which every aarch64 has. What each primitive means is said in simd/simd.hpp.

#include <kvtrim/core/fp8.hpp>
#include <kvtrim/core/region.hpp>
#include <kvtrim/core/status.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>

#if KVTRIM_HAS_NEON

#include <arm_neon.h>

namespace KVTRIM_NAMESPACE::simd::neon {

using floats = float32x4_t;
using ints = int32x4_t;
using uints = uint32x4_t;
using mask = uints; // all bits of a lane, or none

inline constexpr index_t lanes = 4, product_registers = 24, product_vectors = 4;

KVTRIM_INLINE floats broadcast(float x) {
    return vdupq_n_f32(x);
}
KVTRIM_INLINE floats load(const float* from) {
    return vld1q_f32(from);
}
KVTRIM_INLINE void store(float* to, floats x) {
    vst1q_f32(to, x);
}
KVTRIM_INLINE floats fma(floats a, floats b, floats c) {
    return vfmaq_f32(c, a, b);
}
KVTRIM_INLINE mask greater(floats a, floats b) {
    return vcgtq_f32(a, b);
}
KVTRIM_INLINE floats select(mask m, floats a, floats b) {
    return vbslq_f32(m, a, b);
}
KVTRIM_INLINE floats min(floats a, floats b) {
    return select(greater(b, a), a, b);
}
KVTRIM_INLINE floats max(floats a, floats b) {
    return select(greater(a, b), a, b);
}
KVTRIM_INLINE floats keep(mask m, floats x) {
    return vreinterpretq_f32_u32(vandq_u32(m, vreinterpretq_u32_f32(x)));
}
KVTRIM_INLINE floats absolute(floats x) {
    return vabsq_f32(x);
}
KVTRIM_INLINE bool any(mask m) {
    return vmaxvq_u32(m) != 0;
}
KVTRIM_INLINE unsigned lanes_of(mask m) {
    return vaddvq_u32(m & mask{1, 2, 4, 8});
}
KVTRIM_INLINE float sum_of_lanes(floats x) {
    return vaddvq_f32(x);
}
KVTRIM_INLINE float highest_of_lanes(floats x) {
    return vmaxvq_f32(x);
}

#include <kvtrim/simd/exp2.inl>

// x = whole + fraction; the whole part is added to the exponent's bits.
KVTRIM_INLINE floats exp2(floats x) {
    const floats whole = vrndmq_f32(x);
    const floats fraction = x - whole;
    const floats p = power_of_fraction(fraction);
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p), vshlq_n_s32(vcvtq_s32_f32(whole), 23)));
}

// ---- Other elements ----

template <class T>
KVTRIM_INLINE uint16x4_t load_shorts(const T* from) {
    return vld1_u16(reinterpret_cast<const std::uint16_t*>(from));
}
template <class T>
KVTRIM_INLINE uint8x8_t load_bytes(const T* from) {
    std::uint32_t four;
    std::memcpy(&four, from, 4);
    return vcreate_u8(four);
}
KVTRIM_INLINE floats from_f16(uint16x4_t bits) {
    return vcvt_f32_f16(vreinterpret_f16_u16(bits));
}

KVTRIM_INLINE floats load(const bf16* from) {
    return vreinterpretq_f32_u32(vshll_n_u16(load_shorts(from), 16));
}
KVTRIM_INLINE floats load(const f16* from) {
    return from_f16(load_shorts(from));
}
// fp8 by way of f16: e5m2 is its high byte; e4m3 moves to its place below the sign, 2^8 too small.
KVTRIM_INLINE floats load(const f8_e5m2* from) {
    return from_f16(vget_low_u16(vshll_n_u8(load_bytes(from), 8)));
}
KVTRIM_INLINE floats load(const f8_e4m3* from) {
    const uint16x4_t bits = vget_low_u16(vmovl_u8(load_bytes(from)));
    const uint16x4_t magnitude = vand_u16(bits, vdup_n_u16(0x7f)), sign = vand_u16(bits, vdup_n_u16(0x80));
    const uint16x4_t nan = vand_u16(vceq_u16(magnitude, vdup_n_u16(0x7f)), vdup_n_u16(0x7e00));
    return from_f16(vorr_u16(vorr_u16(vshl_n_u16(sign, 8), vshl_n_u16(magnitude, 7)), nan)) *
           broadcast(256.0f);
}
KVTRIM_INLINE floats load(const std::int8_t* from) {
    const int16x4_t wide = vget_low_s16(vmovl_s8(vreinterpret_s8_u8(load_bytes(from))));
    return vcvtq_f32_s32(vmovl_s16(wide));
}
KVTRIM_INLINE floats centred(uint8x8_t nibbles) {
    const int8x8_t codes = vsub_s8(vreinterpret_s8_u8(nibbles), vdup_n_s8(8));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(codes))));
}
KVTRIM_INLINE void load_nibbles(const std::uint8_t* from, floats* to) {
    KVTRIM_UNROLL
    for (int i = 0; i < 4; ++i) {
        const uint8x8_t bytes = load_bytes(from + 4 * i);
        to[i] = centred(vand_u8(bytes, vdup_n_u8(15)));
        to[4 + i] = centred(vshr_n_u8(bytes, 4));
    }
}
KVTRIM_INLINE void look_up(const std::int8_t* table, std::int8_t* places) {
    const int8x16_t values = vld1q_s8(table);
    KVTRIM_UNROLL
    for (int i = 0; i < 32; i += 16) {
        vst1q_s8(places + i, vqtbl1q_s8(values, vreinterpretq_u8_s8(vld1q_s8(places + i))));
    }
}
KVTRIM_INLINE void store(f16* to, floats x) {
    vst1_u16(reinterpret_cast<std::uint16_t*>(to), vreinterpret_u16_f16(vcvt_f16_f32(x)));
}
KVTRIM_INLINE void store(bf16* to, floats x) {
    const uint32x4_t bits = vreinterpretq_u32_f32(x);
    const uint32x4_t last = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(last, vdupq_n_u32(0x7fff)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    const uint32x4_t kept = vbslq_u32(vceqq_f32(x, x), rounded, quiet);
    vst1_u16(reinterpret_cast<std::uint16_t*>(to), vshrn_n_u32(kept, 16));
}
KVTRIM_INLINE floats broadcast(f16 x) {
    return from_f16(vdup_n_u16(x.bits));
}

// For each set of lanes the bytes of the lanes in it, and how many these are: without a table a population count goes to a
// vector register and back, and the next vector waits for it.
struct alignas(32) lane_set {
    std::uint8_t bytes[16], count;
};
inline constexpr auto chosen_lanes = [] {
    std::array<lane_set, 16> sets{};
    for (unsigned chosen = 0; chosen < 16; ++chosen) {
        for (unsigned lane = 0; lane < 4; ++lane) {
            if ((chosen >> lane & 1u) == 0) { continue; }
            for (unsigned i = 0; i < 4; ++i) {
                sets[chosen].bytes[4 * sets[chosen].count + i] = static_cast<std::uint8_t>(4 * lane + i);
            }
            ++sets[chosen].count;
        }
    }
    return sets;
}();
KVTRIM_INLINE std::uint32_t* pack(std::uint32_t* to, unsigned chosen, uints x) {
    const lane_set& set = chosen_lanes[chosen];
    const uint8x16_t packed = vqtbl1q_u8(vreinterpretq_u8_u32(x), vld1q_u8(set.bytes));
    vst1q_u32(to, vreinterpretq_u32_u8(packed));
    return to + set.count;
}
KVTRIM_INLINE floats round_products(const double* a, const double* b, const double* c, const double* d,
                                    double sign) {
    const auto half = [&](int i) KVTRIM_INLINED {
        const float64x2_t other = vmulq_f64(vld1q_f64(c + i), vld1q_f64(d + i));
        return vfmaq_f64(vmulq_n_f64(other, sign), vld1q_f64(a + i), vld1q_f64(b + i));
    };
    return vcvt_high_f32_f64(vcvt_f32_f64(half(0)), half(2));
}

#define KVTRIM_SIMD_TARGET neon
#include <kvtrim/simd/four_lanes.inl>

#include <kvtrim/simd/common.inl>
#include <kvtrim/simd/load_first_of_two.inl>
#undef KVTRIM_SIMD_TARGET

// ---- Products of bf16, where cpu_level is neon_bf16 ----

KVTRIM_BEGIN_NEON_BF16
// c [2][2] += a [2][4] * transposed b [2][4]. Not the compilers' intrinsic, which clang 14 has only where the whole program may
// use it.
KVTRIM_INLINE void bfmmla(floats& c, uint16x8_t a, uint16x8_t b) {
    __asm__("bfmmla %0.4s, %1.8h, %2.8h" : "+w"(c) : "w"(a), "w"(b));
}
KVTRIM_END_REGION

} // namespace KVTRIM_NAMESPACE::simd::neon

#endif // KVTRIM_HAS_NEON
