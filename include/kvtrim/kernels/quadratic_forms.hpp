// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Quadratic forms of the rows of a tile: the variance of a logit, given the covariance of the query.

#include <kvtrim/kernels/tile_ops.hpp>

namespace kvtrim::kernels {

// out [rows] += x M x^T for each row x of data [rows, dim]; matrix [dim, dim], product [rows, dim] is scratch.
template <class = void>
void add_quadratic_forms(const float* data, index_t data_stride, index_t rows, const float* matrix,
                         index_t dim, float* product, float* out) {
    const detail::const_rows x(data, rows, dim, detail::stride(data_stride));
    const detail::const_rows m(matrix, dim, dim, detail::stride(dim));
    detail::mutable_rows p(product, rows, dim, detail::stride(dim));
    const index_t step = tile_tokens(dim);
    for (index_t c = 0; c < dim; c += step) {
        const index_t columns = std::min(step, dim - c);
        p.middleCols(c, columns).noalias() = x * m.middleCols(c, columns);
    }
    for (index_t r = 0; r < rows; ++r) { out[r] += dot(product + r * dim, data + r * data_stride, dim); }
}

} // namespace kvtrim::kernels
