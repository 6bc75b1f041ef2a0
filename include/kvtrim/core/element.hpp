// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Elements of a cache and how each becomes a float: float, double, f16, bf16, and whatever an engine adds.
//
// f16 and bf16 are plain 16-bit storage types, layout-compatible with every engine's own (reinterpret the
// pointer); the compiler's _Float16 and Eigen's half types are served by the same trait. They are not
// arithmetic: kvtrim computes in float. An engine's own type needs one specialisation:
//
//     template <> struct kvtrim::element_traits<my_fp8> {
//         static float to_float(my_fp8 x) { return ...; }
//     };
//
// Numerics: widening is exact, NaN and infinities included. Narrowing rounds to nearest, ties to even;
// f16 overflows to infinity. Under denormals-are-zero, f16 subnormals (below 6.2e-5) may read as zero.

#include <kvtrim/core/region.hpp>

#include <bit>
#include <concepts>
#include <cstdint>
#include <type_traits>

namespace KVTRIM_NAMESPACE {

/// IEEE 754 binary16, as bits.
struct f16 {
    std::uint16_t bits; ///< sign, exponent, mantissa from the highest bit down
};

/// The upper half of an IEEE 754 binary32, as bits.
struct bf16 {
    std::uint16_t bits; ///< sign, exponent, mantissa from the highest bit down
};

/// How an element becomes a float and back. Specialise it for an engine's own element: to_float is required, from_float only
/// where kvtrim writes.
template <class T>
struct element_traits;

/// Floats are taken as they are.
template <>
struct element_traits<float> {
    static constexpr float to_float(float x) { return x; }   ///< the element as a float
    static constexpr float from_float(float x) { return x; } ///< a float as the element
};

/// Doubles are rounded to float.
template <>
struct element_traits<double> {
    static constexpr float to_float(double x) { return static_cast<float>(x); }    ///< the element as a float
    static constexpr double from_float(float x) { return static_cast<double>(x); } ///< a float as the element
};

/// Conversion of bf16.
template <>
struct element_traits<bf16> {
    /// Exact.
    static constexpr float to_float(bf16 x) {
        return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16);
    }
    /// Rounded to nearest, ties to even.
    static constexpr bf16 from_float(float x) {
        const auto bits = std::bit_cast<std::uint32_t>(x);
        if ((bits & 0x7fffffffu) > 0x7f800000u) { // a NaN stays a NaN, whichever bits are dropped
            return {static_cast<std::uint16_t>((bits >> 16) | 0x40u)};
        }
        return {static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
    }
};

/// Conversion of IEEE half precision.
template <>
struct element_traits<f16> {
    /// Exact.
    static constexpr float to_float(f16 x) {
        // The exponent is moved by a multiplication, which also normalises subnormals.
        const std::uint32_t magnitude = x.bits & 0x7fffu;
        const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000u) << 16;
        const auto scaled = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude << 13) *
                                                         std::bit_cast<float>(0x77800000u)); // 2^112
        const std::uint32_t special = magnitude >= 0x7c00u ? 0x7f800000u : 0u;
        return std::bit_cast<float>(sign | scaled | special);
    }
    /// Rounded to nearest, ties to even; beyond the largest f16, infinity.
    static constexpr f16 from_float(float x) {
        const auto bits = std::bit_cast<std::uint32_t>(x);
        const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
        const std::uint32_t magnitude = bits & 0x7fffffffu;
        if (magnitude > 0x7f800000u) { return {static_cast<std::uint16_t>(sign | 0x7e00u)}; }
        if (magnitude >= 0x477ff000u) { return {static_cast<std::uint16_t>(sign | 0x7c00u)}; }
        if (magnitude < 0x38800000u) {
            // Below 2^-14: adding 0.5 aligns the last f16 bit with the last float bit and rounds.
            const float aligned = std::bit_cast<float>(magnitude) + 0.5f;
            return {static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(aligned) & 0x7ffu))};
        }
        const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
        return {static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
    }
};

#if KVTRIM_HAS_FLOAT16
/// The compiler's own half precision.
template <>
struct element_traits<_Float16> {
    /// Exact.
    static constexpr float to_float(_Float16 x) { return static_cast<float>(x); }
    /// Rounded to nearest, ties to even.
    static constexpr _Float16 from_float(float x) { return static_cast<_Float16>(x); }
};
#endif

/// 16 raw bits may be f16 or bf16: a cache of them can be moved, but not read. The type satisfies the concept, so that the
/// compiler's one message is the one below.
template <>
struct element_traits<std::uint16_t> {
    /// Does not compile, and says what to pass instead.
    template <class T>
    static constexpr float to_float(T) {
        static_assert(!std::is_same_v<T, std::uint16_t>,
                      "kvtrim: 16 raw bits are f16 or bf16: pass as_f16(pointer) or as_bf16(pointer); see "
                      "core/element.hpp");
        return 0;
    }
};

/// Elements of 16 raw bits, as engines in C keep them, as f16: the same pointer with another type.
template <class T>
    requires(sizeof(T) == 2)
[[nodiscard]] auto as_f16(T* bits) {
    using element = std::conditional_t<std::is_const_v<T>, const f16, f16>;
    return reinterpret_cast<element*>(bits);
}
/// Elements of 16 raw bits as bf16: the same pointer with another type.
template <class T>
    requires(sizeof(T) == 2)
[[nodiscard]] auto as_bf16(T* bits) {
    using element = std::conditional_t<std::is_const_v<T>, const bf16, bf16>;
    return reinterpret_cast<element*>(bits);
}

/// A type that views may consist of: element_traits says how it becomes a float.
template <class T>
concept element = requires(const std::remove_cv_t<T>& x) {
    { element_traits<std::remove_cv_t<T>>::to_float(x) } -> std::same_as<float>;
};

/// The float value of an element.
template <element T>
[[nodiscard]] constexpr float to_float(const T& x) {
    return element_traits<std::remove_cv_t<T>>::to_float(x);
}

} // namespace KVTRIM_NAMESPACE
