// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The cells of one sequence in a cache whose cells belong to several (llama.cpp): which ones, in which order.
//
//   cells     [cells] each with a position, and empty, of other sequences only, of this one, or of this one and others
//   list      int32 cells of the sequence, ascending in position (then in cell)
//
// After list_cells(positions, use, room, list), indexed_rows(view, list.cells) is the sequence's keys or values: K
// token-major strided{k, {kv_heads, cells, head_dim}, {head_dim, kv_heads * head_dim, 1}}, transposed V {head_dim * cells,
// 1, cells}.
//
// Cells that others share: by default they are read, and the ones at the front are counted, so that a request can pin them
// (protect.pinned_tokens = list.shared_prefix). skip_shared leaves them out, as if they were not there: scores are then
// those of attention over the sequence's own cells.

#include <kvtrim/cache/check_outputs.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <span>

namespace KVTRIM_NAMESPACE {

/// How the sequence in question uses a cell.
enum class cell_use : std::uint8_t {
    not_used, ///< empty, or of other sequences only
    owned,    ///< of this sequence only
    shared,   ///< of this sequence and others
};

/// The cells of one sequence.
struct cell_list {
    std::span<const std::int32_t> cells; ///< ascending in position, then in cell
    index_t shared_prefix = 0;           ///< shared cells before the first owned one
};

/// What list_cells() lists.
struct cell_list_options {
    bool skip_shared = false; ///< leaves out the cells that other sequences share
};

/// Lists the cells for which use(cell) is not not_used; positions [cells] of the cells, read where they are used, and not
/// negative there. `room` has an entry per position; `out` views what is written of it.
/// Returns no_room (needed: entries), index_overflow, views_overlap for a room among the positions, or invalid_table for a
/// cell in use without a position; with `out` as it was, and `room` too. Ascending cells are the fast case: O(cells), else
/// O(used log used). Nothing allocates.
template <class Use>
[[nodiscard]] status list_cells(std::span<const std::int32_t> positions, Use&& use,
                                std::span<std::int32_t> room, cell_list& out,
                                const cell_list_options& options = {}) {
    if (room.size() < positions.size()) {
        return {errc::no_room, "list_cells: room for one entry per cell is needed", std::ssize(positions)};
    }
    if (std::ssize(positions) > std::numeric_limits<std::int32_t>::max()) {
        return {errc::index_overflow, "list_cells: cells are numbered in 32 bits", std::ssize(positions)};
    }
    if (const status s = check_outputs(std::array{bytes_of(room)}, positions); !s.ok()) { return s; }
    for (std::size_t c = 0; c < positions.size(); ++c) {
        if (positions[c] < 0 && use(static_cast<index_t>(c)) != cell_use::not_used) {
            return {errc::invalid_table, "list_cells: a cell in use has a negative position"};
        }
    }
    std::size_t used = 0;
    for (std::size_t c = 0; c < positions.size(); ++c) {
        const cell_use how = use(static_cast<index_t>(c));
        if (how == cell_use::owned || (how == cell_use::shared && !options.skip_shared)) {
            room[used++] = static_cast<std::int32_t>(c);
        }
    }
    const auto earlier = [&](std::int32_t a, std::int32_t b) {
        const auto at_a = positions[static_cast<std::size_t>(a)];
        const auto at_b = positions[static_cast<std::size_t>(b)];
        return at_a != at_b ? at_a < at_b : a < b;
    };
    const auto list = room.first(used);
    if (!std::is_sorted(list.begin(), list.end(), earlier)) { std::sort(list.begin(), list.end(), earlier); }
    const auto first_owned = std::find_if(list.begin(), list.end(),
                                          [&](std::int32_t c) { return use(index_t{c}) == cell_use::owned; });
    out = {list, first_owned - list.begin()};
    return {};
}

} // namespace KVTRIM_NAMESPACE
