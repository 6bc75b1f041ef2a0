// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Rotates cached keys from the positions they were made for to new ones, in place: survivors close up, so that a
// sequence may go on beyond the model's context, or a cut cache looks like a short prompt.
//
//   k[g, i]  <-  R(to[g, i] - from[g, i]) k[g, i]          R: the model's RoPE (cache/rope.hpp)
//
//   rerotate_keys(keys, rope, from, ...)       row i of each head gets position i
//   rerotate_keys(keys, rope, from, to, ...)   any new positions
//
// keys [kv_heads, tokens, head_dim]: any view that rows can be written to (row_store: strided, filled, ragged, paged_rows
// of a pool that is not const, indexed_rows, ggml_rows, scaled_rows, ...); the first rows of each head are the survivors.
// The rotary channels are the first of each row; where they are not (MLA), pass the view of just those channels. `from`
// holds the positions that the rows are rotated to now: positions_of(plan) after the first cut of a cache. For a cache
// that is cut again and again, cache_positions keeps them (decode/close_up.hpp).
//
// Source: kvpress@8bb29b9 key_rerotation_press.py.
// Departures: angles and the sums of angles in double (there: float, 5e-4 off at position 4096); interleaved pairs,
// partial rotary dimension, any table of frequencies. The attention factor is in the keys already and stays.
// Frequencies that the model changes with the length (dynamic NTK) have no such rotation.
//
// A row whose position stays is not touched. Of a row that moves, the channels behind the rotary ones keep their bits, except
// for those that share a quantised block, or a row's own scale, with rotary ones.
//
// Numerics: float, then one rounding of the element or one encoding (kernels/encode.hpp) for each rotation. Rounding to
// nearest loses turns of less than half a step, so the errors of many small rotations do not cancel, they add up. A
// random key of 128 channels (base 10000) that is moved by n positions, its mean error as a share of its length:
//
//              n rotations by 1 position            1 rotation by n
//          n = 1       16      256     2048         n = 1 ... 2048
//   bf16   0.14 %    1.2 %     13 %     80 %        0.14 ... 0.17 %
//   f16    0.020 %   0.19 %    2.0 %    12 %        0.020 ... 0.021 %
//   q8_0   0.43 %    3.5 %     37 %    126 %        0.43 ... 0.53 %
//   q4_0   5.3 %      35 %    220 %    grows        5.3 ... 8.5 %
//
// So rotate seldom and by many positions, not after every cut. cache_positions adds shifts up as integers, and close_up()
// rotates once for all cuts before it (decode/close_up.hpp).
// Cost: every row that moves read and written once; a complex product per pair and row, a sine and cosine per pair for
// some rows. Workspace: a table of turns, a tile of rows per KV head, a bit per page or slot of the cache.

#include <kvtrim/compact/moved_views.hpp>
#include <kvtrim/compact/rotate_head.hpp>
#include <kvtrim/core/for_each_item.hpp>
#include <kvtrim/plan/row_positions.hpp>

#include <algorithm>
#include <cstdint>

