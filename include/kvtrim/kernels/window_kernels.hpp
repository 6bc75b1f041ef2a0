// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The steps of window scoring on one logit tile: each lane is a query row, keys are read in place. `rows` are query rows here.
//
//   logit tile  [tokens, rows]   the query rows of one token are contiguous, rows <= tile_query_rows: so statistics per
//                                query are vertical vector operations, and sums per token are horizontal ones
//   packed      queries in the order that the level's products want, rows_packed(rows) * head_dim floats
//
// A tile may hold any float: every step reads NaN as masked and +infinity as the largest float.
// Numerics: products and exponentials in float, sums over tokens in float within a tile and in double across tiles. The
// exponential is 2^(x log2 e) with relative error 3e-7 for x > -10 and 6e-8 |x| beyond; a weight below e^-75 is exactly 0.
// The result of a step for a row or a token depends on nothing else in the tile, nor on its address.

#include <kvtrim/kernels/amx_products.hpp>
#include <kvtrim/kernels/bfmmla_products.hpp>
#include <kvtrim/kernels/logits.hpp>
#include <kvtrim/kernels/panel_product.hpp>
#include <kvtrim/kernels/soon_read.hpp>
#include <kvtrim/kernels/tile_tokens.hpp>
#include <kvtrim/kernels/vector_loops.hpp>
#include <kvtrim/simd/choose.hpp>

namespace KVTRIM_NAMESPACE::kernels {

/// Query rows with padding, as a level packs them: whole panels, of 32 at most.
[[nodiscard]] constexpr index_t rows_packed(index_t rows) {
    return (rows + 31) / 32 * 32;
}

/// The elements that bf16 queries pack into: whole steps of 32 dimensions.
[[nodiscard]] constexpr index_t packed_bf16(index_t rows, index_t head_dim) {
    return rows_packed(rows) * ((head_dim + 31) / 32 * 32);
}

/// One implementation of every step per instruction set.
struct window_kernels {
    /// Packs scale * queries [count, head_dim] as rows [first_row, first_row + count).
    void (*pack_queries)(const float* queries, index_t first_row, index_t count, index_t head_dim,
                         float scale, float* packed);
    /// out [tokens, rows] = cap(<q[r], k[t]>); keys start every key_stride floats. soft_cap 0: none.
    /// `next` will be read afterwards and is prefetched.
    void (*logits)(const float* keys, index_t key_stride, index_t tokens, const float* packed, index_t rows,
                   index_t head_dim, float soft_cap, float* out, soon_read next);
    /// maximum [rows] = max with the tile's columns; rescale [rows] = exp(maximum before - maximum), 1 if
    /// no key was seen before.
    void (*raise_maximum)(const float* tile, index_t tokens, index_t rows, float* maximum, float* rescale);
    /// sums [rows] += sum over tokens of exp(tile - maximum). Requires maximum >= tile.
    void (*add_exponentials)(const float* tile, index_t tokens, index_t rows, const float* maximum,
                             double* sums);
    /// out = exp(tile - maximum) * weight, with maximum and weight [rows] finite; out may be the tile.
    void (*attention)(const float* tile, index_t tokens, index_t rows, const float* maximum,
                      const float* weight, float* out);
    /// sums [tokens] += sum over the rows [begin, end) of attention [tokens, rows].
    void (*add_row_sums)(const float* attention, index_t tokens, index_t rows, index_t begin, index_t end,
                         float* sums);
    /// `pack_queries` for queries of bf16, not scaled; null if the level has no products of bf16.
    void (*pack_bf16_queries)(const bf16* queries, index_t query_stride, index_t first_row, index_t count,
                              index_t head_dim, bf16* packed) = nullptr;
    /// `logits` for keys of bf16, scaled after the product; null if the level has no products of bf16.
    void (*bf16_logits)(const bf16* keys, index_t key_stride, index_t tokens, const bf16* packed,
                        index_t rows, index_t head_dim, float scale, float soft_cap, float* out,
                        soon_read next) = nullptr;
};

} // namespace KVTRIM_NAMESPACE::kernels

#define KVTRIM_BODY <kvtrim/kernels/window_kernels.inl>
#include <kvtrim/simd/for_each_target.inl>

#define KVTRIM_BODY <kvtrim/kernels/window_kernels_bf16.inl>
#include <kvtrim/simd/for_each_bf16_target.inl>

namespace KVTRIM_NAMESPACE::kernels {

/// The kernels of a level for queries and keys of Element, products of bf16 for bf16 alone: a program that has none does
/// not compile them. A template that is not inline, so that a program that links to the compiled kernels compiles none.
template <class Element = float>
[[nodiscard]] const window_kernels& window_kernels_of(cpu_level level) {
    if constexpr (std::is_same_v<Element, bf16>) {
        return KVTRIM_CHOOSE_PRODUCTS(level, amx::with_logits<avx512::window_table>,
                                      bfmmla::with_logits<neon::window_table>, window_table);
    }
    return KVTRIM_CHOOSE(level, window_table);
}

#if defined(KVTRIM_COMPILED_KERNELS) // kernels/compiled.hpp
extern template const window_kernels& window_kernels_of<float>(cpu_level);
extern template const window_kernels& window_kernels_of<bf16>(cpu_level);
#endif

/// The kernels of the active CPU level.
template <class Element = float>
[[nodiscard]] const window_kernels& active_window_kernels() {
    return window_kernels_of<Element>(active_cpu_level());
}

} // namespace KVTRIM_NAMESPACE::kernels
