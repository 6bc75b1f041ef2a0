// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The rotation of one head's rows, which compact/rerotate_keys.hpp runs for all heads.
//
// A row is rotated by R(distance) = R(coarse) R(fine), 0 <= fine < fine_turns: the fine turns stand in a table that all heads
// share, the coarse one follows the rows: survivors ascend, so it changes once in fine_turns positions. Both are combined in
// double and rounded to float once (kernels/turn_row.hpp). Rows that move are read as floats, rotated and written back, up to
// 16 neighbours at a time; contiguous floats are rotated where they lie.

#include <kvtrim/cache/ragged.hpp>
#include <kvtrim/cache/turn_table.hpp>

#include <algorithm>
#include <bit>
#include <cmath>

namespace KVTRIM_NAMESPACE::detail {

struct rotation_scratch {
    static constexpr index_t tile_rows = 16;

    std::span<double> coarse; // [2, pairs]
    std::span<float> tile;    // [tile_rows, row length]

    rotation_scratch(const rope& r, index_t row_length, workspace& own)
        : coarse(own.take<double>(r.rotary_dim())), tile(own.take<float>(tile_rows * row_length)) {}

    [[nodiscard]] static index_t bytes(const rope& r, index_t row_length) {
        workspace counting = workspace::counting();
        static_cast<void>(rotation_scratch(r, row_length, counting));
        return counting.needed_bytes();
    }
};

// The number of fine turns that balances two costs: of their table, which is filled once, and of the coarse turns, of which each
// head computes one per so many positions.
template <class V>
[[nodiscard]] index_t count_fine_turns(const V& keys) {
    const double balanced =
        std::sqrt(static_cast<double>(extent(keys, 0)) * static_cast<double>(extent(keys, 1)));
    return static_cast<index_t>(
        std::bit_ceil(static_cast<std::uint64_t>(std::clamp(balanced, 16.0, 1024.0))));
}

// Calls fn(view, head) with a view whose rows are the rotary channels of this head.
template <class V, class Fn>
void with_rotary_rows(const V& keys, index_t head, const rope& r, Fn&& fn) {
    if constexpr (is_ragged<V>) { // as strided rows, which have kernels
        fn(strided(keys.row(head, 0), {1, keys.rows(head), r.rotary_dim()}, {0, extent(keys, 2), 1}),
           index_t{0});
    } else {
        fn(first_channels(keys, r.rotary_dim()), head);
    }
}

// Row length of the view that with_rotary_rows() passes.
template <class V>
[[nodiscard]] index_t rotary_row_length(const V& keys, const rope& r) {
    if constexpr (is_ragged<V>) { return r.rotary_dim(); }
    return extent(first_channels(keys, r.rotary_dim()), 2);
}

// The address of a row whose elements are contiguous floats, else null.
template <class V>
[[nodiscard]] float* writable_floats(const V& rows, index_t head, index_t row) {
    if constexpr (!row_source<V> && is_made_of<V, float>) {
        if (rows.stride(2) == 1) {
            return rows.data_handle() + head * static_cast<index_t>(rows.stride(0)) +
                   row * static_cast<index_t>(rows.stride(1));
        }
    }
    return nullptr;
}

template <class V, class NewPosition>
void rotate_head(const V& rows, index_t head, const rope& r, std::span<const std::int32_t> from,
                 NewPosition&& new_position, const turn_table& table, const rotation_scratch& memory) {
    const double* coarse = memory.coarse.data();
    index_t coarse_of = 0;
    turn_table::write(r, 0, 1, memory.coarse.data());
    const auto distance_of = [&](index_t i) {
        return new_position(i) - index_t{from[static_cast<std::size_t>(i)]};
    };
    const auto rotate = [&](index_t distance, float* row) {
        const index_t fine = distance & (table.turns() - 1); // of a power of two, below 0 too
        if (distance - fine != coarse_of) {
            coarse_of = distance - fine;
            turn_table::write(r, coarse_of, 1, memory.coarse.data());
        }
        rotate_by(r, {coarse, coarse + r.pairs()}, table[fine], row);
    };
    const index_t length = extent(rows, 2);
    const auto count = static_cast<index_t>(from.size());
    if (count > 0 && writable_floats(rows, head, 0) != nullptr) {
        for (index_t i = 0; i < count; ++i) {
            if (const index_t d = distance_of(i); d != 0) { rotate(d, writable_floats(rows, head, i)); }
        }
        return;
    }
    for (index_t first = 0; first < count;) { // runs of rows that move
        index_t end = first;
        while (end < count && end - first < rotation_scratch::tile_rows && distance_of(end) != 0) { ++end; }
        if (end == first) {
            ++first;
            continue;
        }
        float* const tile = memory.tile.data();
        load_rows(rows, head, first, end - first, tile);
        for (index_t i = first; i < end; ++i) { rotate(distance_of(i), tile + (i - first) * length); }
        store_rows(rows, head, first, end - first, tile);
        first = end;
    }
}

} // namespace KVTRIM_NAMESPACE::detail
