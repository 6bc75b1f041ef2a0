// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Rotates cached keys from the positions they were made for to new ones, in place: survivors close up, so that a
// sequence may go on beyond the model's context, or a cut cache looks like a short prompt.
//
//   k[g, i]  <-  R(to[g, i] - from[g, i]) k[g, i]          R: the model's RoPE (base/rope.hpp)
//
//   rerotate_keys(keys, rope, from, ...)       row i of each head gets position i
//   rerotate_keys(keys, rope, from, to, ...)   any new positions
//
// `from` holds the positions that the rows are rotated to now: positions_of(plan) after the first cut of a cache, later
// what the engine stored (keep_plan::gather_positions). Rotate once, from those to the new ones: each time rounds again.
// Run it after a compaction of keys [kv_heads, tokens, head_dim] in any strides (the first rows of each head are the
// survivors), or of a ragged cache. The rotary channels are the first of each row; where they are not (MLA), pass
// the strided view of just those channels.
//
// Source: kvpress@8bb29b9 key_rerotation_press.py.
// Departures: angles and the sums of angles in double (there: float, 5e-4 off at position 4096); interleaved pairs,
// partial rotary dimension, any table of frequencies. The attention factor is in the keys already and stays.
// Frequencies that the model changes with the length (dynamic NTK) have no such rotation.
// A row whose position stays is not touched. Errors: plan_mismatch, invalid_parameter or workspace_too_small, with the
// keys unchanged. Numerics: equal to rotating from scratch within the rounding of the element, and float's.
// Cost: every row read and written once; a complex product per pair and row, a sine and cosine per pair for some rows.
// Workspace: a table of turns, and a tile of rows per KV head.

#include <kvtrim/base/for_each_item.hpp>
#include <kvtrim/base/ragged.hpp>
#include <kvtrim/base/rope.hpp>
#include <kvtrim/kernels/narrow.hpp>
#include <kvtrim/kernels/rotate.hpp>
#include <kvtrim/kernels/widen.hpp>
#include <kvtrim/plan/keep_plan.hpp>

#include <bit>

namespace kvtrim {

// The position of each row of each head, as a CSR table: row i of head g has positions[offsets[g] + i].
struct row_positions {
    std::span<const std::int32_t> offsets;   // [kv_heads + 1]
    std::span<const std::int32_t> positions; // [offsets[kv_heads]]

    [[nodiscard]] std::span<const std::int32_t> row(index_t head) const {
        const auto g = static_cast<std::size_t>(head);
        return positions.subspan(static_cast<std::size_t>(offsets[g]),
                                 static_cast<std::size_t>(offsets[g + 1] - offsets[g]));
    }
};

// Of a cache whose row t had position t before this plan cut it. The plan must outlive the view.
[[nodiscard]] inline row_positions positions_of(const keep_plan& plan) {
    return {plan.offsets(), plan.kept()};
}

namespace detail {

// R(distance) = R(coarse * block) R(fine) with 0 <= fine < block: a table of the fine turns for all heads, and one
// coarse turn per head that follows the rows. Survivors ascend, so it changes once in `block` positions.
class turn_table {
  public:
    turn_table(index_t block, index_t pairs, workspace& scratch)
        : block_(block), pairs_(pairs), fine_(scratch.take<double>(block * 2 * pairs)) {}

    void fill(const rope& r) const {
        for (index_t fine = 0; fine < block_; ++fine) { write(r, fine, fine_.data() + fine * 2 * pairs_); }
    }
    [[nodiscard]] index_t block() const { return block_; }
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
    index_t block_;
    index_t pairs_;
    std::span<double> fine_;
};

struct rotation_scratch {
    static constexpr index_t tile_rows = 16;

    std::span<double> coarse; // [2, pairs]
    std::span<float> tile;    // [tile_rows, rotary_dim]

    rotation_scratch(const rope& r, workspace& own)
        : coarse(own.take<double>(r.rotary_dim())), tile(own.take<float>(tile_rows * r.rotary_dim())) {}

