// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Closes up keys and positions of a cache during generation: the gaps that cuts left between rotary positions are removed,
// so that the sequence has as many more positions at its end.
//
//   close_up(keys, positions, rope, options, memory)                        keys of a cache after any number of cuts
//   cut_and_close(keys, values, positions, plan, rope, options, memory)     one cut: rows, keys and positions
//
//   row i of head g  ->  rotary position  next_position() - tokens(g) + i     behind the pinned rows, which stay
//
// So the newest cached token is directly before the next one in every head, whatever the heads' lengths; heads of one length
// have the positions 0, 1, 2, ... The loop of an engine whose context has `most` positions:
//
//     if (decode.is_due(positions, n)) { ... s = compact_in_place(keys, values, plan); s = positions.compact(plan); ... }
//     if (positions.next_position() + n > most) { s = close_up(keys, positions, rope, {}, memory); }
//     ... rotate the n queries and keys to next_position() + 0 ... n - 1, cache them; s = positions.append(n); ...
//
// Drift: each call rounds the keys that move once more (compact/rerotate_keys.hpp has the numbers). The loop above calls
// it at most once in `most` - tokens positions, however many cuts lie between; a call after every cut adds an error for
// each.
//
// Pinned rows are never written. Errors, with keys, values and positions
// unchanged: those of rerotate_keys, compact_in_place and cache_positions. Cost and workspace: rerotate_keys_bytes(keys,
// rope).

#include <kvtrim/cache/check_outputs.hpp>
#include <kvtrim/compact/compact_in_place.hpp>
#include <kvtrim/compact/rerotate_keys.hpp>
#include <kvtrim/decode/cache_positions.hpp>

namespace KVTRIM_NAMESPACE {

namespace detail {

// The rotary positions of a cache, as rerotate() reads old positions.
struct rotary_rows {
    const cache_positions& cached;

    [[nodiscard]] status validate() const { return cached.validate(); }
    [[nodiscard]] index_t heads() const { return cached.kv_heads(); }
    [[nodiscard]] std::span<const cache_positions::position> row(index_t head) const {
        return cached.rotary_positions(head);
    }
};

// Whether rotating the keys would change the values, too.
template <class Values, class Keys>
[[nodiscard]] bool lies_over_rotated_channels(const Values& values, const Keys& keys, const rope& r) {
    if (r.rotary_dim() == 0) { return false; }
    const auto rotated = memory_of(first_channels(keys, r.rotary_dim()));
    return std::any_of(rotated.begin(), rotated.end(),
                       [&](const strided_bytes& m) { return shares_bytes(values, m); });
}

} // namespace detail

/// Rotates the keys and records their new positions. Returns plan_mismatch if the cache has fewer rows or other heads than
/// positions, or what the view, the rope, the positions or the workspace say; with nothing changed.
template <class Keys, class Executor = serial_executor>
[[nodiscard]] status close_up(const Keys& keys, cache_positions& positions, const rope& r,
                              const close_up_options& options, workspace& scratch, Executor&& ex = {}) {
    if (const status s = positions.validate(options); !s.ok()) { return s; }
    if (const status s = positions.reserve_close_up(); !s.ok()) { return s; } // may throw: before all changes
    const index_t pinned = options.pinned_tokens, next = positions.closed_next_position(options);
    const auto new_position = [&](index_t g, index_t i) {
        return i < pinned ? index_t{positions.rotary_positions(g)[static_cast<std::size_t>(i)]}
                          : next - positions.tokens(g) + i;
    };
    if (const status s = detail::rerotate(keys, r, detail::rotary_rows{positions}, new_position, scratch, ex);
        !s.ok()) {
        return s;
    }
    return positions.close_up(options);
}

/// Keeps what the plan keeps, and closes up. The plan must keep the pinned rows. Values may lie in the keys' rows (MLA), but
/// not over the channels that are rotated: views_overlap. Returns what close_up() and compact_in_place() say, with nothing
/// changed.
template <class Keys, class Values, class Executor = serial_executor>
[[nodiscard]] status cut_and_close(const Keys& keys, const Values& values, cache_positions& positions,
                                   const keep_plan& plan, const rope& r, const close_up_options& options,
                                   workspace& scratch, Executor&& ex = {}) {
    // Every error of close_up() is checked before a row moves.
    const index_t pinned = options.pinned_tokens;
    if (const status s = positions.validate(options); !s.ok()) { return s; }
    if (const status s = positions.validate(plan); !s.ok()) { return s; }
    for (index_t g = 0; g < plan.rows() && pinned > 0; ++g) {
        if (plan.kept_tokens(g) < pinned || plan.row(g)[static_cast<std::size_t>(pinned - 1)] != pinned - 1) {
            return {errc::invalid_parameter, "cut_and_close: the plan must keep the pinned tokens", pinned};
        }
    }
    if (const status s = detail::validate_rotation(keys, r, detail::rotary_rows{positions}); !s.ok()) {
        return s;
    }
    if (detail::lies_over_rotated_channels(values, keys, r)) {
        return {errc::views_overlap,
                "cut_and_close: values lie over the channels of the keys that are rotated"};
    }
    const index_t bytes = rerotate_keys_bytes(keys, r);
    if (!scratch.holds(bytes)) { return scratch.too_small(bytes); }
    if (const status s = positions.reserve_close_up(); !s.ok()) { return s; }
    if (const status s = compact_in_place(keys, values, plan); !s.ok()) { return s; }
    if (const status s = positions.compact(plan); !s.ok()) { return s; }
    return close_up(keys, positions, r, options, scratch, ex);
}

} // namespace KVTRIM_NAMESPACE
