// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Floats to quantised rows: the inverse of quant_blocks.hpp and scale_codes.hpp, for rows that change in place.
//
//   encode_blocks         each block of 32 gets a new scale d, as f16, and codes
//     q8_0                d = max |x| / 127
//     q4_0                d = m / 8, or o / 7 where o > 0.9375 m; m the larger and o the smaller of max x and -min x; d has
//                         the sign that makes the code of m -8
//   encode_row            a row of 8-bit codes gets a new scale, and a zero point that is an integer
//     int8                scale = max |x| / 127; with zero points (max x - min x) / 254
//     8-bit floats        scale = max |x| / the largest code
//   encode_with_scales    codes alone, by the scales that others share; codes saturate
//
// Error of one encoding: half a step |d| or |scale| for integer codes, half a unit in the last place of the code for
// floats, and no element becomes larger than the largest was. What saturates: codes by given scales, by as much
// as x exceeds their range (a rotation makes a channel at most sqrt(2) times as large as the larger of its pair), and
// blocks for which a scale in f16 has no room (above 8e6 in q8_0).
// A block or row that was encoded by these functions and contains its largest code keeps its bits when it is decoded and
// encoded again. Departures from ggml's quantize_row_q8_0 and q4_0: codes are computed from the scale as it is stored, in
// f16, and q4_0 chooses d so that both signs fit; ggml's q4_0 is off by up to a whole step for elements of the sign opposite
// to the largest. Source of the layouts: kernels/quant_blocks.hpp.
//
// Odd data: a block or row with an own scale that holds a NaN or an infinity decodes to NaN, all of it; by given scales a
// NaN becomes the largest code, or a NaN where codes have one. Numerics: float, zero points in double; the same bits at every
// level. Blocks and rows of int8 are encoded by the target's vectors, because encoding is most of what it costs to rotate them;
// 8-bit floats one by one.

#include <kvtrim/kernels/quant_blocks.hpp>
#include <kvtrim/kernels/scale_codes.hpp>
#include <kvtrim/kernels/vector_loops.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <type_traits>

namespace KVTRIM_NAMESPACE::kernels {

/// A number whose addition rounds to an integer, ties to even, because it leaves no bits behind the point: 1.5 * 2^23.
inline constexpr float code_aligner = 0x1.8p23f;

/// The nearest integer of x between two limits below 2^22; the highest for NaN.
[[nodiscard]] inline std::int32_t to_code(float x, float lowest, float highest) {
    const float below = x < highest ? x : highest;
    const float inside = below > lowest ? below : lowest;
    return std::bit_cast<std::int32_t>(inside + code_aligner) - std::bit_cast<std::int32_t>(code_aligner);
}

/// The lowest and the highest of some floats and 0.
struct value_range {
    float low;      ///< at most 0
    float high;     ///< at least 0
    bool is_finite; ///< whether all floats are

    /// The larger of the two sizes.
    [[nodiscard]] float largest() const { return std::max(high, -low); }
    /// The smaller of the two sizes.
    [[nodiscard]] float smaller() const { return std::min(high, -low); }
};

namespace detail {

// The nearest f16; below 2^-14, where f16 has few bits, one that is not smaller; at most the largest f16.
[[nodiscard]] inline f16 stored_scale(float magnitude) {
    f16 scale = element_traits<f16>::from_float(magnitude);
    if (scale.bits < 0x0400 && to_float(scale) < magnitude) { ++scale.bits; }
    scale.bits = std::min<std::uint16_t>(scale.bits, 0x7bff);
    return scale;
}

// 0 if the inverse is not finite: for 0, for scales so small that everything decodes to 0, and for NaN.
[[nodiscard]] inline float inverse_of(float scale) {
    const float inverse = 1 / scale;
    return std::isfinite(inverse) ? inverse : 0.0f;
}

inline constexpr f16 nan_scale{0x7e00};

} // namespace detail

/// Writes the scale of a block whose elements have this range, and returns the factor that makes codes of them.
[[nodiscard]] inline float start_block(const value_range& range, block_q8_0& to) {
    const f16 scale = detail::stored_scale(range.largest() / 127);
    to.scale = range.is_finite ? scale : detail::nan_scale;
    return detail::inverse_of(to_float(scale));
}
/// As above.
[[nodiscard]] inline float start_block(const value_range& range, block_q4_0& to) {
    const float m = range.largest(), o = range.smaller();
    f16 scale = detail::stored_scale(o > 0.9375f * m ? o / 7 : m / 8);
    if (range.high >= -range.low && scale.bits != 0) { scale.bits |= 0x8000u; }
    to.scale = range.is_finite ? scale : detail::nan_scale;
    return detail::inverse_of(to_float(scale));
}

} // namespace KVTRIM_NAMESPACE::kernels