    [[nodiscard]] static index_t bytes(const rope& r) {
        workspace counting = workspace::counting();
        static_cast<void>(rotation_scratch(r, counting));
        return counting.needed_bytes();
    }
};

// Balances the table, filled once, with the coarse turns, one for every `block` positions of each head.
template <class V>
[[nodiscard]] index_t turn_block(const V& keys) {
    const double balanced = std::sqrt(static_cast<double>(extent(keys, 0) * extent(keys, 1)));
    return std::clamp<index_t>(static_cast<index_t>(std::bit_ceil(static_cast<std::uint64_t>(balanced))), 16,
                               1024);
}

// The rotary channels of one head as a view [1, rows, rotary_dim].
template <class V>
[[nodiscard]] auto rotary_rows(const V& keys, index_t head, const rope& r) {
    if constexpr (strided_view<V, 3>) {
        const auto row = static_cast<index_t>(keys.stride(1));
        return strided(keys.data_handle() + head * static_cast<index_t>(keys.stride(0)),
                       {1, extent(keys, 1), r.rotary_dim()}, {0, row, static_cast<index_t>(keys.stride(2))});
    } else {
        return strided(keys.row(head, 0), {1, keys.rows(head), r.rotary_dim()}, {0, extent(keys, 2), 1});
    }
}

// load_rows, with the kernel for contiguous narrow elements.
template <class T>
void widen_rows(const strided<T, 3>& rows, index_t first, index_t count, float* tile) {
    if constexpr (kernels::is_widened<T>) {
        if (rows.stride(2) == 1) {
            for (index_t i = 0; i < count; ++i) {
                kernels::widen(rows.data_handle() + (first + i) * rows.stride(1), rows.extent(2),
                               tile + i * rows.extent(2));
            }
            return;
        }
    }
    load_rows(rows, 0, first, count, tile);
}

// Its opposite.
template <class T>
void narrow_rows(const float* tile, index_t first, index_t count, const strided<T, 3>& rows) {
    const index_t length = rows.extent(2);
    const index_t step = rows.stride(2);
    T* base = rows.data_handle() + first * rows.stride(1);
    if (step == 1) {
        for (index_t i = 0; i < count; ++i) {
            kernels::narrow(tile + i * length, length, base + i * rows.stride(1));
        }
        return;
    }
    for (index_t d = 0; d < length; ++d) { // transposed: channels outside, so that writes stay sequential
        for (index_t i = 0; i < count; ++i) {
            base[i * rows.stride(1) + d * step] = element_traits<T>::from_float(tile[i * length + d]);
        }
    }
}

template <class T, class NewPosition>
void rotate_head(const strided<T, 3>& rows, const rope& r, std::span<const std::int32_t> from,
                 NewPosition&& new_position, const turn_table& table, const rotation_scratch& memory) {
    const double* coarse = memory.coarse.data();
    index_t coarse_of = 0;
    turn_table::write(r, 0, memory.coarse.data());
    const auto rotate = [&](index_t i, float* row) {
        const index_t distance = new_position(i) - index_t{from[static_cast<std::size_t>(i)]};
        if (distance == 0) { return; }
        const index_t fine = distance & (table.block() - 1); // of a power of two, below 0 too
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
    const auto count = static_cast<index_t>(from.size());
    if constexpr (std::is_same_v<T, float>) {
        if (rows.stride(2) == 1) {
            for (index_t i = 0; i < count; ++i) { rotate(i, rows.data_handle() + i * rows.stride(1)); }
            return;
        }
    }
    for (index_t first = 0; first < count; first += rotation_scratch::tile_rows) {
        const index_t in_tile = std::min(rotation_scratch::tile_rows, count - first);
        widen_rows(rows, first, in_tile, memory.tile.data());
        for (index_t i = 0; i < in_tile; ++i) { rotate(first + i, memory.tile.data() + i * r.rotary_dim()); }
        narrow_rows(memory.tile.data(), first, in_tile, rows);
    }
}

} // namespace detail

template <class V, class Executor = serial_executor>
[[nodiscard]] index_t rerotate_keys_bytes(const V& keys, const rope& r, const Executor& ex = {}) {
    workspace counting = workspace::counting();
    static_cast<void>(detail::turn_table(detail::turn_block(keys), r.pairs(), counting));
    static_cast<void>(counting.take<std::byte>(
        for_each_item_bytes(ex, extent(keys, 0), detail::rotation_scratch::bytes(r))));
    return counting.needed_bytes();
}

namespace detail {

template <class V, class NewPosition, class Executor>
[[nodiscard]] status rerotate(const V& keys, const rope& r, const row_positions& from,
                              NewPosition&& new_position, workspace& scratch, Executor& ex) {
    KVTRIM_EXPECTS(r.rotary_dim() <= extent(keys, 2),
                   "rerotate_keys: rope rotates at most head_dim channels");
    if (const status s = valid_rope(r); !s.ok()) { return s; }
    if (static_cast<index_t>(from.offsets.size()) != extent(keys, 0) + 1) {
        return {errc::plan_mismatch, "the positions have another number of heads than the cache"};
    }
    KVTRIM_EXPECTS(from.positions.size() >= static_cast<std::size_t>(from.offsets.back()),
                   "rerotate_keys: positions must hold as many as offsets say");
    for (index_t g = 0; g < extent(keys, 0); ++g) {
        if (static_cast<index_t>(from.row(g).size()) > row_count(keys, g)) {
            return {errc::plan_mismatch, "there are positions for rows that the cache does not have"};
        }
    }
    if (r.rotary_dim() == 0) { return {}; }
    const index_t bytes = rerotate_keys_bytes(keys, r);
    if (!scratch.holds(bytes)) { return scratch.too_small(bytes); }
    const workspace::frame frame(scratch);
    const turn_table table(turn_block(keys), r.pairs(), scratch);
    table.fill(r);
    return for_each_item(extent(keys, 0), rotation_scratch::bytes(r), scratch, ex,
                         [&](index_t g, workspace& own) {
                             const rotation_scratch memory(r, own);
                             rotate_head(
                                 rotary_rows(keys, g, r), r, from.row(g),
                                 [&](index_t i) { return new_position(g, i); }, table, memory);
                         });
}

} // namespace detail

// Row i of each head gets position i.
template <class V, class Executor = serial_executor>
[[nodiscard]] status rerotate_keys(const V& keys, const rope& r, const row_positions& from,
                                   workspace& scratch, Executor&& ex = {}) {
    return detail::rerotate(
        keys, r, from, [](index_t, index_t i) { return i; }, scratch, ex);
}

// Row i of head g gets position to.row(g)[i]. Requires as many rows in `to` as in `from`.
template <class V, class Executor = serial_executor>
[[nodiscard]] status rerotate_keys(const V& keys, const rope& r, const row_positions& from,
                                   const row_positions& to, workspace& scratch, Executor&& ex = {}) {
    KVTRIM_EXPECTS(
        std::equal(from.offsets.begin(), from.offsets.end(), to.offsets.begin(), to.offsets.end()) &&
            to.positions.size() >= from.positions.size(),
        "rerotate_keys: old and new positions must have the same rows");
    const auto new_position = [&](index_t g, index_t i) {
        return index_t{to.row(g)[static_cast<std::size_t>(i)]};
    };
    return detail::rerotate(keys, r, from, new_position, scratch, ex);
}

} // namespace kvtrim
