// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Elementwise maximum and minimum of each block of rows: of keys per cache block, of queries per segment.
//
//   maximum[h, b, d] = max of x[h, t, d],  minimum[h, b, d] = min,  t in [b * rows_per_block, ...)
//
// Shapes: any cache view [heads, rows, head_dim]; the last block may be shorter. Bounds are floats
// [heads, blocks, head_dim] in the caller's memory, so that an engine may keep those of cached keys.
// Numerics: exact. A NaN element counts as absent; a channel of NaN only has the bounds 0, which add nothing to an estimate.
// Cost: every row read once.

#include <kvtrim/base/for_each_item.hpp>
#include <kvtrim/base/row_source.hpp>
#include <kvtrim/kernels/row_ops.hpp>

#include <limits>

namespace kvtrim {

[[nodiscard]] constexpr index_t block_count(index_t rows, index_t rows_per_block) {
    return (rows + rows_per_block - 1) / rows_per_block;
}

// Bounds of consecutive blocks of one head.
struct bounds_rows {
    const float* maximum; // [blocks, head_dim]
    const float* minimum; // [blocks, head_dim]
    index_t blocks;
    index_t head_dim;
};

struct block_bounds {
    std::span<float> maximum; // [heads, blocks, head_dim]
    std::span<float> minimum; // [heads, blocks, head_dim]
    index_t blocks;
    index_t head_dim;

    [[nodiscard]] bounds_rows rows(index_t head, index_t first, index_t count) const {
        const index_t begin = (head * blocks + first) * head_dim;
        return {maximum.data() + begin, minimum.data() + begin, count, head_dim};
    }
    // Takes the memory for `heads` heads.
    [[nodiscard]] static block_bounds take(index_t heads, index_t blocks, index_t head_dim,
                                           workspace& scratch) {
        const index_t floats = heads * blocks * head_dim;
        return {scratch.take<float>(floats), scratch.take<float>(floats), blocks, head_dim};
    }
};

namespace detail {

inline constexpr index_t bounds_tile_rows = 32;

template <class View>
void bound_block(const View& view, index_t head, index_t begin, index_t end, float* tile, float* maximum,
                 float* minimum) {
    const index_t head_dim = extent(view, 2);
    std::fill_n(maximum, head_dim, -std::numeric_limits<float>::infinity());
    std::fill_n(minimum, head_dim, std::numeric_limits<float>::infinity());
    for (index_t t = begin; t < end; t += bounds_tile_rows) {
        const index_t count = std::min(bounds_tile_rows, end - t);
        const float_rows rows = read_rows(view, head, t, count, tile);
        kernels::fold_bounds(rows.data, rows.stride, count, head_dim, maximum, minimum);
    }
    for (index_t d = 0; d < head_dim; ++d) {
        if (maximum[d] < minimum[d]) { maximum[d] = minimum[d] = 0; } // NaN only
    }
}

} // namespace detail

// Bytes of workspace for compute_block_bounds.
template <class Executor>
[[nodiscard]] index_t block_bounds_bytes(const Executor& ex, index_t heads, index_t head_dim) {
    return for_each_item_bytes(ex, heads,
                               detail::bounds_tile_rows * head_dim * static_cast<index_t>(sizeof(float)) +
                                   workspace::alignment_bytes);
}

// Fills `out` with the bounds of rows [first_block * rows_per_block, rows) of every head; blocks before are left as
// they are, so that a growing cache pays for its new rows only (begin at the last block that was not whole).
// Returns errc::workspace_too_small, with nothing written.
// Requires out.blocks >= block_count(rows, rows_per_block).
template <cache_view View, class Executor>
[[nodiscard]] status compute_block_bounds(const View& view, index_t rows, index_t rows_per_block,
                                          index_t first_block, const block_bounds& out, workspace& scratch,
                                          Executor& ex) {
    const index_t head_dim = extent(view, 2);
    const index_t blocks = block_count(rows, rows_per_block);
    KVTRIM_EXPECTS(rows <= extent(view, 1) && out.blocks >= blocks && out.head_dim == head_dim,
                   "compute_block_bounds: the bounds must have the shape of the rows");
    const index_t bytes = detail::bounds_tile_rows * head_dim * static_cast<index_t>(sizeof(float)) +
                          workspace::alignment_bytes;
    return for_each_item(extent(view, 0), bytes, scratch, ex, [&](index_t head, workspace& own) {
        float* tile = own.take<float>(detail::bounds_tile_rows * head_dim).data();
        for (index_t b = first_block; b < blocks; ++b) {
            const auto at = static_cast<std::size_t>((head * out.blocks + b) * head_dim);
            detail::bound_block(view, head, b * rows_per_block, std::min(rows, (b + 1) * rows_per_block),
                                tile, out.maximum.data() + at, out.minimum.data() + at);
        }
    });
}

} // namespace kvtrim
