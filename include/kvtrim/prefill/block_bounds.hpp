// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Elementwise maximum and minimum of each block of rows: of keys per cache block, of queries per segment.
//
//   maximum[h, b, d] = max of x[h, t, d],  minimum[h, b, d] = min,  t in [b * rows_per_block, ...)
//
// Shapes: any cache view [heads, rows, head_dim]; the last block may be shorter. Bounds are floats
// [heads, blocks, head_dim] in the caller's memory, so that an engine can keep those of cached keys.
// Numerics: exact. A NaN element counts as absent; a channel of NaN only has the bounds 0, which add nothing to an estimate.
// Cost: every row read once.

#include <kvtrim/cache/layer.hpp>
#include <kvtrim/cache/read_rows.hpp>
#include <kvtrim/core/for_each_item.hpp>
#include <kvtrim/core/saturated.hpp>
#include <kvtrim/kernels/bound_kernels.hpp>

namespace KVTRIM_NAMESPACE {

/// Blocks that hold `rows` rows, the last one perhaps in part; 0 for rows_per_block that is not positive.
[[nodiscard]] constexpr index_t block_count(index_t rows, index_t rows_per_block) {
    if (rows <= 0 || rows_per_block <= 0) { return 0; }
    return rows / rows_per_block + (rows % rows_per_block > 0 ? 1 : 0);
}

/// Bounds of consecutive blocks of one head.
struct bounds_rows {
    const float* maximum; ///< [blocks, head_dim]
    const float* minimum; ///< [blocks, head_dim]
    index_t blocks;       ///< how many
    index_t head_dim;     ///< elements of a row
};

/// Bounds of the blocks of all heads, in memory of the caller.
struct block_bounds {
    std::span<float> maximum; ///< [heads, blocks, head_dim]
    std::span<float> minimum; ///< [heads, blocks, head_dim]
    index_t blocks;           ///< of each head
    index_t head_dim;         ///< elements of a row

    /// Bounds of blocks [first, first + count) of a head; nothing is checked.
    [[nodiscard]] bounds_rows rows(index_t head, index_t first, index_t count) const {
        const index_t begin = (head * blocks + first) * head_dim;
        return {maximum.data() + begin, minimum.data() + begin, count, head_dim};
    }
    /// Whether there are bounds of so many rows of each head of a view. Returns invalid_parameter for another head_dim,
    /// fewer blocks than the rows make (needed: blocks) or less memory than the shape says (needed: floats).
    [[nodiscard]] status validate(index_t heads, index_t rows, index_t rows_per_block,
                                  index_t row_length) const {
        if (rows < 0 || rows_per_block <= 0) {
            return {errc::invalid_parameter, "block bounds: blocks must hold rows, and rows not be negative"};
        }
        if (head_dim != row_length || blocks < block_count(rows, rows_per_block)) {
            return {errc::invalid_parameter, "block bounds: they must have the shape of the rows",
                    block_count(rows, rows_per_block)};
        }
        const index_t floats = floats_of(heads, blocks, head_dim);
        if (std::ssize(maximum) < floats || std::ssize(minimum) < floats) {
            return {errc::invalid_parameter, "block bounds: their memory must hold all heads", floats};
        }
        return {};
    }
    /// Takes the memory for `heads` heads.
    [[nodiscard]] static block_bounds take(index_t heads, index_t blocks, index_t head_dim,
                                           workspace& scratch) {
        const index_t floats = floats_of(heads, blocks, head_dim);
        return {scratch.take<float>(floats), scratch.take<float>(floats), blocks, head_dim};
    }

  private:
    [[nodiscard]] static index_t floats_of(index_t heads, index_t blocks, index_t head_dim) {
        return saturated_product(saturated_product(heads, blocks), head_dim);
    }
};

namespace detail {

inline constexpr index_t bounds_tile_rows = 32;

[[nodiscard]] inline index_t bounds_tile_bytes(index_t head_dim) {
    workspace counting = workspace::counting();
    static_cast<void>(counting.take<float>(saturated_product(bounds_tile_rows, head_dim)));
    return counting.needed_bytes();
}

template <class View>
void bound_block(const View& view, index_t head, index_t begin, index_t end, float* tile, float* maximum,
                 float* minimum) {
    const index_t head_dim = extent(view, 2);
    const auto& steps = kernels::active_bound_kernels();
    for (index_t t = begin; t < end; t += bounds_tile_rows) {
        const index_t count = std::min(bounds_tile_rows, end - t);
        const float_rows rows = read_rows(view, head, t, count, tile);
        steps.fold_bounds(rows.data, rows.stride, count, head_dim, t == begin, maximum, minimum);
    }
    steps.clear_empty_bounds(head_dim, maximum, minimum);
}

} // namespace detail

/// Bytes of workspace for compute_block_bounds.
template <class Executor>
[[nodiscard]] index_t block_bounds_bytes(const Executor& ex, index_t heads, index_t head_dim) {
    return for_each_item_bytes(ex, heads, detail::bounds_tile_bytes(head_dim));
}

/// Fills `out` with the bounds of rows [first_block * rows_per_block, rows) of every head; blocks before are left as
/// they are, so that a growing cache pays for its new rows only (begin at the last block that was not whole).
/// Returns the answer of a view that is not valid, invalid_parameter (rows that not every head has, a negative first_block,
/// or what block_bounds::validate() says), views_overlap (check_outputs) or workspace_too_small, with nothing written.
template <cache_view View, class Executor>
[[nodiscard]] status compute_block_bounds(const View& view, index_t rows, index_t rows_per_block,
                                          index_t first_block, const block_bounds& out, workspace& scratch,
                                          Executor& ex) {
    if (const status s = layer(view).validate(); !s.ok()) { return s; }
    const index_t heads = extent(view, 0);
    const index_t head_dim = extent(view, 2);
    if (const status s = out.validate(heads, rows, rows_per_block, head_dim); !s.ok()) { return s; }
    if (first_block < 0 || rows > layer(view).shortest_row()) {
        return {errc::invalid_parameter, "block bounds: every head must have the rows",
                layer(view).shortest_row()};
    }
    const std::array written{bytes_of(out.maximum), bytes_of(out.minimum)};
    if (const status s = check_outputs(written, view); !s.ok()) { return s; }
    const index_t blocks = block_count(rows, rows_per_block);
    const index_t bytes = detail::bounds_tile_bytes(head_dim);
    return for_each_item(heads, bytes, scratch, ex, [&](index_t head, workspace& own) {
        float* tile = own.take<float>(detail::bounds_tile_rows * head_dim).data();
        for (index_t b = first_block; b < blocks; ++b) {
            const auto at = static_cast<std::size_t>((head * out.blocks + b) * head_dim);
            const index_t begin = b * rows_per_block;
            detail::bound_block(view, head, begin, begin + std::min(rows_per_block, rows - begin), tile,
                                out.maximum.data() + at, out.minimum.data() + at);
        }
    });
}

} // namespace KVTRIM_NAMESPACE
