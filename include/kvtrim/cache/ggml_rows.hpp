// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A cache of ggml's blocks (q8_0, q4_0, q4_1, q5_0, q5_1, iq4_nl), decoded tile by tile: scored, measured and compacted
// where it lies. Where the format is known at run time: cache/ggml_tensor_rows.hpp.
//
//   element (head, token, d) is element e % 32 of the block at
//       data + offset(head) + token * token_stride + e / 32 * sizeof(Block)
//
//   heads of their own stride   offset = head * head_stride, e = d                  strides in bytes, any sign
//     token-major, as llama.cpp keeps K: head_stride = row bytes, token_stride = all heads' row bytes (ggml's nb[1])
//     head-major:                        token_stride = row bytes, head_stride = tokens * row bytes
//   heads in one row            offset = 0, e = head * head_dim + d                 token-major, of any head_dim
//
// Heads of 80 or 100 elements begin inside a block: llama.cpp keeps them in rows of kv_heads * head_dim elements, a multiple
// of 32. Such heads share blocks, so that they move together: compact_in_place takes plans that keep the same tokens of
// every head. Blocks are made of 16-bit words, so data and strides are even. V as blocks lies like K: llama.cpp transposes
// only a V of f32, f16 or bf16, which is a strided view.
// Rows move whole (compact_in_place), so what survives keeps its bits; gather() copies them as decoded floats.
// A cache that was multiplied by a rotation before it was quantised (llama.cpp does so for some types) has other values:
// products with queries rotated alike and L2 norms are the same, projected L1 norms only with W_O rotated too.
//
// Cost: heads that begin or end inside a block decode it whole. Numerics: kernels/quant_blocks.hpp; every
// policy gives the bits that it gives over the decoded floats.

#include <kvtrim/cache/strided_bytes.hpp>
#include <kvtrim/cache/tensor_view.hpp>
#include <kvtrim/kernels/encode.hpp>
#include <kvtrim/kernels/quant_blocks.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace KVTRIM_NAMESPACE {

/// A cache of blocks: a row_source (cache/row_source.hpp) that moves its own rows unless Block is const. Block is one of the
/// block_... types of kernels/quant_blocks.hpp.
template <class Block>
class ggml_rows {
  public:
    /// The block in memory.
    using block = std::remove_const_t<Block>;

    /// Heads of their own stride: extents {kv_heads, tokens, head_dim}, strides {head, token} in bytes. The view is empty, and
    /// validate() says why, for extents that are negative or more than memory can hold, a head_dim that is no multiple of 32,
    /// data or strides that are odd, null data unless an extent is 0.
    ggml_rows(Block* data, const std::array<index_t, 3>& extents, const std::array<index_t, 2>& byte_strides)
        : ggml_rows(data, extents, byte_strides, extents[2]) {}

    /// Heads in one row: head h is the elements [h * head_dim, (h + 1) * head_dim) of a token's blocks, tokens token_stride bytes
    /// apart. The view is empty, and validate() says why, for the same, but kv_heads * head_dim has to be a multiple of 32.
    [[nodiscard]] static ggml_rows heads_in_row(Block* data, const std::array<index_t, 3>& extents,
                                                index_t token_stride) {
        const auto product = [](index_t a, index_t b) { // the largest index_t if it overflows
            return a == 0 || (a > 0 && 0 <= b && b <= most / a) ? a * b : most;
        };
        if (extents[2] % block::elements == 0) {
            return {data, extents, {product(block_bytes, extents[2] / block::elements), token_stride}};
        }
        return ggml_rows(data, extents, {0, token_stride}, product(extents[0], extents[2]));
    }

    /// The same rows, to read only.
    template <class Other>
        requires(std::is_same_v<const Other, Block>)
    ggml_rows(const ggml_rows<Other>& rows) // NOLINT: a conversion
        : data_(rows.data_), extents_(rows.extents_), strides_(rows.strides_), head_step_(rows.head_step_),
          problem_(rows.problem_) {}

    /// Empty, and validate() says `problem`, a string literal: for functions that make views.
    [[nodiscard]] static ggml_rows invalid(const char* problem) {
        ggml_rows rows(nullptr, {}, {});
        rows.problem_ = problem;
        return rows;
    }

    /// Ok, or why the view is empty.
    [[nodiscard]] status validate() const {
        return problem_ == nullptr ? status{} : status{errc::invalid_parameter, problem_};
    }
    /// {kv_heads, tokens, head_dim}[r].
    [[nodiscard]] index_t extent(std::size_t r) const { return extents_[r]; }
    /// Bytes of a head's slice of a token; rounded down where it ends inside a block.
    [[nodiscard]] index_t row_bytes() const {
        return extents_[2] / block::elements * block_bytes +
               extents_[2] % block::elements * block_bytes / block::elements;
    }

    /// Decodes rows [first, first + count) of a head to tile [count, head_dim].
    void load_rows(index_t head, index_t first, index_t count, float* tile) const {
        const index_t length = extents_[2];
        const index_t blocks = length / block::elements;
        if (heads_move_together()) {
            const index_t skip = head * head_step_ % block::elements;
            const index_t touched = (skip + length + block::elements - 1) / block::elements;
            for_each_row(head, first, count, touched, [&](const block* row) {
                kernels::decode_slice(row, skip, length, tile);
                tile += length;
            });
        } else if (strides_[1] == blocks * block_bytes) { // rows without gaps are one run of blocks
            kernels::decode_blocks(row(head, first), count * blocks, tile);
        } else {
            for_each_row(head, first, count, blocks, [&](const block* row) {
                kernels::decode_blocks(row, blocks, tile);
                tile += length;
            });
        }
    }

