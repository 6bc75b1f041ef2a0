// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The 8-bit floats of fp8 caches, as elements (core/element.hpp) of any view or pool.
//
//   f8_e4m3   4 bits of exponent, 3 of mantissa: 2^-9 to 448, no infinities, NaN is 0x7f and 0xff ("e4m3fn")
//   f8_e5m2   5 bits of exponent, 2 of mantissa: 2^-16 to 57344, infinities and NaNs as IEEE 754: the high byte of an f16
//
// Plain storage types: reinterpret the engine's pointer. A cache with scales is a scaled_rows (cache/scaled_rows.hpp).
// Source: OCP 8-bit Floating Point Specification, revision 1.0.
//
// Numerics: widening is exact. Narrowing rounds to nearest, ties to even, and saturates as engines do when they fill a
// cache: whatever is beyond the largest number, infinity too, becomes the largest number of that sign. NaN stays NaN.
// Under denormals-are-zero, subnormals may read as zero where no vector path is taken.

#include <kvtrim/core/element.hpp>

#include <algorithm>

namespace KVTRIM_NAMESPACE {

/// 4 bits of exponent, 3 of mantissa ("e4m3fn").
struct f8_e4m3 {
    std::uint8_t bits; ///< sign, exponent, mantissa from the highest bit down
};

/// 5 bits of exponent, 2 of mantissa.
struct f8_e5m2 {
    std::uint8_t bits; ///< sign, exponent, mantissa from the highest bit down
};

namespace detail {

// The nearest pattern of a format with such fields, saturated at `largest`.
template <int mantissa_bits, int bias>
[[nodiscard]] constexpr std::uint8_t narrow_to_f8(float x, std::uint32_t largest, std::uint32_t nan) {
    const auto bits = std::bit_cast<std::uint32_t>(x);
    const std::uint32_t sign = (bits >> 24) & 0x80u;
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) { return static_cast<std::uint8_t>(sign | nan); }
    constexpr int dropped = 23 - mantissa_bits;
    constexpr auto rebias = static_cast<std::uint32_t>(127 - bias) << 23;
    std::uint32_t rounded = 0;
    if (magnitude < rebias + (1u << 23)) {
        // Below the smallest normal number: adding a power of two whose last bit is the format's last bit rounds.
        constexpr auto aligner = static_cast<std::uint32_t>(127 + 1 - bias + dropped) << 23;
        const float aligned = std::bit_cast<float>(magnitude) + std::bit_cast<float>(aligner);
        rounded = std::bit_cast<std::uint32_t>(aligned) - aligner;
    } else {
        const std::uint32_t last = (magnitude >> dropped) & 1u;
        rounded = (magnitude + ((1u << (dropped - 1)) - 1u) + last - rebias) >> dropped;
    }
    return static_cast<std::uint8_t>(sign | std::min(rounded, largest));
}

} // namespace detail

/// Conversion of e5m2: the high byte of an f16.
template <>
struct element_traits<f8_e5m2> {
    /// Exact.
    static constexpr float to_float(f8_e5m2 x) {
        return element_traits<f16>::to_float({static_cast<std::uint16_t>(x.bits << 8)});
    }
    /// Rounded to nearest, ties to even, saturated.
    static constexpr f8_e5m2 from_float(float x) { return {detail::narrow_to_f8<2, 15>(x, 0x7bu, 0x7eu)}; }
};

/// Conversion of e4m3.
template <>
struct element_traits<f8_e4m3> {
    /// Exact: an f16 with the same exponent field is 2^8 times too small.
    static constexpr float to_float(f8_e4m3 x) {
        const std::uint32_t magnitude = x.bits & 0x7fu;
        const std::uint32_t half = magnitude == 0x7fu ? 0x7e00u : magnitude << 7;
        const std::uint32_t sign = x.bits & 0x80u;
        return 256.0f * element_traits<f16>::to_float({static_cast<std::uint16_t>((sign << 8) | half)});
    }
    /// Rounded to nearest, ties to even, saturated.
    static constexpr f8_e4m3 from_float(float x) { return {detail::narrow_to_f8<3, 7>(x, 0x7eu, 0x7fu)}; }
};

} // namespace KVTRIM_NAMESPACE
