// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A cache of 8-bit codes with scales beside them, decoded tile by tile.
//
//   x[g, t, d] = scale[g, t, d] * (code[g, t, d] - zero[g, t, d])
//
// Codes are std::int8_t, or any element (f8_e4m3, f8_e5m2). Scales and zero points have strides of their own, where 0
// says what shares one:
//
//   per token and head   {tokens, 1, 0}        per channel of a head   {head_dim, 0, 1}
//   per head             {1, 0, 0}             per tensor              {0, 0, 0}
//
// Channels are contiguous; heads and tokens have any strides, in codes and in scales. Zero points are optional; an engine
// that stores a minimum m (x = scale * code + m) passes -m / scale.
// Rows move whole (compact_in_place), and a scale that belongs to a token of one head moves with its row. Groups of
// tokens that share a per-channel scale (KIVI) are not supported: a row cannot leave its group without new codes.
// Rows that are written back (store_rows) get a new scale and zero point where these are the token's own; where others share
// them, they stay, and codes are rounded anew and saturate. kernels/encode.hpp states the error.
//
// Numerics: kernels/scale_codes.hpp; every policy gives the bits that it gives over the decoded floats.

#include <kvtrim/cache/strided_bytes.hpp>
#include <kvtrim/cache/tensor_view.hpp>
#include <kvtrim/kernels/convert.hpp>
#include <kvtrim/kernels/encode.hpp>
#include <kvtrim/kernels/scale_codes.hpp>

#include <array>
#include <cstddef>
#include <cstring>

namespace KVTRIM_NAMESPACE {

/// Scales of a cache, and zero points with the same strides unless null.
template <class Float>
struct scale_table {
    Float* scales;                  ///< of head 0, token 0, channel 0
    std::array<index_t, 3> strides; ///< {head, token, channel}, in floats; channel 0 or 1
    Float* zeros = nullptr;         ///< zero points, with the strides of the scales; null: 0 everywhere

    /// Whether a scale belongs to one token, so that it moves with the row.
    [[nodiscard]] bool is_per_token() const { return strides[1] != 0; }
};

template <class Float>
scale_table(Float*, std::array<index_t, 3>) -> scale_table<Float>;
template <class Float>
scale_table(Float*, std::array<index_t, 3>, Float*) -> scale_table<Float>;

/// A cache of codes: a row_source (cache/row_source.hpp) that moves its own rows unless Code is const. Float is float or
/// const float.
template <class Code, class Float = const float>
class scaled_rows {
  public:
    /// The code in memory.
    using code = std::remove_const_t<Code>;

    /// extents {kv_heads, tokens, head_dim}, strides {head, token} in codes. The view is empty, and validate() says why, for
    /// extents that are negative, extents or strides beyond what memory can hold, scales whose channel stride is neither 0 nor 1,
    /// codes or scales missing where there are rows, codes that may move with scales per token that may not or that belong to
    /// several heads.
    scaled_rows(Code* codes, const std::array<index_t, 3>& extents, const std::array<index_t, 2>& strides,
                const scale_table<Float>& scales)
        : codes_(codes), extents_(extents), strides_(strides), scales_(scales), problem_(find_problem()) {
        static_assert(sizeof(code) == 1, "kvtrim: scaled_rows decodes codes of 8 bits");
        if (problem_ != nullptr) { extents_ = {}; }
    }

    /// Ok, or why the view is empty.
    [[nodiscard]] status validate() const {
        return problem_ == nullptr ? status{} : status{errc::invalid_parameter, problem_};
    }
    /// {kv_heads, tokens, head_dim}[r].
    [[nodiscard]] index_t extent(std::size_t r) const { return extents_[r]; }
    /// Bytes of a head's codes of a token, and of the scales that are the token's own.
    [[nodiscard]] index_t row_bytes() const {
        const index_t scale_bytes = static_cast<index_t>(sizeof(float)) * (scales_.zeros != nullptr ? 2 : 1);
        return extents_[2] + (scales_.is_per_token() ? scales_per_row() * scale_bytes : 0);
    }

    /// Decodes rows [first, first + count) of a head to tile [count, head_dim].
    void load_rows(index_t head, index_t first, index_t count, float* tile) const {
        const index_t length = extents_[2];
        if (length == 0) { return; }
        for (index_t t = first; t < first + count; ++t, tile += length) {
            const index_t at = scale_offset(head, t);
            const kernels::code_scales by{scales_.scales + at,
                                          scales_.zeros != nullptr ? scales_.zeros + at : nullptr,
                                          scales_.strides[2]};
            if constexpr (std::is_same_v<code, std::int8_t>) {
                kernels::scale_codes(row(head, t), length, by, tile);
            } else {
                kernels::widen(row(head, t), length, tile);
                kernels::scale_codes(static_cast<const float*>(tile), length, by, tile);
            }
        }
    }

    /// Copies the codes of row `from` of a head to row `to`, with the scale and zero point that are the row's own.
    void move_row(index_t head, index_t from, index_t to) const requires(!std::is_const_v<Code>) {
        if (extents_[2] > 0) {
            std::memmove(row(head, to), row(head, from), static_cast<std::size_t>(extents_[2]));
        }
        if (!scales_.is_per_token()) { return; }
        if constexpr (!std::is_const_v<Float>) {
            move_scales(scales_.scales, scale_offset(head, from), scale_offset(head, to));
            if (scales_.zeros != nullptr) {
                move_scales(scales_.zeros, scale_offset(head, from), scale_offset(head, to));
            }
        }
    }

