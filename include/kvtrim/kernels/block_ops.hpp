// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The products and reductions of prefill pruning, on elementwise bounds of queries and keys. The portable version:
// Eigen, whatever instruction set the including program is compiled for.

#include <kvtrim/kernels/tile_ops.hpp>

namespace kvtrim::kernels {

namespace detail {

// Runs of fixed length, which a compiler turns into vectors; a comparison with NaN leaves the bound as it is.
template <index_t Count>
void fold_lanes(const float* row, float* maximum, float* minimum) {
    for (index_t i = 0; i < Count; ++i) {
        maximum[i] = row[i] > maximum[i] ? row[i] : maximum[i];
        minimum[i] = row[i] < minimum[i] ? row[i] : minimum[i];
    }
}

} // namespace detail

// maximum, minimum [columns] folded with `count` rows; NaN elements count as absent.
template <class = void>
void fold_bounds(const float* rows, index_t row_stride, index_t count, index_t columns, float* maximum,
                 float* minimum) {
    constexpr index_t lanes = 16;
    for (index_t t = 0; t < count; ++t) {
        const float* row = rows + t * row_stride;
        index_t c = 0;
        for (; c + lanes <= columns; c += lanes) {
            detail::fold_lanes<lanes>(row + c, maximum + c, minimum + c);
        }
        for (; c < columns; ++c) { detail::fold_lanes<1>(row + c, maximum + c, minimum + c); }
    }
}

// out [rows, columns] = a [rows, inner] * b [columns, inner]^T; rows of out are out_stride apart.
template <class = void>
void inner_products(const float* a, index_t rows, const float* b, index_t columns, index_t inner, float* out,
                    index_t out_stride) {
    const detail::const_rows left(a, rows, inner, detail::stride(inner));
    const index_t step = tile_tokens(inner); // within Eigen's stack buffers
    for (index_t c = 0; c < columns; c += step) {
        const index_t width = std::min(step, columns - c);
        const detail::const_rows right(b + c * inner, width, inner, detail::stride(inner));
        detail::mutable_rows(out + c, rows, width, detail::stride(out_stride)).noalias() =
            left * right.transpose();
    }
}

// The largest <q, k> over all q between q_minimum and q_maximum and all k between k_minimum and k_maximum, channel
// by channel [channels]: the best of the four corners.
template <class = void>
[[nodiscard]] float corner_bound(const float* q_maximum, const float* q_minimum, const float* k_maximum,
                                 const float* k_minimum, index_t channels) {
    const detail::const_floats q_high(q_maximum, channels), q_low(q_minimum, channels);
    const detail::const_floats k_high(k_maximum, channels), k_low(k_minimum, channels);
    return (q_high * k_high).max(q_high * k_low).max(q_low * k_high).max(q_low * k_low).sum();
}

// A row of conditioned logits becomes exp(x - max) / sum; a row of masked logits becomes zeros. One by one, because rows lie
// anywhere: Eigen's vectors would round the same logit differently at another alignment.
template <class = void>
void softmax(float* row, index_t count) {
    detail::floats x(row, count);
    const float highest = count > 0 ? x.maxCoeff() : masked_logit;
    if (highest == masked_logit) {
        x.setZero();
        return;
    }
    float sum = 0;
    for (index_t i = 0; i < count; ++i) {
        row[i] = detail::exp_or_zero(row[i] - highest);
        sum += row[i];
    }
    x *= 1.0f / sum;
}

} // namespace kvtrim::kernels
