// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Steps on logit tiles that are made of other kernels: softmax statistics of a logit tile, and L1 norms without a packed matrix.
//
//   logit tile  [tokens, query_rows]   the query rows of one token are contiguous

#include <kvtrim/kernels/product_kernels.hpp>
#include <kvtrim/kernels/row_kernels.hpp>
#include <kvtrim/kernels/window_kernels.hpp>

namespace KVTRIM_NAMESPACE::kernels {

/// Softmax statistics of the query rows over the tiles seen so far, relative to the running maximum.
struct row_statistics {
    float* maximum; ///< [query_rows]
    double* sum;    ///< [query_rows] of exp(logit - maximum)
};

/// Folds a logit tile into the statistics and leaves exp(logit - maximum) in it; `rescale` [query_rows] gets
/// the factor by which sums taken before this tile must be multiplied.
inline void accumulate_statistics(float* tile, index_t tokens, index_t query_rows, row_statistics rows,
                                  float* rescale) {
    const window_kernels& steps = active_window_kernels();
    steps.raise_maximum(tile, tokens, query_rows, rows.maximum, rescale);
    // A row that has seen only masked logits keeps -infinity; its exponentials must be 0, not NaN.
    float shift[tile_query_rows], one[tile_query_rows];
    for (index_t r = 0; r < query_rows; ++r) {
        shift[r] = rows.maximum[r] == masked_logit ? 0.0f : rows.maximum[r];
        one[r] = 1.0f;
        rows.sum[r] *= static_cast<double>(rescale[r]);
    }
    steps.attention(tile, tokens, query_rows, shift, one, tile);
}

/// norms [tokens] += sum over the columns of | values [tokens, head_dim] * projection [head_dim, columns] |.
/// product [tokens, columns] is scratch.
inline void add_projected_l1(const float* values, index_t value_stride, index_t tokens,
                             const float* projection, index_t projection_stride, index_t head_dim,
                             index_t columns, float* product, float* norms) {
    active_product_kernels().multiply({values, value_stride, 1}, tokens, {projection, projection_stride, 1},
                                      head_dim, columns, product, columns);
    active_row_kernels().add_absolute(product, columns, tokens, columns, norms);
}

} // namespace KVTRIM_NAMESPACE::kernels