    /// Copies row `from` of a head to row `to`. Returns invalid_parameter, with nothing moved, where heads share blocks.
    status move_row(index_t head, index_t from, index_t to) const requires(!std::is_const_v<Block>) {
        if (heads_move_together()) {
            return {errc::invalid_parameter, "ggml_rows: heads share blocks: they move together"};
        }
        move_blocks(row(head, from), row(head, to), row_bytes());
        return {};
    }

    /// Whether a row of one head cannot move alone, because it shares its blocks.
    [[nodiscard]] bool heads_move_together() const { return head_step_ != 0; }
    /// Bytes of a token's row of all heads. Requires heads_move_together().
    [[nodiscard]] index_t token_bytes() const {
        return extents_[0] * head_step_ / block::elements * block_bytes;
    }
    /// Copies the row of all heads of token `from` to token `to`. Requires heads_move_together().
    void move_token(index_t from, index_t to) const requires(!std::is_const_v<Block>) {
        move_blocks(row(0, from), row(0, to), token_bytes());
    }

    /// The bytes of the rows that move whole: rows of a head, or of a token where heads share blocks.
    [[nodiscard]] std::array<strided_bytes, 1> memory() const {
        return std::array{
            strided_bytes{.first = data_,
                          .extents = {1, heads_move_together() ? 1 : extents_[0], extents_[1], 1},
                          .strides = {0, strides_[0], strides_[1], 0},
                          .bytes = heads_move_together() ? token_bytes() : row_bytes()}};
    }

    /// Encodes tile [count, head_dim] in rows [first, first + count) of a head, with new scales. Requires heads that do not
    /// move together.
    void store_rows(index_t head, index_t first, index_t count, const float* tile) const
        requires(!std::is_const_v<Block> && kernels::has_encoder<block>) {
        for (index_t t = first; t < first + count; ++t, tile += extents_[2]) {
            kernels::encode_blocks(tile, extents_[2] / block::elements, row(head, t));
        }
    }
    /// The blocks of each row that hold its first channels.
    [[nodiscard]] ggml_rows first_channels(index_t count) const {
        ggml_rows channels = *this;
        channels.extents_[2] = (count + block::elements - 1) / block::elements * block::elements;
        return channels;
    }

    /// The block in which a row begins.
    [[nodiscard]] Block* row(index_t head, index_t token) const {
        const index_t in_row = head * head_step_ / block::elements * block_bytes;
        return reinterpret_cast<Block*>(reinterpret_cast<byte*>(data_) + head * strides_[0] + in_row +
                                        token * strides_[1]);
    }

  private:
    friend class ggml_rows<const Block>;

    using byte = std::conditional_t<std::is_const_v<Block>, const std::byte, std::byte>;
    static constexpr index_t most = std::numeric_limits<index_t>::max();
    static constexpr auto block_bytes = static_cast<index_t>(sizeof(block));
    // Rows with gaps between them are prefetched this many rows ahead, because the hardware prefetcher does not follow them.
    static constexpr index_t rows_ahead = 12;

    // row_elements: elements of one row of blocks, which is a head's or all heads'.
    ggml_rows(Block* data, const std::array<index_t, 3>& extents, const std::array<index_t, 2>& strides,
              index_t row_elements)
        : data_(data), extents_(extents), strides_(strides),
          head_step_(row_elements != extents[2] ? extents[2] : 0), problem_(find_problem(row_elements)) {
        if (problem_ != nullptr) { extents_ = {}; }
    }

    [[nodiscard]] const char* find_problem(index_t row_elements) const {
        if (extents_[0] < 0 || extents_[1] < 0 || extents_[2] < 0) {
            return "ggml_rows: extents must not be negative";
        }
        if (row_elements % block::elements != 0) {
            return "ggml_rows: rows are whole blocks: head_dim, or kv_heads * head_dim of heads in one row, "
                   "must be a multiple of 32";
        }
        const std::array<index_t, 3> shape{heads_move_together() ? 1 : extents_[0], extents_[1],
                                           row_elements / block::elements};
        const std::array<index_t, 3> steps{strides_[0], strides_[1], block_bytes};
        if (!detail::fits_in_memory(shape, steps, block::elements * sizeof(float), 1)) {
            return "ggml_rows: extents or strides beyond what memory can hold";
        }
        if (strides_[0] % 2 != 0 || strides_[1] % 2 != 0 ||
            reinterpret_cast<std::uintptr_t>(data_) % 2 != 0) {
            return "ggml_rows: data and strides must be even";
        }
        const bool empty = extents_[0] == 0 || extents_[1] == 0 || extents_[2] == 0;
        return empty || data_ != nullptr ? nullptr : "ggml_rows: data must not be null";
    }

    // Calls fn(row) for rows that have gaps between them, and prefetches the blocks of later rows.
    template <class Fn>
    void for_each_row(index_t head, index_t first, index_t count, index_t blocks, Fn&& fn) const {
        const auto* const begin = reinterpret_cast<const std::byte*>(row(head, 0));
        const auto at = [&](index_t t) { return reinterpret_cast<const block*>(begin + t * strides_[1]); };
        for (index_t t = first; t < first + count; ++t) {
            if (t + rows_ahead < extents_[1]) { kernels::fetch_blocks(at(t + rows_ahead), blocks); }
            fn(at(t));
        }
    }

    static void move_blocks(const block* from, block* to, index_t bytes) {
        if (bytes > 0) { std::memmove(to, from, static_cast<std::size_t>(bytes)); }
    }

    Block* data_;
    std::array<index_t, 3> extents_;
    std::array<index_t, 2> strides_;
    index_t
        head_step_; // elements from head to head in one row of blocks; 0: heads have a stride of their own
    const char* problem_;
};

} // namespace KVTRIM_NAMESPACE