#define KVTRIM_BODY <kvtrim/kernels/encode.inl>
#include <kvtrim/simd/for_each_target.inl>

namespace KVTRIM_NAMESPACE::kernels {

/// A format of blocks that floats can be encoded in.
template <class Block>
concept has_encoder = requires(const value_range& range, Block& to) {
    start_block(range, to);
};

/// blocks [count] = the codes of x [32 * count].
template <has_encoder Block>
void encode_blocks(const float* x, index_t count, Block* blocks) {
    (KVTRIM_CHOOSE(active_cpu_level(), encode_all<Block>))(x, count, blocks);
}

/// Where the new scale and zero point of a row are written; the counterpart of code_scales.
struct new_scales {
    float* scale; ///< one, or one per channel
    float* zero;  ///< null: 0 everywhere
    index_t step; ///< 0: one for the row, 1: one per channel
};

namespace detail {

template <class Code>
[[nodiscard]] float largest_code() {
    if constexpr (std::is_same_v<Code, std::int8_t>) {
        return 127;
    } else { // formats that saturate are used up to their largest number, others up to 1
        const float most = to_float(element_traits<Code>::from_float(std::numeric_limits<float>::max()));
        return std::isfinite(most) ? most : 1.0f;
    }
}

// x = scale * (code - zero)
template <class Code>
void encode_by(const float* x, index_t count, float scale, float zero, Code* codes) {
    const float inverse = inverse_of(scale);
    if constexpr (std::is_same_v<Code, std::int8_t>) {
        if (zero == 0 && count > 1) {
            (KVTRIM_CHOOSE(active_cpu_level(), encode_codes))(x, count, inverse, codes);
            return;
        }
        for (index_t i = 0; i < count; ++i) {
            // In double: a float sum with a large zero point would lose the fraction.
            const double code =
                static_cast<double>(x[i]) * static_cast<double>(inverse) + static_cast<double>(zero);
            codes[i] = static_cast<std::int8_t>(to_code(static_cast<float>(code), -128, 127));
        }
    } else {
        for (index_t i = 0; i < count; ++i) {
            codes[i] = element_traits<Code>::from_float(x[i] * inverse + zero);
        }
    }
}

[[nodiscard]] inline value_range range_of_row(const float* x, index_t count) {
    if (count == 1) { return {x[0] < 0 ? x[0] : 0.0f, x[0] > 0 ? x[0] : 0.0f, std::isfinite(x[0])}; }
    return (KVTRIM_CHOOSE(active_cpu_level(), range_of))(x, count);
}

template <class Code>
void encode_group(const float* x, index_t count, Code* codes, float* scale, float* zero) {
    const value_range range = range_of_row(x, count);
    *scale = range.largest() / largest_code<Code>();
    float offset = 0;
    if (std::is_same_v<Code, std::int8_t> && zero != nullptr && count > 1) {
        const auto [low, high] = std::minmax_element(x, x + count);
        const float spread = *high / 254 - *low / 254;
        if (range.is_finite && spread > 0) {
            *scale = spread;
            offset = std::nearbyint(-127 - *low / spread);
        }
    }
    if (zero != nullptr) { *zero = offset; }
    if (!range.is_finite) { *scale = std::numeric_limits<float>::quiet_NaN(); }
    encode_by(x, count, range.is_finite ? *scale : 0.0f, offset, codes);
}

} // namespace detail

/// Encodes x [count] with new scales, zero points and codes [count]. Requires count > 0 and step 0 or 1.
template <class Code>
void encode_row(const float* x, index_t count, Code* codes, const new_scales& to) {
    const index_t group = to.step == 0 ? count : 1;
    for (index_t i = 0; i < count; i += group) {
        detail::encode_group(x + i, group, codes + i, to.scale + i * to.step,
                             to.zero != nullptr ? to.zero + i * to.step : nullptr);
    }
}

/// Encodes x [count] as codes [count] with scales that stay. Requires count > 0 and step 0 or 1.
template <class Code>
void encode_with_scales(const float* x, index_t count, Code* codes, const code_scales& by) {
    const index_t group = by.step == 0 ? count : 1;
    for (index_t i = 0; i < count; i += group) {
        detail::encode_by(x + i, group, by.scale[i * by.step],
                          by.zero != nullptr ? by.zero[i * by.step] : 0.0f, codes + i);
    }
}

} // namespace KVTRIM_NAMESPACE::kernels
