// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The products and reductions that scoring is made of, on tiles that fit the L2 cache. The portable version:
// Eigen, whatever instruction set the including program is compiled for.
//
//   logit tile  [tokens, query_rows]   the query rows of one token are contiguous: statistics per query are
//                                      vertical vector operations, sums per token horizontal ones
//
// Numerics: products and exponentials in float, sums over tokens in float within a tile and in double across
// tiles. A NaN logit counts as masked and +infinity as the largest float, so that one broken key cannot spoil
// the other tokens' scores.
// Memory: tile sizes keep Eigen's packing buffers within its stack limit (128 KiB), so nothing here allocates up to
// head_dim 256; above it Eigen takes its buffers from the heap.

#include <kvtrim/base/status.hpp>

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <limits>

namespace kvtrim::kernels {

inline constexpr index_t tile_query_rows = 128;
inline constexpr float masked_logit = -std::numeric_limits<float>::infinity();

// Tokens of a tile: as many as keep both operands of a product within Eigen's stack buffers.
[[nodiscard]] constexpr index_t tile_tokens(index_t head_dim) {
    constexpr index_t buffer_floats = 24 * 1024;
    return std::clamp<index_t>(buffer_floats / std::max<index_t>(1, head_dim) / 16 * 16, 16, 256);
}

namespace detail {

using row_major_matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using stride = Eigen::OuterStride<Eigen::Dynamic>;
using const_rows = Eigen::Map<const row_major_matrix, 0, stride>;
using mutable_rows = Eigen::Map<row_major_matrix, 0, stride>;
using floats = Eigen::Map<Eigen::ArrayXf>;
using const_floats = Eigen::Map<const Eigen::ArrayXf>;

// Below e^-75 a weight is exactly 0: it is nothing to a float sum, while denormal weights make products ten times slower,
// and Eigen's vectorised exp returns one (4e-39) even for -infinity. What is taken off all weights instead of comparing,
// which Eigen 3.4 does one by one, is just above e^-75 and changes none above 5e-26.
inline constexpr float zero_below = -75.0f;

template <class Array>
[[nodiscard]] auto exp_or_zero(const Array& x) {
    constexpr float least = 2.679e-33f;
    return (x.max(zero_below).exp() - least).max(0.0f);
}
[[nodiscard]] inline float exp_or_zero(float x) {
    return x < zero_below ? 0.0f : std::exp(x);
}

} // namespace detail

// out [tokens, query_rows] = keys [tokens, head_dim] * queries [query_rows, head_dim]^T
template <class = void>
void logits(const float* keys, index_t key_stride, index_t tokens, const float* queries, index_t query_rows,
            index_t head_dim, float* out) {
    const detail::const_rows k(keys, tokens, head_dim, detail::stride(key_stride));
    const detail::const_rows q(queries, query_rows, head_dim, detail::stride(head_dim));
    detail::mutable_rows(out, tokens, query_rows, detail::stride(query_rows)).noalias() = k * q.transpose();
}

// Soft cap (0: none), then NaN to masked and +infinity to the largest float, in place.
template <class = void>
void condition_logits(float* logits, index_t count, float soft_cap) {
    detail::floats l(logits, count);
    if (soft_cap > 0) { l = soft_cap * (l * (1.0f / soft_cap)).tanh(); }
    for (index_t i = 0; i < count; ++i) {
        const float x = logits[i];
        logits[i] = x == x ? std::min(x, std::numeric_limits<float>::max()) : masked_logit;
    }
}

// Softmax statistics of the query rows over the tiles seen so far, relative to the running maximum.
struct row_statistics {
    float* maximum; // [query_rows]
    double* sum;    // [query_rows] of exp(logit - maximum)
};

// Folds a logit tile into the statistics and leaves exp(logit - maximum) in it; `rescale` [query_rows] gets
// the factor by which sums taken before this tile must be multiplied.
template <class = void>
void accumulate_statistics(float* tile, index_t tokens, index_t query_rows, row_statistics rows,
                           float* rescale) {
    detail::floats maximum(rows.maximum, query_rows);
    detail::floats factor(rescale, query_rows);
    factor = maximum;
    for (index_t t = 0; t < tokens; ++t) {
        maximum = maximum.max(detail::const_floats(tile + t * query_rows, query_rows));
    }
    // A row that has seen only masked logits keeps -infinity; its exponentials must be 0, not NaN.
    float shift[tile_query_rows];
    for (index_t r = 0; r < query_rows; ++r) {
        const bool seen = rows.maximum[r] != masked_logit;
        shift[r] = seen ? rows.maximum[r] : 0.0f;
        factor[r] = seen ? std::exp(factor[r] - rows.maximum[r]) : 1.0f;
        rows.sum[r] *= static_cast<double>(factor[r]);
    }
    const detail::const_floats shifts(shift, query_rows);
    for (index_t t = 0; t < tokens; ++t) {
        detail::floats logits(tile + t * query_rows, query_rows);
        logits = detail::exp_or_zero(logits - shifts);
    }
}

// sums [query_rows] += the tile's columns: over tokens, for each query row. Float within the tile.
template <class = void>
void add_over_tokens(const float* tile, index_t tokens, index_t query_rows, double* sums) {
    constexpr index_t lanes = 16;
    for (index_t r = 0; r < query_rows; r += lanes) {
        const index_t width = std::min(lanes, query_rows - r);
        float partial[lanes] = {};
        for (index_t t = 0; t < tokens; ++t) {
            const float* row = tile + t * query_rows + r;
            for (index_t i = 0; i < width; ++i) { partial[i] += row[i]; }
        }
        for (index_t i = 0; i < width; ++i) { sums[r + i] += static_cast<double>(partial[i]); }
    }
}

template <class = void>
[[nodiscard]] float dot(const float* a, const float* b, index_t count) {
    return detail::const_floats(a, count).matrix().dot(detail::const_floats(b, count).matrix());
}

// out [query_rows, value_dim] += tile [tokens, query_rows]^T * values [tokens, value_dim]
template <class = void>
void add_weighted_values(const float* tile, index_t tokens, index_t query_rows, const float* values,
                         index_t value_stride, index_t value_dim, float* out) {
    const detail::const_rows p(tile, tokens, query_rows, detail::stride(query_rows));
    const detail::const_rows v(values, tokens, value_dim, detail::stride(value_stride));
    detail::mutable_rows(out, query_rows, value_dim, detail::stride(value_dim)).noalias() +=
        p.transpose() * v;
}

// out [rows, columns] += a [rows, inner] * b [inner, columns]; out rows are contiguous.
template <class = void>
void add_products(const float* a, index_t a_stride, index_t rows, const float* b, index_t b_stride,
                  index_t inner, index_t columns, float* out) {
    const detail::const_rows left(a, rows, inner, detail::stride(a_stride));
    const detail::const_rows right(b, inner, columns, detail::stride(b_stride));
    detail::mutable_rows(out, rows, columns, detail::stride(columns)).noalias() += left * right;
}

// Columns of W_O that one product covers.
[[nodiscard]] constexpr index_t tile_hidden(index_t head_dim) {
    return tile_tokens(head_dim);
}

// norms [tokens] += sum over the columns of | values [tokens, head_dim] * projection [head_dim, columns] |.
// product [tokens, columns] is scratch.
template <class = void>
void add_projected_l1(const float* values, index_t value_stride, index_t tokens, const float* projection,
                      index_t projection_stride, index_t head_dim, index_t columns, float* product,
                      float* norms) {
    const detail::const_rows v(values, tokens, head_dim, detail::stride(value_stride));
    const detail::const_rows w(projection, head_dim, columns, detail::stride(projection_stride));
    detail::mutable_rows p(product, tokens, columns, detail::stride(columns));
    p.noalias() = v * w;
    for (index_t t = 0; t < tokens; ++t) {
        norms[t] += detail::const_floats(product + t * columns, columns).abs().sum();
    }
}

// gram [head_dim, head_dim] += projection [head_dim, columns] * projection^T
template <class = void>
void add_gram(const float* projection, index_t projection_stride, index_t head_dim, index_t columns,
              float* gram) {
    const detail::const_rows w(projection, head_dim, columns, detail::stride(projection_stride));
    detail::mutable_rows(gram, head_dim, head_dim, detail::stride(head_dim)).noalias() += w * w.transpose();
}

// norms [tokens] += sqrt(v G v^T) for each row v of values [tokens, head_dim]; product is scratch of the
// shape of values.
template <class = void>
void add_gram_l2(const float* values, index_t value_stride, index_t tokens, const float* gram,
                 index_t head_dim, float* product, float* norms) {
    const detail::const_rows v(values, tokens, head_dim, detail::stride(value_stride));
    const detail::const_rows g(gram, head_dim, head_dim, detail::stride(head_dim));
    detail::mutable_rows p(product, tokens, head_dim, detail::stride(head_dim));
    const index_t step = tile_tokens(head_dim);
    for (index_t c = 0; c < head_dim; c += step) {
        const index_t columns = std::min(step, head_dim - c);
        p.middleCols(c, columns).noalias() = v * g.middleCols(c, columns);
    }
    for (index_t t = 0; t < tokens; ++t) {
        const float square = detail::const_floats(product + t * head_dim, head_dim)
                                 .matrix()
                                 .dot(detail::const_floats(values + t * value_stride, head_dim).matrix());
        norms[t] += std::sqrt(std::max(square, 0.0f));
    }
}

} // namespace kvtrim::kernels
