// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The steps of window scoring on one logit tile. The portable versions, and the readable ones of all others.
//
//   logit tile  [tokens, rows]   the query rows of one token are contiguous, rows <= tile_query_rows: statistics per
//                                query are vertical vector operations, sums per token horizontal ones
//   packed      queries in the order that the level's products want, rows_packed(rows) * head_dim floats
//
// A tile may hold anything: NaN counts as masked, +infinity as the largest float.
// Numerics: products and exponentials in float, sums over tokens in float within a tile and in double across tiles. A
// weight below e^-75 is exactly 0.

#include <kvtrim/kernels/rows.hpp>
#include <kvtrim/kernels/tile_ops.hpp>

namespace kvtrim::kernels {

// Query rows as a level packs them: whole panels of 32.
[[nodiscard]] constexpr index_t rows_packed(index_t rows) {
    return (rows + 31) / 32 * 32;
}

// The elements that bf16 queries pack into: whole steps of 32 dimensions.
[[nodiscard]] constexpr index_t packed_bf16(index_t rows, index_t head_dim) {
    return rows_packed(rows) * ((head_dim + 31) / 32 * 32);
}

// One implementation of every step per instruction set (kernels/dispatch.hpp).
struct window_kernels {
    // Packs scale * queries [count, head_dim] as rows [first_row, first_row + count).
    void (*pack_queries)(const float* queries, index_t first_row, index_t count, index_t head_dim,
                         float scale, float* packed);
    // out [tokens, rows] = cap(<q[r], k[t]>); keys start every key_stride floats. soft_cap 0: none.
    // `next` is what will be read after it.
    void (*logits)(const float* keys, index_t key_stride, index_t tokens, const float* packed, index_t rows,
                   index_t head_dim, float soft_cap, float* out, soon_read next);
    // The same for queries and keys of bf16 as they lie, the scale after the product; null where the level has none.
    void (*pack_bf16_queries)(const bf16* queries, index_t query_stride, index_t first_row, index_t count,
                              index_t head_dim, bf16* packed);
    void (*bf16_logits)(const bf16* keys, index_t key_stride, index_t tokens, const bf16* packed,
                        index_t rows, index_t head_dim, float scale, float soft_cap, float* out,
                        soon_read next);
    // maximum [rows] = max with the tile's columns; rescale [rows] = exp(maximum before - maximum), 1 if nothing was seen.
    void (*raise_maximum)(const float* tile, index_t tokens, index_t rows, float* maximum, float* rescale);
    // sums [rows] += sum over tokens of exp(tile - maximum). Requires maximum >= tile.
    void (*add_exponentials)(const float* tile, index_t tokens, index_t rows, const float* maximum,
                             double* sums);
    // out = exp(tile - maximum) * weight, with maximum and weight [rows] finite; out may be the tile.
    void (*attention)(const float* tile, index_t tokens, index_t rows, const float* maximum,
                      const float* weight, float* out);
    // sums [tokens] += sum over the rows [begin, end) of attention [tokens, rows].
    void (*add_row_sums)(const float* attention, index_t tokens, index_t rows, index_t begin, index_t end,
                         float* sums);
    // best [tokens] = max with the maximum over rows of factor[r] * (sum of attention [j, r] over |j - t| <= half); rows
    // j in [-before, tokens + after) exist, attention points at row 0.
    void (*raise_to_pooled)(const float* attention, index_t tokens, index_t before, index_t after,
                            index_t half, index_t rows, const float* factor, float* best);
};

namespace portable {

template <class = void>
void pack_queries(const float* queries, index_t first_row, index_t count, index_t head_dim, float scale,
                  float* packed) {
    detail::floats(packed + first_row * head_dim, count * head_dim) =
        scale * detail::const_floats(queries, count * head_dim);
}

template <class = void>
void logits(const float* keys, index_t key_stride, index_t tokens, const float* packed, index_t rows,
            index_t head_dim, float soft_cap, float* out, soon_read) {
    kernels::logits(keys, key_stride, tokens, packed, rows, head_dim, out);
    condition_logits(out, tokens * rows, soft_cap);
}

template <class = void>
void raise_maximum(const float* tile, index_t tokens, index_t rows, float* maximum, float* rescale) {
    detail::floats(rescale, rows) = detail::const_floats(maximum, rows);
    detail::floats highest(maximum, rows);
    for (index_t t = 0; t < tokens; ++t) {
        highest = highest.max(detail::const_floats(tile + t * rows, rows));
    }
    for (index_t r = 0; r < rows; ++r) {
        rescale[r] = maximum[r] == masked_logit ? 1.0f : std::exp(rescale[r] - maximum[r]);
    }
}

template <class = void>
void add_exponentials(const float* tile, index_t tokens, index_t rows, const float* maximum, double* sums) {
    // Aligned, so that Eigen takes vectors from the first row on, wherever the stack lies.
    alignas(64) float shift[tile_query_rows], partial[tile_query_rows];
    for (index_t r = 0; r < rows; ++r) { // a row that has seen masked logits only: 0, not NaN
        shift[r] = maximum[r] == masked_logit ? 0.0f : maximum[r];
    }
    const detail::const_floats shifts(shift, rows);
    detail::floats sum(partial, rows);
    sum.setZero();
    for (index_t t = 0; t < tokens; ++t) {
        sum += detail::exp_or_zero(detail::const_floats(tile + t * rows, rows) - shifts);
    }
    for (index_t r = 0; r < rows; ++r) { sums[r] += static_cast<double>(partial[r]); }
}

template <class = void>
void attention(const float* tile, index_t tokens, index_t rows, const float* maximum, const float* weight,
               float* out) {
    const detail::const_floats m(maximum, rows);
    const detail::const_floats w(weight, rows);
    for (index_t t = 0; t < tokens; ++t) {
        detail::floats(out + t * rows, rows) =
            detail::exp_or_zero(detail::const_floats(tile + t * rows, rows) - m) * w;
    }
}

template <class = void>
void add_row_sums(const float* attention, index_t tokens, index_t rows, index_t begin, index_t end,
                  float* sums) {
    for (index_t t = 0; t < tokens; ++t) {
        sums[t] += detail::const_floats(attention + t * rows + begin, end - begin).sum();
    }
}

template <class = void>
void raise_to_pooled(const float* attention, index_t tokens, index_t before, index_t after, index_t half,
                     index_t rows, const float* factor, float* best) {
    float pooled[tile_query_rows];
    detail::floats sum(pooled, rows);
    const detail::const_floats factors(factor, rows);
    for (index_t t = 0; t < tokens; ++t) {
        const index_t end = std::min(t + half + 1, tokens + after);
        sum.setZero();
        for (index_t j = std::max(t - half, -before); j < end; ++j) {
            sum += detail::const_floats(attention + j * rows, rows);
        }
        best[t] = std::max(best[t], (sum * factors).maxCoeff());
    }
}

} // namespace portable

} // namespace kvtrim::kernels
