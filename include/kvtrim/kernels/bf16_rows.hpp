// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What products of bf16 have in common, whatever multiplies: rows in memory, and packing that differs in the order alone.
//
//   Index(inner, i, column)   place of element (i, column) of a packed matrix [inner][columns]
//   Whole(inner)              inner in whole steps of the product, whose padding is zeros

#include <kvtrim/core/element.hpp>
#include <kvtrim/core/status.hpp>

namespace KVTRIM_NAMESPACE::kernels {

/// Rows of bf16 in memory; row t starts at t * stride.
struct bf16_rows {
    const bf16* data; ///< element (0, 0)
    index_t stride;   ///< elements from row to row
    index_t count;    ///< rows
    index_t length;   ///< elements of a row
};

/// window_kernels::pack_bf16_queries: query i becomes column first_row + i.
template <auto Index, auto Whole>
void pack_columns(const bf16* queries, index_t query_stride, index_t first_row, index_t count,
                  index_t head_dim, bf16* packed) {
    for (index_t i = 0; i < count; ++i) {
        for (index_t d = 0; d < Whole(head_dim); ++d) {
            packed[Index(head_dim, d, first_row + i)] =
                d < head_dim ? queries[i * query_stride + d] : bf16{0};
        }
    }
}

/// projection_kernels::unpack_bf16.
template <auto Index>
void unpack_matrix(const bf16* packed, index_t first_row, index_t count, index_t inner, index_t columns,
                   float* rows) {
    for (index_t i = first_row; i < first_row + count; ++i) {
        for (index_t c = 0; c < columns; ++c) { *rows++ = to_float(packed[Index(inner, i, c)]); }
    }
}

} // namespace KVTRIM_NAMESPACE::kernels
