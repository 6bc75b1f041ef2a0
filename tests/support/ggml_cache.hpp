// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Caches of ggml's blocks in bytes that a test may look at, and what the oracle reads from them.

#include "oracle/ggml_blocks.hpp"
#include "support/random_layer.hpp"

#include <kvtrim/cache/ggml_tensor_rows.hpp>

#include <array>
#include <cstring>
#include <limits>
#include <vector>

namespace support {

inline constexpr kvtrim::index_t largest_index = std::numeric_limits<kvtrim::index_t>::max(),
                                 smallest_index = std::numeric_limits<kvtrim::index_t>::min();

template <class Block>
constexpr oracle::ggml_format format_of() {
    for (const oracle::ggml_format& format : oracle::block_formats) {
        if (format.type == kvtrim::ggml_type_number<Block>) { return format; }
    }
    return {};
}

// Blocks of any codes, with scales and minimums that keep elements at a model's size.
inline void fill_blocks(const oracle::ggml_format& format, std::vector<unsigned char>& bytes, random& r) {
    for (unsigned char& byte : bytes) { byte = static_cast<unsigned char>(r.bits() & 0xffu); }
    const double largest = format.type == 8 || format.type == 20 ? 127 : format.type < 4 ? 8 : 16;
    const auto size = static_cast<std::size_t>(format.bytes);
    for (std::size_t at = 0; at + size <= bytes.size(); at += size) {
        const double halves[] = {(0.2 + r.uniform()) / largest * (r.chance(0.5) ? 1 : -1), -r.uniform()};
        for (int h = 0; h < format.halves; ++h) {
            const auto half = kvtrim::element_traits<kvtrim::f16>::from_float(static_cast<float>(halves[h]));
            std::memcpy(bytes.data() + at + 2 * h, &half, 2);
        }
    }
}

// [heads, tokens, head_dim], blocks without gaps; in a row: heads one after the other in each token's row of blocks.
template <class Block>
struct ggml_cache {
    static constexpr oracle::ggml_format format = format_of<Block>();

    index_t heads, tokens, head_dim;
    index_t row_bytes = heads * head_dim / 32 * format.bytes; // of a token
    std::vector<unsigned char> bytes =
        std::vector<unsigned char>(static_cast<std::size_t>(tokens * row_bytes));

    [[nodiscard]] kvtrim::ggml_rows<Block> rows() {
        return kvtrim::ggml_rows<Block>::heads_in_row(data(), {heads, tokens, head_dim}, row_bytes);
    }
    [[nodiscard]] Block* data() { return reinterpret_cast<Block*>(bytes.data()); }

    [[nodiscard]] float element(index_t head, index_t token, index_t d) const {
        return oracle::element_of_row(format, bytes.data() + token * row_bytes, head * head_dim + d);
    }
    [[nodiscard]] std::vector<float> decoded() const {
        std::vector<float> out;
        for (index_t g = 0; g < heads; ++g) {
            for (index_t t = 0; t < tokens; ++t) {
                for (index_t d = 0; d < head_dim; ++d) { out.push_back(element(g, t, d)); }
            }
        }
        return out;
    }
};

template <class Block>
ggml_cache<Block> random_ggml_cache(index_t heads, index_t tokens, index_t head_dim, random& r) {
    ggml_cache<Block> cache{heads, tokens, head_dim};
    fill_blocks(cache.format, cache.bytes, r);
    return cache;
}

// All rows of all heads, as floats.
template <class Rows>
std::vector<float> loaded(const Rows& rows) {
    const index_t row_floats = rows.extent(1) * rows.extent(2);
    std::vector<float> out(static_cast<std::size_t>(rows.extent(0) * row_floats));
    for (index_t g = 0; g < rows.extent(0); ++g) {
        rows.load_rows(g, 0, rows.extent(1), out.data() + g * row_floats);
    }
    return out;
}

// The rows of a head that a plan keeps, of floats [heads, tokens, head_dim].
inline std::vector<float> kept_rows(const std::vector<float>& from, std::span<const std::int32_t> kept,
                                    index_t head, index_t tokens, index_t head_dim) {
    std::vector<float> out;
    for (const auto t : kept) {
        const auto row = from.begin() + (head * tokens + t) * head_dim;
        out.insert(out.end(), row, row + head_dim);
    }
    return out;
}

} // namespace support
