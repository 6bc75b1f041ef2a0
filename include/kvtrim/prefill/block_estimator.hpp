// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// How critical each cache block is to each query segment, estimated from elementwise bounds alone.
//
//   mid_query      e[s, b] = max(<mid, kmax>, <mid, kmin>),  mid = (qmax + qmin) / 2          CritiPrefill
//   corner_query   e[s, b] = sum over channels of max(qmax kmax, qmax kmin, qmin kmax, qmin kmin)
//   logit[s, b]    = scale * reduce over the query heads of a KV head of e[s, b]
//
// mid_query is a heuristic: <mid, kmax> bounds nothing. corner_query is Quest's per-channel sign rule for a whole
// segment of queries: no <q, k> of the segment with a key of the block exceeds it.
// An estimator is a struct with the members of block_estimator below; a third one takes about 15 lines.
//
// Source: CritiPrefill, arXiv:2409.12490, Sec. 3.2; 66RING/CritiPrefill@3067f1e criti_prefill/ops.py. Quest:
// arXiv:2406.10774, Sec. 3.3.
// Departures: scale is 1 / sqrt(head_dim) unless given; the authors leave it out (scale = 1), which makes the softmax
// of layer fusion almost one-hot. The mean of the max-query and the min-query products is one product.
// Of the attention options only the scale is asked for: blocks are ranked by logits, whose order a soft cap keeps, and a
// sink logit takes the same share from all blocks of a segment. Layers with a sliding window are not for pruning.
// Numerics: products in float; a NaN estimate ranks lowest, +infinity becomes the largest float.
// Cost: mid_query 4 * head_dim flops per segment, block and query head; corner_query about 8 * head_dim.

#include <kvtrim/cache/layer.hpp>
#include <kvtrim/core/eviction_request.hpp>
#include <kvtrim/kernels/bound_kernels.hpp>
#include <kvtrim/kernels/product_kernels.hpp>
#include <kvtrim/kernels/row_kernels.hpp>
#include <kvtrim/prefill/block_bounds.hpp>

#include <cmath>

namespace KVTRIM_NAMESPACE {

/// An estimator: out [segments.blocks, blocks.blocks] is an unscaled estimate per segment and key block of one query head;
/// spare has spare_floats() floats.
template <class E>
concept block_estimator = requires(const E& e, const bounds_rows& segments, const bounds_rows& blocks,
                                   float* out, float* spare) {
    e.estimate(segments, blocks, out, spare);
    { e.spare_floats(index_t{}, index_t{}, index_t{}) } -> std::convertible_to<index_t>;
};

/// CritiPrefill's estimate: products of the middle of the query bounds with the key bounds. A heuristic, not a bound.
struct mid_query {
    /// Floats of scratch for estimate().
    [[nodiscard]] static index_t spare_floats(index_t segments, index_t blocks, index_t head_dim) {
        return segments * (head_dim + blocks);
    }

    /// Writes out [segments.blocks, blocks.blocks].
    void estimate(const bounds_rows& segments, const bounds_rows& blocks, float* out, float* spare) const {
        float* mid = spare;
        float* other = spare + segments.blocks * segments.head_dim;
        for (index_t i = 0; i < segments.blocks * segments.head_dim; ++i) {
            mid[i] = 0.5f * segments.maximum[i] +
                     0.5f * segments.minimum[i]; // halved before the sum, which could overflow
        }
        kernels::inner_products(mid, segments.blocks, blocks.maximum, blocks.blocks, blocks.head_dim, out,
                                blocks.blocks);
        kernels::inner_products(mid, segments.blocks, blocks.minimum, blocks.blocks, blocks.head_dim, other,
                                blocks.blocks);
        for (index_t i = 0; i < segments.blocks * blocks.blocks; ++i) { out[i] = std::max(out[i], other[i]); }
    }
};

/// Quest's estimate: an upper bound of every product of the segment's queries with the block's keys.
struct corner_query {
    /// Floats of scratch for estimate().
    [[nodiscard]] static index_t spare_floats(index_t, index_t, index_t) { return 0; }

    /// Writes out [segments.blocks, blocks.blocks].
    void estimate(const bounds_rows& segments, const bounds_rows& blocks, float* out, float*) const {
        const index_t dim = segments.head_dim;
        for (index_t s = 0; s < segments.blocks; ++s) {
            for (index_t b = 0; b < blocks.blocks; ++b) {
                *out++ = kernels::corner_bound(segments.maximum + s * dim, segments.minimum + s * dim,
                                               blocks.maximum + b * dim, blocks.minimum + b * dim, dim);
            }
        }
    }
};

/// From per-head estimates to the logits of a KV head.
struct criticality_options {
    float scale = 0; ///< 0: 1 / sqrt(head_dim); the authors' code: 1
    /// Over the query heads of a KV head. The maximum of bounds is a bound, their mean is not.
    group_reduction group = group_reduction::mean;

    /// Returns invalid_parameter unless scale is finite and not negative.
    [[nodiscard]] status validate() const {
        if (scale >= 0 && std::isfinite(scale)) { return {}; }
        return {errc::invalid_parameter, "criticality: scale must be finite and not negative"};
    }
};

/// Floats of scratch for block_logits.
template <block_estimator Estimator>
[[nodiscard]] index_t block_logits_floats(const Estimator& estimator, index_t segments, index_t blocks,
                                          index_t head_dim) {
    return segments * blocks + estimator.spare_floats(segments, blocks, head_dim);
}

/// Writes logits [segments, blocks] of one KV head for segments [first_segment, + segments) and cache blocks [0, blocks).
/// queries: bounds [q_heads, segments of the chunk, head_dim]; keys: bounds [kv_heads, blocks of the cache, head_dim].
template <block_estimator Estimator>
void block_logits(const Estimator& estimator, const criticality_options& options, const block_bounds& queries,
                  const block_bounds& keys, index_t group_size, index_t kv_head, index_t first_segment,
                  index_t segments, index_t blocks, float* logits, float* spare) {
    const index_t count = segments * blocks;
    const float scale = attention_options{.scale = options.scale}.scale_for(keys.head_dim);
    const bool maximum = options.group == group_reduction::maximum;
    const float weight =
        options.group == group_reduction::mean ? scale / static_cast<float>(group_size) : scale;
    const bounds_rows key_rows = keys.rows(kv_head, 0, blocks);
    float* const one_head = spare;
    for (index_t j = 0; j < group_size; ++j) {
        const index_t query_head = kv_head * group_size + j;
        float* const out = j == 0 ? logits : one_head;
        estimator.estimate(queries.rows(query_head, first_segment, segments), key_rows, out, spare + count);
        if (j == 0) { continue; }
        for (index_t i = 0; i < count; ++i) {
            logits[i] = maximum ? std::max(logits[i], one_head[i]) : logits[i] + one_head[i];
        }
    }
    for (index_t i = 0; i < count; ++i) { logits[i] *= weight; }
    kernels::condition_logits(logits, count, 0);
}

} // namespace KVTRIM_NAMESPACE
