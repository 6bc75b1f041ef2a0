// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Blocks of 32 quantised elements, as ggml stores them, to floats.
//
//   q8_0     f16 scale d, 32 signed bytes q                         x = d * q                                   34 bytes
//   q4_0     f16 scale d, 16 bytes b                                x = d * (c - 8)                             18 bytes
//   q4_1     f16 scale d, f16 minimum m, 16 bytes b                 x = d * c + m                               20 bytes
//   q5_0     f16 scale d, 32 bits h, 16 bytes b                     x = d * (c - 16)                            22 bytes
//   q5_1     f16 scale d, f16 minimum m, 32 bits h, 16 bytes b      x = d * c + m                               24 bytes
//   iq4_nl   f16 scale d, 16 bytes b                                x = d * iq4_nl_values[c]                    18 bytes
//
// Code c of element i < 16 is the low half of byte i, of element 16 + i the high half; in q5_0 and q5_1 bit i of h stands
// above it. Codes of 8 bits with a scale per row or channel: kernels/scale_codes.hpp. Source: ggml's blocks of these names.
// Numerics: a scale has 11 bits and a code at most 8, so that the product is exact and only the sum with m rounds. The
// floats are those of ggml, bit for bit, at every level, whether a compiler fuses product and sum or not.

#include <kvtrim/simd/choose.hpp>
#include <kvtrim/simd/prefetch.hpp>
#include <kvtrim/simd/simd.hpp>

#include <array>
#include <cstddef>

namespace KVTRIM_NAMESPACE {

/// ggml's block of 8-bit codes, layout-compatible; may lie at any even address.
struct block_q8_0 {
    static constexpr index_t elements = 32; ///< of a block
    f16 scale;                              ///< d
    std::array<std::int8_t, 32> codes;      ///< q
};
static_assert(sizeof(block_q8_0) == 34);

/// ggml's block of 4-bit codes, layout-compatible; may lie at any even address.
struct block_q4_0 {
    static constexpr index_t elements = 32; ///< of a block
    f16 scale;                              ///< d
    /// Element i in the low half of byte i, element 16 + i in the high one.
    std::array<std::uint8_t, 16> codes;
};
static_assert(sizeof(block_q4_0) == 18);

/// ggml's block of 4-bit codes with a minimum, layout-compatible on a little-endian machine; may lie at any even address.
struct block_q4_1 {
    static constexpr index_t elements = 32; ///< of a block
    f16 scale, minimum;                     ///< d and m
    std::array<std::uint8_t, 16> codes;     ///< b
};
static_assert(sizeof(block_q4_1) == 20);

/// ggml's block of 5-bit codes, layout-compatible on a little-endian machine.
struct block_q5_0 {
    static constexpr index_t elements = 32; ///< of a block
    f16 scale;                              ///< d
    std::array<std::uint8_t, 4> high_bits;  ///< h
    std::array<std::uint8_t, 16> codes;     ///< b
};
static_assert(sizeof(block_q5_0) == 22);

/// ggml's block of 5-bit codes with a minimum, layout-compatible on a little-endian machine.
struct block_q5_1 {
    static constexpr index_t elements = 32; ///< of a block
    f16 scale, minimum;                     ///< d and m
    std::array<std::uint8_t, 4> high_bits;  ///< h
    std::array<std::uint8_t, 16> codes;     ///< b
};
static_assert(sizeof(block_q5_1) == 24);

/// ggml's block of 4-bit codes into a table of values, layout-compatible on a little-endian machine.
struct block_iq4_nl {
    static constexpr index_t elements = 32; ///< of a block
    f16 scale;                              ///< d
    std::array<std::uint8_t, 16> codes;     ///< b
};
static_assert(sizeof(block_iq4_nl) == 18);

} // namespace KVTRIM_NAMESPACE

namespace KVTRIM_NAMESPACE::kernels {

/// What the codes of iq4_nl stand for.
alignas(16) inline constexpr std::array<std::int8_t, 16> iq4_nl_values{
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

} // namespace KVTRIM_NAMESPACE::kernels

#define KVTRIM_BODY <kvtrim/kernels/quant_blocks.inl>
#include <kvtrim/simd/for_each_target.inl>

namespace KVTRIM_NAMESPACE::kernels {

/// Prefetches blocks that will soon be decoded.
template <class Block>
void fetch_blocks(const Block* blocks, index_t count) {
    const auto* begin = reinterpret_cast<const char*>(blocks);
    for (index_t b = 0; b < count * static_cast<index_t>(sizeof(Block)); b += 64) {
        simd::prefetch(begin + b);
    }
}

/// Decodes consecutive blocks to [32 * count].
template <class Block>
void decode_blocks(const Block* blocks, index_t count, float* to) {
    (KVTRIM_CHOOSE(active_cpu_level(), decode<Block>))(blocks, count, to);
}

/// Decodes elements [skip, skip + count) of consecutive blocks to [count]. Only the blocks that hold them are read.
template <class Block>
void decode_slice(const Block* blocks, index_t skip, index_t count, float* to) {
    blocks += skip / Block::elements;
    skip %= Block::elements;
    std::array<float, Block::elements> block;
    if (skip > 0) {
        const index_t n = std::min(Block::elements - skip, count);
        decode_blocks(blocks++, 1, block.data());
        to = std::copy_n(block.data() + skip, n, to);
        count -= n;
    }
    const index_t whole = count / Block::elements;
    decode_blocks(blocks, whole, to);
    const index_t rest = count % Block::elements;
    if (rest > 0) {
        decode_blocks(blocks + whole, 1, block.data());
        std::copy_n(block.data(), rest, to + whole * Block::elements);
    }
}

} // namespace KVTRIM_NAMESPACE::kernels
