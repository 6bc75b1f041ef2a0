// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The small matrix product that nearly all kernels use.
//
//   C [rows][n] = (or +=) A [rows][inner] * B [inner][panel_columns],  n <= panel_columns
//
// A is read in place, each element broadcast to all lanes; B is a packed panel of a few vectors, in the first level
// cache. As many sums of C are in registers at a time as the target has room for: at AVX-512 8 rows of 2 vectors, 16
// multiply-adds for 10 loads.
//
// Numerics: each element of C is one chain of multiply-adds in the order of `inner`, regardless of the rows and columns that
// are computed with it, so results do not depend on how a cache is divided into tiles.

#include <kvtrim/simd/simd.hpp>

namespace KVTRIM_NAMESPACE::kernels {

/// A matrix operand: element (i, k) is data[i * row + k * step].
struct matrix_in {
    const float* data; ///< element (0, 0)
    index_t row;       ///< floats from row to row
    index_t step;      ///< floats from column to column
};

/// The result: element (i, j) is data[i * row + j] for j < columns; floats behind `columns` are not written.
struct panel_out {
    float* data;     ///< element (0, 0)
    index_t row;     ///< floats from row to row
    index_t columns; ///< at most those of a panel
};

} // namespace KVTRIM_NAMESPACE::kernels

#define KVTRIM_BODY <kvtrim/kernels/panel_product.inl>
#include <kvtrim/simd/for_each_target.inl>
