// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Quantised keys beside contiguous bf16 (sources.cpp). ggml's blocks are token-major, all heads together, as llama.cpp
// keeps them; the others head-major.

#include "source_rows.hpp"

#include <cmath>

namespace {

using namespace bench;

template <class T>
struct narrow_keys {
    using multiplied = float;

    index_t tokens;
    std::vector<T> data;

    explicit narrow_keys(const layer<bf16>& from) : tokens(from.tokens) {
        data.reserve(from.k.size());
        for (const bf16 x : from.k) {
            data.push_back(kvtrim::element_traits<T>::from_float(kvtrim::to_float(x)));
        }
    }
    auto view() const { return kvtrim::strided<const T, 3>(data.data(), {kv_heads, tokens, head_dim}); }
};

// A scale per token and head, as every key is below 0.5.
struct int8_keys {
    using multiplied = float;

    index_t tokens;
    std::vector<std::int8_t> data;
    std::vector<float> scales;

    explicit int8_keys(const layer<bf16>& from)
        : tokens(from.tokens), scales(static_cast<std::size_t>(kv_heads * tokens), 1.0f / 254) {
        data.reserve(from.k.size());
        for (const bf16 x : from.k) {
            data.push_back(static_cast<std::int8_t>(std::lround(254 * kvtrim::to_float(x))));
        }
    }
    auto view() const {
        return kvtrim::scaled_rows<const std::int8_t>(data.data(), {kv_heads, tokens, head_dim},
                                                      {tokens * head_dim, head_dim},
                                                      {scales.data(), {tokens, 1, 0}});
    }
};

void encode(const bf16* from, kvtrim::block_q8_0& to) {
    to.scale = kvtrim::element_traits<kvtrim::f16>::from_float(1.0f / 254);
    for (std::size_t i = 0; i < 32; ++i) {
        to.codes[i] = static_cast<std::int8_t>(std::lround(254 * kvtrim::to_float(from[i])));
    }
}
void encode(const bf16* from, kvtrim::block_q4_0& to) {
    const auto code = [&](std::size_t i) {
        return static_cast<unsigned>(std::clamp(std::lround(15 * kvtrim::to_float(from[i])) + 8, 0L, 15L));
    };
    to.scale = kvtrim::element_traits<kvtrim::f16>::from_float(1.0f / 15);
    for (std::size_t i = 0; i < 16; ++i) {
        to.codes[i] = static_cast<std::uint8_t>(code(i) | (code(16 + i) << 4));
    }
}

template <class Block>
struct block_keys {
    using multiplied = float;
    static constexpr index_t row_blocks = head_dim / Block::elements;

    index_t tokens;
    std::vector<Block> data;

    explicit block_keys(const layer<bf16>& from)
        : tokens(from.tokens), data(static_cast<std::size_t>(kv_heads * tokens * row_blocks)) {
        for (index_t t = 0; t < tokens; ++t) {
            for (index_t g = 0; g < kv_heads; ++g) {
                for (index_t b = 0; b < row_blocks; ++b) {
                    encode(from.k.data() + (g * tokens + t) * head_dim + b * Block::elements,
                           data[static_cast<std::size_t>((t * kv_heads + g) * row_blocks + b)]);
                }
            }
        }
    }
    auto view() const {
        constexpr auto row = row_blocks * static_cast<index_t>(sizeof(Block));
        return kvtrim::ggml_rows<const Block>(data.data(), {kv_heads, tokens, head_dim},
                                              {row, kv_heads * row});
    }
};

BENCHMARK(snapkv<block_keys<kvtrim::block_q8_0>>)->Name("source/snapkv_q8_0")->Apply(token_counts);
BENCHMARK(snapkv<block_keys<kvtrim::block_q4_0>>)->Name("source/snapkv_q4_0")->Apply(token_counts);
BENCHMARK(snapkv<int8_keys>)->Name("source/snapkv_int8")->Apply(token_counts);
BENCHMARK(snapkv<narrow_keys<kvtrim::f8_e4m3>>)->Name("source/snapkv_e4m3")->Apply(token_counts);
BENCHMARK(snapkv<narrow_keys<kvtrim::f8_e5m2>>)->Name("source/snapkv_e5m2")->Apply(token_counts);
BENCHMARK(load<block_keys<kvtrim::block_q8_0>>)->Name("source/load_q8_0")->Apply(token_counts);
BENCHMARK(load<block_keys<kvtrim::block_q4_0>>)->Name("source/load_q4_0")->Apply(token_counts);
BENCHMARK(load<int8_keys>)->Name("source/load_int8")->Apply(token_counts);
BENCHMARK(load<narrow_keys<kvtrim::f8_e4m3>>)->Name("source/load_e4m3")->Apply(token_counts);
BENCHMARK(load<narrow_keys<kvtrim::f8_e5m2>>)->Name("source/load_e5m2")->Apply(token_counts);

} // namespace
