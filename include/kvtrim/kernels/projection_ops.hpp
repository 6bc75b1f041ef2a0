// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Norms of rows times a matrix: the steps of projected value norms. The portable versions, and the readable ones.
//
//   packed   a matrix [inner, columns] in the order that the level's products want, panel_floats(inner, columns) floats
//
// Numerics: products and sums of a tile in float; norms add up in float.

#include <kvtrim/base/element.hpp>
#include <kvtrim/kernels/tile_ops.hpp>

namespace kvtrim::kernels {

// A packed matrix: whole panels of 32 columns.
[[nodiscard]] constexpr index_t panel_floats(index_t inner, index_t columns) {
    return inner * ((columns + 31) / 32 * 32);
}

// A packed matrix of bf16: whole steps of 32 rows and columns.
[[nodiscard]] constexpr index_t panel_bf16(index_t inner, index_t columns) {
    return panel_floats((inner + 31) / 32 * 32, columns);
}

// Scratch of the norms of so many rows.
[[nodiscard]] constexpr index_t norm_scratch_floats(index_t inner, index_t rows) {
    return rows * std::max(inner, tile_hidden(inner));
}

// One implementation of every step per instruction set (kernels/dispatch.hpp).
struct projection_kernels {
    // Packs rows [first_row, first_row + count) of a matrix [inner, columns]; `rows` start every `stride` floats.
    void (*pack)(const float* rows, index_t stride, index_t first_row, index_t count, index_t inner,
                 index_t columns, float* packed);
    // norms [rows] += sum over the columns of | x [rows, inner] * matrix |.
    void (*add_l1)(const float* x, index_t x_stride, index_t rows, const float* packed, index_t inner,
                   index_t columns, float* scratch, float* norms);
    // norms [rows] += sqrt(x G x^T) for each row x of [rows, dim], with G [dim, dim] packed.
    void (*add_gram_l2)(const float* x, index_t x_stride, index_t rows, const float* packed, index_t dim,
                        float* scratch, float* norms);
    // pack and add_l1 for a matrix whose floats are bf16 exactly and x of bf16; null where the level has none. Rows are
    // packed two by two: first_row is even, and so is count unless the matrix ends there.
    void (*pack_bf16)(const float* rows, index_t stride, index_t first_row, index_t count, index_t inner,
                      index_t columns, bf16* packed);
    void (*add_bf16_l1)(const bf16* x, index_t x_stride, index_t rows, const bf16* packed, index_t inner,
                        index_t columns, float* scratch, float* norms);
};

namespace portable {

template <class = void>
void pack_matrix(const float* rows, index_t stride, index_t first_row, index_t count, index_t,
                 index_t columns, float* packed) {
    for (index_t i = 0; i < count; ++i) {
        std::copy_n(rows + i * stride, columns, packed + (first_row + i) * columns);
    }
}

template <class = void>
void add_l1(const float* x, index_t x_stride, index_t rows, const float* packed, index_t inner,
            index_t columns, float* scratch, float* norms) {
    for (index_t c = 0; c < columns; c += tile_hidden(inner)) {
        add_projected_l1(x, x_stride, rows, packed + c, columns, inner,
                         std::min(tile_hidden(inner), columns - c), scratch, norms);
    }
}

template <class = void>
void add_gram_l2(const float* x, index_t x_stride, index_t rows, const float* packed, index_t dim,
                 float* scratch, float* norms) {
    kernels::add_gram_l2(x, x_stride, rows, packed, dim, scratch, norms);
}

} // namespace portable

} // namespace kvtrim::kernels
