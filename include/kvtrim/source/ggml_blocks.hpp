// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A cache of ggml's q8_0 or q4_0 blocks, decoded tile by tile: scored, measured and compacted where it lies.
//
//   element (head, token, d) is element d % 32 of the block at
//   data + head * head_stride + token * token_stride + d / 32 * sizeof(Block)        strides in bytes, any sign
//
//   token-major, as llama.cpp keeps K: head_stride = row bytes, token_stride = all heads' row bytes (ggml's nb[1])
//   head-major:                        token_stride = row bytes, head_stride = tokens * row bytes
//
// A head's slice must begin on a block border, so head_dim is a multiple of 32; blocks are made of 16-bit words, so strides
// are even. V as blocks lies like K: llama.cpp transposes only a V of f32, f16 or bf16, which is a strided view.
// Rows move whole (compact_in_place), so what survives keeps its bits; gather() copies them as decoded floats.
// Rows that are written back (store_rows) get new scales and codes, block by block: kernels/encode.hpp states the error.
// A cache that was multiplied by a rotation before it was quantised (llama.cpp does so for some types) has other values:
// products with queries rotated alike and L2 norms are the same, projected L1 norms only with W_O rotated too.
//
// Numerics: kernels/blocks.hpp; every policy gives the bits that it gives over the decoded floats.

#include <kvtrim/base/contract.hpp>
#include <kvtrim/base/strided_bytes.hpp>
#include <kvtrim/kernels/blocks.hpp>
#include <kvtrim/kernels/encode.hpp>

#include <array>
#include <cstddef>
#include <cstring>
#include <type_traits>

namespace kvtrim {

// A row_source, and a cache that moves its own rows unless Block is const. Block is block_q8_0 or block_q4_0.
template <class Block>
class ggml_rows {
  public:
    using block = std::remove_const_t<Block>;

    // extents {kv_heads, tokens, head_dim}, strides {head, token} in bytes. Requires extents >= 0, head_dim a multiple of 32,
    // even strides, and data unless the cache is empty.
    ggml_rows(Block* data, const std::array<index_t, 3>& extents, const std::array<index_t, 2>& byte_strides)
        : data_(data), extents_(extents), strides_(byte_strides) {
        KVTRIM_EXPECTS(extents[0] >= 0 && extents[1] >= 0 && extents[2] >= 0,
                       "ggml_rows: extents must not be negative");
        KVTRIM_EXPECTS(extents[2] % block::elements == 0,
                       "ggml_rows: a head must begin on a block border: head_dim must be a multiple of 32");
        KVTRIM_EXPECTS(byte_strides[0] % 2 == 0 && byte_strides[1] % 2 == 0,
                       "ggml_rows: strides must be even");
        KVTRIM_EXPECTS(data != nullptr || extents[0] == 0 || extents[1] == 0 || extents[2] == 0,
                       "ggml_rows: data must not be null");
    }

    [[nodiscard]] index_t extent(std::size_t r) const { return extents_[r]; }
    // Bytes of a head's slice of a token.
    [[nodiscard]] index_t row_bytes() const { return blocks_per_row() * static_cast<index_t>(sizeof(block)); }

    void load_rows(index_t head, index_t first, index_t count, float* tile) const {
        if (strides_[1] == row_bytes()) { // rows without gaps are one run of blocks
            kernels::decode_blocks(row(head, first), count * blocks_per_row(), tile);
            return;
        }
        for (index_t t = first; t < first + count; ++t, tile += extents_[2]) {
            if (t + rows_ahead < extents_[1]) {
                kernels::fetch_blocks(row(head, t + rows_ahead), blocks_per_row());
            }
            kernels::decode_blocks(row(head, t), blocks_per_row(), tile);
        }
    }
    void move_row(index_t head, index_t from, index_t to) const requires(!std::is_const_v<Block>) {
        const auto bytes = static_cast<std::size_t>(row_bytes());
        if (bytes > 0) { std::memmove(row(head, to), row(head, from), bytes); }
    }

    // What the rows occupy.
    [[nodiscard]] std::array<strided_bytes, 1> memory() const {
        return std::array{strided_bytes{.first = data_,
                                        .extents = {1, extents_[0], extents_[1], 1},
                                        .strides = {0, strides_[0], strides_[1], 0},
                                        .bytes = row_bytes()}};
    }
    void store_rows(index_t head, index_t first, index_t count, const float* tile) const
        requires(!std::is_const_v<Block> && kernels::has_encoder<block>) {
        for (index_t t = first; t < first + count; ++t, tile += extents_[2]) {
            kernels::encode_blocks(tile, blocks_per_row(), row(head, t));
        }
    }
    [[nodiscard]] ggml_rows first_channels(index_t count) const { // of whole blocks
        ggml_rows channels = *this;
        channels.extents_[2] = (count + block::elements - 1) / block::elements * block::elements;
        return channels;
    }

    // The first block of a row.
    [[nodiscard]] Block* row(index_t head, index_t token) const {
        using byte = std::conditional_t<std::is_const_v<Block>, const std::byte, std::byte>;
        return reinterpret_cast<Block*>(reinterpret_cast<byte*>(data_) + head * strides_[0] +
                                        token * strides_[1]);
    }

  private:
    // Rows with gaps are few cache lines here and there, which no processor guesses.
    static constexpr index_t rows_ahead = 12;

    [[nodiscard]] index_t blocks_per_row() const { return extents_[2] / block::elements; }

    Block* data_;
    std::array<index_t, 3> extents_;
    std::array<index_t, 2> strides_;
};

} // namespace kvtrim
