// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The rotation of one head's rows, which compact/rerotate_keys.hpp runs for all heads.
//
// A row is rotated by R(distance) = R(coarse) R(fine): the fine turns stand in a table that all heads share, the coarse
// one follows the rows. Both are combined in double and rounded to float once (kernels/rotate.hpp). Rows that move are
// read as floats, rotated and written back, up to 16 neighbours at a time; contiguous floats are rotated where they lie.

#include <kvtrim/cache/ragged.hpp>
#include <kvtrim/cache/rope.hpp>
#include <kvtrim/core/workspace.hpp>
#include <kvtrim/kernels/rotate.hpp>

#include <algorithm>
#include <bit>
#include <cmath>

namespace KVTRIM_NAMESPACE::detail {

// R(distance) = R(coarse * fine_turns) R(fine) with 0 <= fine < fine_turns: a table of the fine turns for all heads, and one
// coarse turn per head, computed anew when a row needs another one. Survivors ascend, so it changes once in `fine_turns`
// positions.
class turn_table {
  public:
    turn_table(index_t fine_turns, index_t pairs, workspace& scratch)
        : fine_turns_(fine_turns), pairs_(pairs), fine_(scratch.take<double>(fine_turns * 2 * pairs)) {}

    void fill(const rope& r) const {
        for (index_t fine = 0; fine < fine_turns_; ++fine) {
            write(r, fine, fine_.data() + fine * 2 * pairs_);
        }
    }
    [[nodiscard]] index_t fine_turns() const { return fine_turns_; }
    [[nodiscard]] kernels::turn_row fine(index_t distance) const {
        const double* row = fine_.data() + distance * 2 * pairs_;
        return {row, row + pairs_};
    }

    // turn [2, pairs]: cosines, then sines.
    static void write(const rope& r, index_t distance, double* turn) {
        for (index_t i = 0; i < r.pairs(); ++i) {
            const double angle = static_cast<double>(distance) * r.frequency(i);
            turn[i] = std::cos(angle);
            turn[r.pairs() + i] = std::sin(angle);
        }
    }

  private:
    index_t fine_turns_;
    index_t pairs_;
    std::span<double> fine_;
};

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

// How many fine turns balance the cost of their table, filled once, with that of the coarse turns, one a head for as many
// positions.
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
    turn_table::write(r, 0, memory.coarse.data());
    const auto distance_of = [&](index_t i) {
        return new_position(i) - index_t{from[static_cast<std::size_t>(i)]};
    };
    const auto rotate = [&](index_t distance, float* row) {
        const index_t fine = distance & (table.fine_turns() - 1); // of a power of two, below 0 too
        if (distance - fine != coarse_of) {
            coarse_of = distance - fine;
            turn_table::write(r, coarse_of, memory.coarse.data());
        }
        const kernels::turn_row turn{coarse, coarse + r.pairs()};
        if (r.pairing == rope_pairing::half_split) {
            kernels::rotate_half_split(turn, table.fine(fine), r.pairs(), row);
        } else {
            kernels::rotate_interleaved(turn, table.fine(fine), r.pairs(), row);
        }
    };
    const index_t length = extent(rows, 2);
    const auto count = static_cast<index_t>(from.size());
    for (index_t first = 0; first < count;) { // runs of rows that move
        index_t end = first;
        while (end < count && end - first < rotation_scratch::tile_rows && distance_of(end) != 0) { ++end; }
        if (end == first) {
            ++first;
            continue;
        }
        if (writable_floats(rows, head, first) != nullptr) {
            for (; first < end; ++first) { rotate(distance_of(first), writable_floats(rows, head, first)); }
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
