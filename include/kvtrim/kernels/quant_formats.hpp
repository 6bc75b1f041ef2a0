// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// ggml's other blocks of 32 elements, with a minimum, a fifth bit or a table of values, to floats; q8_0 and q4_0:
// kernels/quant_blocks.hpp.
//
//   q4_1     f16 scale d, f16 minimum m, 16 bytes b                 x = d * c + m                               20 bytes
//   q5_0     f16 scale d, 32 bits h, 16 bytes b                     x = d * (c - 16)                            22 bytes
//   q5_1     f16 scale d, f16 minimum m, 32 bits h, 16 bytes b      x = d * c + m                               24 bytes
//   iq4_nl   f16 scale d, 16 bytes b                                x = d * iq4_nl_values[c]                    18 bytes
//
// Code c of element i < 16 is the low half of byte i, of element 16 + i the high half; in q5_0 and q5_1 bit i of h stands
// above it. Source: the layouts of ggml's blocks of these names.
// Numerics: a scale has 11 bits and a code at most 8, so that the product is exact and only the sum with m rounds. The
// floats are those of ggml, bit for bit, at every level, whether a compiler fuses product and sum or not.

#include <kvtrim/kernels/quant_blocks.hpp>

#include <algorithm>
#include <bit>
#include <type_traits>

namespace KVTRIM_NAMESPACE {

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

namespace detail {

alignas(16) inline constexpr std::array<std::int8_t, 16> iq4_nl_values{
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// Sixteen codes in a vector of any instruction set.
using code_vector = std::int8_t __attribute__((vector_size(16)));

// The integers that the scale multiplies: of elements 0 to 15 and 16 to 31.
struct block_codes {
    code_vector low, high;
};

// Inlined everywhere, so that it is compiled for the level that calls it.
#define KVTRIM_BLOCK_STEP [[gnu::always_inline]] inline

KVTRIM_BLOCK_STEP block_codes halves(const std::array<std::uint8_t, 16>& bytes) {
    code_vector v;
    std::memcpy(&v, bytes.data(), sizeof v);
    return {v & 15, (v >> 4) & 15};
}

// 16 where a bit of two bytes is set, else 0.
KVTRIM_BLOCK_STEP code_vector fifth_bits(std::uint8_t first, std::uint8_t second) {
    const auto a = static_cast<std::int8_t>(first), b = static_cast<std::int8_t>(second);
    const code_vector spread = {a, a, a, a, a, a, a, a, b, b, b, b, b, b, b, b};
    const code_vector own_bit = {1, 2, 4, 8, 16, 32, 64, -128, 1, 2, 4, 8, 16, 32, 64, -128};
    return ((spread & own_bit) != 0) & 16;
}

template <class Block>
KVTRIM_BLOCK_STEP block_codes five_bits(const Block& block) {
    const block_codes four = halves(block.codes);
    const auto& h = block.high_bits;
    return {four.low | fifth_bits(h[0], h[1]), four.high | fifth_bits(h[2], h[3])};
}

KVTRIM_BLOCK_STEP block_codes codes_of(const block_q4_1& block) {
    return halves(block.codes);
}
KVTRIM_BLOCK_STEP block_codes codes_of(const block_q5_0& block) {
    const block_codes codes = five_bits(block);
    return {codes.low - 16, codes.high - 16};
}
KVTRIM_BLOCK_STEP block_codes codes_of(const block_q5_1& block) {
    return five_bits(block);
}
KVTRIM_BLOCK_STEP block_codes codes_of(const block_iq4_nl& block) {
    std::array<std::int8_t, 32> values;
    for (std::size_t i = 0; i < 16; ++i) {
        values[i] = iq4_nl_values[block.codes[i] & 15u];
        values[16 + i] = iq4_nl_values[block.codes[i] >> 4];
    }
    return std::bit_cast<block_codes>(values);
}

// A format without a minimum adds -0, which changes no number, not even -0.
template <class Block>
[[nodiscard]] float minimum_of(const Block& block) {
    if constexpr (requires { block.minimum; }) {
        return to_float(block.minimum);
    } else {
        return -0.0f;
    }
}

// to [16] = scale * codes + minimum
KVTRIM_BLOCK_STEP void scale_sixteen(code_vector codes, float scale, float minimum, float* to) {
    std::int8_t c[16]; // in memory, so that g++ 12 widens them by vectors too
    std::memcpy(c, &codes, sizeof c);
    for (std::size_t i = 0; i < 16; ++i) { to[i] = scale * static_cast<float>(c[i]) + minimum; }
}

template <class Block>
void decode_by_codes(const Block* blocks, index_t count, float* to) {
    for (index_t b = 0; b < count; ++b, to += 32) {
        const block_codes codes = codes_of(blocks[b]);
        const float scale = to_float(blocks[b].scale), minimum = minimum_of(blocks[b]);
        scale_sixteen(codes.low, scale, minimum, to);
        scale_sixteen(codes.high, scale, minimum, to + 16);
    }
}

#if KVTRIM_HAS_X86
template <class Block>
KVTRIM_TARGET_AVX2 inline block_codes codes_avx2(const Block& block) {
    if constexpr (std::is_same_v<Block, block_iq4_nl>) {
        const block_codes codes = halves(block.codes);
        const __m128i values = _mm_load_si128(reinterpret_cast<const __m128i*>(iq4_nl_values.data()));
        return {std::bit_cast<code_vector>(_mm_shuffle_epi8(values, std::bit_cast<__m128i>(codes.low))),
                std::bit_cast<code_vector>(_mm_shuffle_epi8(values, std::bit_cast<__m128i>(codes.high)))};
    } else {
        return codes_of(block);
    }
}

// An f16 as float in every lane.
KVTRIM_TARGET_AVX2 inline __m256 spread_avx2(f16 x) {
    return _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(x.bits)));
}

template <class Block>
KVTRIM_TARGET_AVX2 void decode_by_codes_avx2(const Block* blocks, index_t count, float* to) {
    for (index_t b = 0; b < count; ++b) {
        const block_codes codes = codes_avx2(blocks[b]);
        const __m256 scale = spread_avx2(blocks[b].scale);
        __m256 minimum = _mm256_set1_ps(-0.0f);
        if constexpr (requires { blocks->minimum; }) { minimum = spread_avx2(blocks[b].minimum); }
        for (const code_vector& half : {codes.low, codes.high}) {
            const auto low = std::bit_cast<__m128i>(half);
            for (const __m128i eight : {low, _mm_srli_si128(low, 8)}) {
                const __m256 wide = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight));
                _mm256_storeu_ps(to, _mm256_fmadd_ps(scale, wide, minimum));
                to += 8;
            }
        }
    }
}
#endif

#undef KVTRIM_BLOCK_STEP

} // namespace detail

/// Decodes consecutive blocks to [32 * count].
template <class Block>
    requires requires(const Block& block) {
        detail::codes_of(block);
    }
void decode_blocks(const Block* blocks, index_t count, float* to) {
#if KVTRIM_HAS_X86
    if (active_cpu_level() >= cpu_level::avx2) { return detail::decode_by_codes_avx2(blocks, count, to); }
#endif
    detail::decode_by_codes(blocks, count, to);
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