namespace KVTRIM_NAMESPACE {

namespace detail {

// Pages or slots that rows are written to: [lowest, lowest + count) holds them all.
struct place_range {
    std::span<const std::int32_t> places;
    index_t lowest = 0;
    index_t count = 0;
};

template <class V>
[[nodiscard]] place_range written_places(const V& keys) {
    if constexpr (requires { keys.written_places(); }) {
        const std::span<const std::int32_t> places = keys.written_places();
        if (places.empty()) { return {}; }
        const auto [lowest, highest] = std::minmax_element(places.begin(), places.end());
        return {places, *lowest, index_t{*highest} - *lowest + 1};
    } else {
        return {};
    }
}

[[nodiscard]] constexpr index_t seen_words(const place_range& range) {
    return (range.count + 63) / 64;
}

// seen [seen_words(range)]
[[nodiscard]] inline bool is_any_place_twice(const place_range& range, std::span<std::uint64_t> seen) {
    std::fill(seen.begin(), seen.end(), std::uint64_t{0});
    for (const std::int32_t place : range.places) {
        const auto bit = static_cast<std::uint64_t>(place - range.lowest);
        const std::uint64_t mask = std::uint64_t{1} << (bit % 64);
        if ((seen[bit / 64] & mask) != 0) { return true; }
        seen[bit / 64] |= mask;
    }
    return false;
}

// Checks a rotation of these rows, except for places that would be written twice. Positions: row_positions, or a
// class with its heads(), row() and validate().
template <class V, class Positions>
[[nodiscard]] status validate_rotation(const V& keys, const rope& r, const Positions& from) {
    if (const status s = kvtrim::validate(keys); !s.ok()) { return s; }
    if (const status s = valid_rope(r); !s.ok()) { return s; }
    if (const status s = from.validate(); !s.ok()) { return s; }
    if (r.rotary_dim() > extent(keys, 2)) {
        return {errc::invalid_parameter, "rerotate_keys: rope rotates at most head_dim channels",
                extent(keys, 2)};
    }
    if (from.heads() != extent(keys, 0)) {
        return {errc::plan_mismatch, "the positions have another number of heads than the cache"};
    }
    for (index_t g = 0; g < extent(keys, 0); ++g) {
        if (static_cast<index_t>(from.row(g).size()) > row_count(keys, g)) {
            return {errc::plan_mismatch, "there are positions for rows that the cache does not have"};
        }
    }
    if constexpr (requires { keys.heads_move_together(); }) {
        if (keys.heads_move_together()) {
            return {errc::invalid_parameter,
                    "rerotate_keys: heads that share blocks cannot be encoded one by one"};
        }
    }
    if constexpr (requires { keys.writes_rows(); }) {
        if (!keys.writes_rows()) {
            return {errc::invalid_parameter, "rerotate_keys: rows of this type are read, but not written"};
        }
    }
    const auto memory = memory_of(keys);
    if (const status s = check_movable(memory); !s.ok()) { return s; } // they would be rotated twice
    if constexpr (requires { from.positions; }) {                      // of memory of the caller
        if (const status s = check_tables(memory, from.offsets, from.positions); !s.ok()) { return s; }
    }
    return check_tables(memory, keys);
}

} // namespace detail

/// Bytes of workspace that rerotate_keys() takes; 0 where there is nothing to rotate or the view is not valid. O(pages).
template <class V, class Executor = serial_executor>
[[nodiscard]] index_t rerotate_keys_bytes(const V& keys, const rope& r, const Executor& ex = {}) {
    const bool empty = extent(keys, 0) == 0 || extent(keys, 1) == 0 || r.rotary_dim() == 0;
    if (empty || r.rotary_dim() > extent(keys, 2) || !validate(keys).ok()) { return 0; }
    workspace counting = workspace::counting();
    static_cast<void>(detail::turn_table(detail::count_fine_turns(keys), r.pairs(), counting));
    static_cast<void>(counting.take<std::uint64_t>(detail::seen_words(detail::written_places(keys))));
    const index_t of_head = detail::rotation_scratch::bytes(r, detail::rotary_row_length(keys, r));
    static_cast<void>(counting.take<std::byte>(for_each_item_bytes(ex, extent(keys, 0), of_head)));
    return counting.needed_bytes();
}

namespace detail {

template <class V, class Positions, class NewPosition, class Executor>
[[nodiscard]] status rerotate(const V& keys, const rope& r, const Positions& from, NewPosition&& new_position,
                              workspace& scratch, Executor& ex) {
    static_assert(row_store<V>,
                  "kvtrim: rerotate_keys writes rows: pass a view of elements that are not const and that "
                  "floats can become (element_traits::from_float), or a source with store_rows(head, first, "
                  "count, const float* tile); see cache/row_source.hpp");
    if constexpr (row_store<V>) { // so that the static_assert above is the only error message
        if (const status s = validate_rotation(keys, r, from); !s.ok()) { return s; }
        const index_t bytes = rerotate_keys_bytes(keys, r);
        if (bytes == 0) { return {}; }
        if (!scratch.holds(bytes)) { return scratch.too_small(bytes); }
        const workspace::frame frame(scratch);
        const turn_table table(count_fine_turns(keys), r.pairs(), scratch);
        const place_range range = written_places(keys);
        if (is_any_place_twice(range, scratch.take<std::uint64_t>(seen_words(range)))) {
            return {errc::invalid_table,
                    "rerotate_keys: a page or slot that stands twice would be rotated twice"};
        }
        table.fill(r);
        const index_t row_length = rotary_row_length(keys, r);
        return for_each_item(extent(keys, 0), rotation_scratch::bytes(r, row_length), scratch, ex,
                             [&](index_t g, workspace& own) {
                                 const rotation_scratch memory(r, row_length, own);
                                 with_rotary_rows(keys, g, r, [&](const auto& rows, index_t head) {
                                     rotate_head(
                                         rows, head, r, from.row(g),
                                         [&](index_t i) { return new_position(g, i); }, table, memory);
                                 });
                             });
    } else {
        return {};
    }
}

} // namespace detail

/// Rotates row i of each head from position from.row(head)[i] to i. Returns what validate(keys), valid_rope() or from.validate()
/// says, plan_mismatch (heads or rows that the cache does not have), invalid_parameter (more rotary channels than a row has,
/// heads that share blocks, rows that cannot be written), invalid_table (a page or slot that would be rotated twice),
/// views_overlap or workspace_too_small; with the keys unchanged.
template <class V, class Executor = serial_executor>
[[nodiscard]] status rerotate_keys(const V& keys, const rope& r, const row_positions& from,
                                   workspace& scratch, Executor&& ex = {}) {
    return detail::rerotate(
        keys, r, from, [](index_t, index_t i) { return i; }, scratch, ex);
}

/// Rotates row i of head g to position to.row(g)[i]. Returns what the call without `to` does, what to.validate() says, or
/// plan_mismatch unless `to` has the rows of `from`; with the keys unchanged.
template <class V, class Executor = serial_executor>
[[nodiscard]] status rerotate_keys(const V& keys, const rope& r, const row_positions& from,
                                   const row_positions& to, workspace& scratch, Executor&& ex = {}) {
    if (const status s = from.validate(); !s.ok()) { return s; }
    if (const status s = to.validate(); !s.ok()) { return s; }
    bool same_rows = from.heads() == to.heads();
    for (index_t g = 0; same_rows && g < from.heads(); ++g) {
        same_rows = from.row(g).size() == to.row(g).size();
    }
    if (!same_rows) {
        return {errc::plan_mismatch, "rerotate_keys: old and new positions must have the same rows"};
    }
    if (const status s = check_tables(memory_of(keys), to.offsets, to.positions); !s.ok()) { return s; }
    const auto new_position = [&](index_t g, index_t i) {
        return index_t{to.row(g)[static_cast<std::size_t>(i)]};
    };
    return detail::rerotate(keys, r, from, new_position, scratch, ex);
}

} // namespace KVTRIM_NAMESPACE
