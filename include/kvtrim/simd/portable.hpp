// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Four lanes by the vector types that g++ and clang have for every processor: SSE2 on plain x86-64.
//
// What each primitive means is said in simd/simd.hpp. Numerics: fma rounds twice.

#include <kvtrim/base/fp8.hpp>
#include <kvtrim/base/status.hpp>
#include <kvtrim/simd/region.hpp>

#include <algorithm>
#include <cstddef>

namespace kvtrim::simd::portable {

using floats = float __attribute__((vector_size(16)));
using ints = std::int32_t __attribute__((vector_size(16)));
using mask = ints; // all bits of a lane, or none

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
    return a > b;
}
KVTRIM_INLINE floats select(mask m, floats a, floats b) {
    return m ? a : b;
}
KVTRIM_INLINE floats keep(mask m, floats x) {
    return reinterpret_cast<floats>(m & reinterpret_cast<ints>(x));
}
KVTRIM_INLINE floats absolute(floats x) {
    return reinterpret_cast<floats>(reinterpret_cast<ints>(x) & 0x7fffffff);
}
KVTRIM_INLINE bool any(mask m) {
    return (m[0] | m[1] | m[2] | m[3]) != 0;
}
KVTRIM_INLINE float sum_of_lanes(floats x) {
    return (x[0] + x[2]) + (x[1] + x[3]);
}
KVTRIM_INLINE float highest_of_lanes(floats x) {
    return std::max(std::max(x[0], x[2]), std::max(x[1], x[3]));
}

KVTRIM_INLINE floats exp2(floats x) {
    x = max(x, broadcast(-127.0f)); // for NaN as well: no conversion may overflow
    const ints truncated = __builtin_convertvector(x, ints);
    const ints whole = truncated + (__builtin_convertvector(truncated, floats) > x); // true is -1
    const floats fraction = x - __builtin_convertvector(whole, floats);
    floats p = broadcast(0.00187757661f);
    p = fma(p, fraction, broadcast(0.00898934025f));
    p = fma(p, fraction, broadcast(0.0558263179f));
    p = fma(p, fraction, broadcast(0.240153617f));
    p = fma(p, fraction, broadcast(0.693153073f));
    p = fma(p, fraction, broadcast(0.999999925f));
    return reinterpret_cast<floats>(reinterpret_cast<ints>(p) + whole * 0x800000);
}

class first_lanes {
  public:
    explicit first_lanes(index_t count) : count_(std::clamp<index_t>(count, 0, lanes)) {}

    [[nodiscard]] KVTRIM_INLINE floats load(const float* from) const {
        if (count_ == lanes) { return portable::load(from); }
        return floats{count_ > 0 ? from[0] : 0, count_ > 1 ? from[1] : 0, count_ > 2 ? from[2] : 0, 0};
    }
    KVTRIM_INLINE void store(float* to, floats x) const {
        if (count_ == lanes) { return portable::store(to, x); }
        if (count_ > 0) { to[0] = x[0]; }
        if (count_ > 1) { to[1] = x[1]; }
        if (count_ > 2) { to[2] = x[2]; }
    }
    [[nodiscard]] KVTRIM_INLINE floats keep(floats x) const {
        const auto count = static_cast<std::int32_t>(count_);
        return portable::keep(ints{0, 1, 2, 3} < ints{count, count, count, count}, x);
    }
    [[nodiscard]] index_t count() const { return count_; }

  private:
    index_t count_;
};

// ---- Other elements ----

KVTRIM_INLINE ints load_shorts(const void* from) {
    std::uint16_t __attribute__((vector_size(8))) x;
    __builtin_memcpy(&x, from, sizeof(x));
    return __builtin_convertvector(x, ints);
}
KVTRIM_INLINE floats load(const bf16* from) {
    return reinterpret_cast<floats>(load_shorts(from) << 16);
}
KVTRIM_INLINE floats load(const f16* from) { // as element_traits<f16>
    const ints bits = load_shorts(from);
    const ints magnitude = bits & 0x7fff;
    const floats scaled = reinterpret_cast<floats>(magnitude << 13) * 0x1p112f;
    const ints special = (magnitude >= 0x7c00) & 0x7f800000;
    return reinterpret_cast<floats>(reinterpret_cast<ints>(scaled) | special | ((bits & 0x8000) << 16));
}
template <class T>
KVTRIM_INLINE floats load(const T* from) {
    return floats{to_float(from[0]), to_float(from[1]), to_float(from[2]), to_float(from[3])};
}
KVTRIM_INLINE floats load(const std::int8_t* from) {
    return __builtin_convertvector(ints{from[0], from[1], from[2], from[3]}, floats);
}
KVTRIM_INLINE floats load_low_nibbles(const std::uint8_t* from) {
    return __builtin_convertvector((ints{from[0], from[1], from[2], from[3]} & 15) - 8, floats);
}
KVTRIM_INLINE floats load_high_nibbles(const std::uint8_t* from) {
    return __builtin_convertvector((ints{from[0], from[1], from[2], from[3]} >> 4) - 8, floats);
}
template <class T>
KVTRIM_INLINE void store(T* to, floats x) {
    for (int i = 0; i < 4; ++i) { to[i] = element_traits<T>::from_float(x[i]); }
}

#define KVTRIM_SIMD_TARGET portable
#include <kvtrim/simd/common.inl>
#undef KVTRIM_SIMD_TARGET

} // namespace kvtrim::simd::portable