    /// The bytes that move_row() writes: codes, and the scales and zero points that are the row's own.
    [[nodiscard]] std::array<strided_bytes, 3> memory() const { return memory_of(scales_.is_per_token()); }
    /// Whether codes, scales or zero points, also those that rows share, share a byte with other memory.
    [[nodiscard]] bool overlaps(const strided_bytes& other) const {
        const auto read = memory_of(true);
        return std::any_of(read.begin(), read.end(),
                           [&](const strided_bytes& m) { return overlap(m, other); });
    }
    /// Whether scales or zero points that rows share do: these do not move with a row.
    [[nodiscard]] bool tables_overlap(const strided_bytes& other) const {
        const auto read = memory_of(true);
        return !scales_.is_per_token() && (overlap(read[1], other) || overlap(read[2], other));
    }
    /// Encodes tile [count, head_dim] in rows [first, first + count) of a head (kernels/encode.hpp).
    void store_rows(index_t head, index_t first, index_t count, const float* tile) const
        requires(!std::is_const_v<Code>) {
        const index_t length = extents_[2];
        for (index_t t = first; t < first + count; ++t, tile += length) {
            const index_t at = scale_offset(head, t);
            Float* const zeros = scales_.zeros != nullptr ? scales_.zeros + at : nullptr;
            if constexpr (!std::is_const_v<Float>) {
                if (scales_.is_per_token()) {
                    kernels::encode_row(tile, length, row(head, t),
                                        {scales_.scales + at, zeros, scales_.strides[2]});
                    continue;
                }
            }
            kernels::encode_with_scales(tile, length, row(head, t),
                                        {scales_.scales + at, zeros, scales_.strides[2]});
        }
    }
    /// The first channels of every row, or whole rows where all channels share a scale that is the row's own.
    [[nodiscard]] scaled_rows first_channels(index_t count) const {
        scaled_rows channels = *this; // whole rows where all channels get a new scale
        if (!scales_.is_per_token() || scales_.strides[2] != 0) { channels.extents_[2] = count; }
        return channels;
    }

    /// The first code of a row.
    [[nodiscard]] Code* row(index_t head, index_t token) const {
        return codes_ + head * strides_[0] + token * strides_[1];
    }

  private:
    // Codes, and with_scales scales and zero points; else these are empty.
    [[nodiscard]] std::array<strided_bytes, 3> memory_of(bool with_scales) const {
        const auto table = [&](const float* floats) {
            const index_t channels = floats != nullptr && with_scales ? scales_per_row() : 0;
            return strided_bytes{.first = floats,
                                 .extents = {1, extents_[0], extents_[1], channels},
                                 .strides = {0, to_bytes(scales_.strides[0], sizeof(float)),
                                             to_bytes(scales_.strides[1], sizeof(float)), sizeof(float)},
                                 .bytes = sizeof(float)};
        };
        return {strided_bytes{.first = codes_,
                              .extents = {1, extents_[0], extents_[1], extents_[2]},
                              .strides = {0, strides_[0], strides_[1], 1},
                              .bytes = 1},
                table(scales_.scales), table(scales_.zeros)};
    }
    [[nodiscard]] const char* find_problem() const {
        if (extents_[0] < 0 || extents_[1] < 0 || extents_[2] < 0) {
            return "scaled_rows: extents must not be negative";
        }
        if (!detail::fits_in_memory(extents_, {strides_[0], strides_[1], 1}, sizeof(float), 1) ||
            !detail::fits_in_memory(extents_, scales_.strides, sizeof(float), sizeof(float))) {
            return "scaled_rows: extents or strides beyond what memory can hold";
        }
        if (scales_.strides[2] != 0 && scales_.strides[2] != 1) {
            return "scaled_rows: scales have a channel stride of 0 or 1";
        }
        const bool may_move = !std::is_const_v<Code> && scales_.is_per_token();
        if (may_move && (std::is_const_v<Float> || (extents_[0] > 1 && scales_.strides[0] == 0))) {
            return "scaled_rows: a row that may move has a scale that moves with it: make the codes const, "
                   "or the scales not const and of one head each";
        }
        const bool empty = extents_[0] == 0 || extents_[1] == 0 || extents_[2] == 0;
        return empty || (codes_ != nullptr && scales_.scales != nullptr)
                   ? nullptr
                   : "scaled_rows: codes and scales must not be null";
    }

    [[nodiscard]] index_t scales_per_row() const { return scales_.strides[2] == 0 ? 1 : extents_[2]; }
    [[nodiscard]] index_t scale_offset(index_t head, index_t token) const {
        return head * scales_.strides[0] + token * scales_.strides[1];
    }
    void move_scales(Float* table, index_t from, index_t to) const {
        std::memmove(table + to, table + from, static_cast<std::size_t>(scales_per_row()) * sizeof(float));
    }

    Code* codes_;
    std::array<index_t, 3> extents_;
    std::array<index_t, 2> strides_;
    scale_table<Float> scales_;
    const char* problem_;
};

} // namespace KVTRIM_NAMESPACE
