// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Blocks of 32 quantised elements, as ggml stores them, to floats.
//
//   q8_0   f16 scale d, 32 signed bytes q:   x[i] = d * q[i]                                        34 bytes
//   q4_0   f16 scale d, 16 bytes b:          x[i] = d * ((b[i] & 15) - 8), x[16 + i] = d * ((b[i] >> 4) - 8)   18 bytes
//
// and codes of 8 bits with a scale per row or per channel. Source: the layouts of ggml's block_q8_0 and block_q4_0.
// Numerics: one rounded product per element, the same at every level.

#include <kvtrim/kernels/panel_product.hpp>
#include <kvtrim/simd/choose.hpp>

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

} // namespace KVTRIM_NAMESPACE

#define KVTRIM_BODY <kvtrim/kernels/quant_blocks.inl>
#include <kvtrim/simd/for_each_target.inl>

namespace KVTRIM_NAMESPACE::kernels {

/// Prefetches blocks that will soon be decoded.
template <class Block>
void fetch_blocks(const Block* blocks, index_t count) {
    const auto* begin = reinterpret_cast<const char*>(blocks);
    for (index_t b = 0; b < count * static_cast<index_t>(sizeof(Block)); b += 64) {
        __builtin_prefetch(begin + b);
    }
}

/// Decodes consecutive blocks to [32 * count].
template <class Block>
void decode_blocks(const Block* blocks, index_t count, float* to) {
    (KVTRIM_CHOOSE(active_cpu_level(), decode<Block>))(blocks, count, to);
}

} // namespace KVTRIM_NAMESPACE::kernels
