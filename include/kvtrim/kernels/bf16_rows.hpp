// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What all products of bf16 share, whichever instruction multiplies: rows in memory, and matrices packed in the order that the
// product reads.

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

/// The order of a packed matrix [inner][columns], `inner` padded with zeros to whole steps of Edge.
///
///   panels of Edge columns, [inner / Edge][Edge / Columns][Edge / Rows][Columns][Rows]
template <index_t Edge, index_t Columns, index_t Rows>
struct packed_order {
    /// The next multiple of Edge.
    [[nodiscard]] static constexpr index_t whole_steps(index_t count) {
        return (count + Edge - 1) / Edge * Edge;
    }
    /// Index of element (inner, column) in a packed matrix of inner_dim rows.
    [[nodiscard]] static constexpr index_t index(index_t inner_dim, index_t inner, index_t column) {
        const index_t step = column / Edge * whole_steps(inner_dim) + inner / Edge * Edge;
        return step * Edge + column % Edge / Columns * Columns * Edge + inner % Edge / Rows * Rows * Columns +
               column % Columns * Rows + inner % Rows;
    }
};

/// window_kernels::pack_bf16_queries: query i becomes column first_row + i.
template <class Order>
void pack_columns(const bf16* queries, index_t query_stride, index_t first_row, index_t count,
                  index_t head_dim, bf16* packed) {
    for (index_t i = 0; i < count; ++i) {
        for (index_t d = 0; d < Order::whole_steps(head_dim); ++d) {
            packed[Order::index(head_dim, d, first_row + i)] =
                d < head_dim ? queries[i * query_stride + d] : bf16{0};
        }
    }
}

/// projection_kernels::unpack_bf16.
template <class Order>
void unpack_matrix(const bf16* packed, index_t first_row, index_t count, index_t inner, index_t columns,
                   float* rows) {
    for (index_t i = first_row; i < first_row + count; ++i) {
        for (index_t c = 0; c < columns; ++c) { *rows++ = to_float(packed[Order::index(inner, i, c)]); }
    }
}

} // namespace KVTRIM_NAMESPACE::kernels
