// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// The loops of weight.cpp, in the words of kvtrim's simd/simd.hpp: compiled once for each instruction set.

namespace lm::KVTRIM_TARGET {

using namespace kvtrim::simd::KVTRIM_TARGET;

// ---- x times a row, or a panel of rows, of floats ----

// to [Tokens] at stride = <x[t], w>
template <index_t Tokens>
KVTRIM_INLINE void dot_rows(const float* x, index_t columns, const float* w, float* to, index_t stride) {
    constexpr index_t chains = 16 / lanes * (Tokens > 1 ? 1 : 4); // sums that do not wait for each other
    registers<Tokens * chains> sums;
    KVTRIM_UNROLL
    for (floats& sum : sums) { sum = broadcast(0.0F); }
    index_t k = 0;
    for (; k + lanes * chains <= columns; k += lanes * chains) {
        KVTRIM_UNROLL
        for (index_t c = 0; c < chains; ++c) {
            const floats weights = load(w + k + c * lanes);
            KVTRIM_UNROLL
            for (index_t t = 0; t < Tokens; ++t) {
                floats& sum = sums[t * chains + c];
                sum = fma(weights, load(x + t * columns + k + c * lanes), sum);
            }
        }
    }
    KVTRIM_UNROLL
    for (index_t t = 0; t < Tokens; ++t) {
        floats all = sums[t * chains];
        KVTRIM_UNROLL
        for (index_t c = 1; c < chains; ++c) { all = all + sums[t * chains + c]; }
        float sum = sum_of_lanes(all);
        for (index_t rest = k; rest < columns; ++rest) { sum += x[t * columns + rest] * w[rest]; }
        to[t * stride] = sum;
    }
}

// to [tokens] at stride = <x[t], w>, for x [tokens, columns]
inline void dot_products(const float* x, index_t tokens, index_t columns, const float* w, float* to,
                         index_t stride) {
    constexpr index_t row_tokens = 4; // at a time
    for (; tokens >= row_tokens; tokens -= row_tokens) {
        dot_rows<row_tokens>(x, columns, w, to, stride);
        x += row_tokens * columns, to += row_tokens * stride;
    }
    for (; tokens > 0; --tokens, x += columns, to += stride) { dot_rows<1>(x, columns, w, to, stride); }
}

// to [Tokens, panel_rows] at stride = x [Tokens, columns] times panel [columns, panel_rows]
template <index_t Tokens>
KVTRIM_INLINE void tile_product(const float* x, index_t columns, const float* panel, float* to,
                                index_t stride) {
    for (index_t first = 0; first < panel_rows; first += 2 * lanes) {
        registers<Tokens * 2> sums;
        KVTRIM_UNROLL
        for (floats& sum : sums) { sum = broadcast(0.0F); }
        for (index_t k = 0; k < columns; ++k) {
            const float* const row = panel + k * panel_rows + first;
            const floats left = load(row), right = load(row + lanes);
            KVTRIM_UNROLL
            for (index_t t = 0; t < Tokens; ++t) {
                const floats value = broadcast(x[t * columns + k]);
                sums[2 * t] = fma(value, left, sums[2 * t]);
                sums[2 * t + 1] = fma(value, right, sums[2 * t + 1]);
            }
        }
        KVTRIM_UNROLL
        for (index_t t = 0; t < Tokens; ++t) {
            store(to + t * stride + first, sums[2 * t]);
            store(to + t * stride + first + lanes, sums[2 * t + 1]);
        }
    }
}

// The same of any number of tokens.
inline void panel_products(const float* x, index_t tokens, index_t columns, const float* panel, float* to,
                           index_t stride) {
    constexpr index_t tile_tokens = lanes == 16 ? 12 : 4; // two registers of sums each
    for (; tokens >= tile_tokens; tokens -= tile_tokens) {
        tile_product<tile_tokens>(x, columns, panel, to, stride);
        x += tile_tokens * columns, to += tile_tokens * stride;
    }
    for (; tokens > 0; --tokens, x += columns, to += stride) {
        tile_product<1>(x, columns, panel, to, stride);
    }
}

// ---- One token: a row's blocks are decoded in registers ----

// sums += a block's elements times x [32].
KVTRIM_INLINE void add_products(const kvtrim::block_q8_0& block, const float* x, floats (&sums)[2]) {
    floats products = load(block.codes.data()) * load(x);
    KVTRIM_UNROLL
    for (index_t i = lanes; i < 32; i += lanes) {
        products = fma(load(block.codes.data() + i), load(x + i), products);
    }
    sums[0] = fma(broadcast(block.scale), products, sums[0]);
}

// Codes of four bits, c: an element is d c + m, and without a minimum d (c - 8).
template <class Block>
KVTRIM_INLINE void add_products(const Block& block, const float* x, floats (&sums)[2]) {
    const floats scale = broadcast(block.scale);
    registers<32 / lanes> codes;
    load_nibbles(block.codes.data(), codes); // c - 8
    floats products = codes[0] * load(x);
    KVTRIM_UNROLL
    for (index_t i = 1; i < 32 / lanes; ++i) { products = fma(codes[i], load(x + i * lanes), products); }
    sums[0] = fma(scale, products, sums[0]);
    if constexpr (requires { block.minimum; }) { // d c + m = d (c - 8) + (8 d + m)
        floats total = load(x);
        KVTRIM_UNROLL
        for (index_t i = 1; i < 32 / lanes; ++i) { total = total + load(x + i * lanes); }
        sums[1] = fma(fma(scale, broadcast(8.0F), broadcast(block.minimum)), total, sums[1]);
    }
}

// out [rows] = W x, for x [32 * blocks_per_row] and W [rows] in blocks.
template <class Block>
void multiply_token(const Block* blocks, index_t blocks_per_row, index_t rows, const float* x, float* out) {
    // Weights come from memory for each token, over pages at whose ends the processor's own prefetch stops.
    constexpr index_t bytes_ahead = 2048;
    for (index_t r = 0; r < rows; ++r) {
        floats sums[2] = {broadcast(0.0F), broadcast(0.0F)};
        for (index_t b = 0; b < blocks_per_row; ++b, ++blocks) {
            kvtrim::simd::prefetch(reinterpret_cast<const char*>(blocks) + bytes_ahead);
            add_products(*blocks, x + b * 32, sums);
        }
        out[r] = sum_of_lanes(sums[0] + sums[1]);
    }
}

} // namespace lm::KVTRIM_TARGET
