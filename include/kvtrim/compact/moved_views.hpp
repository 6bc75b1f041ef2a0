// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Whether rows of one or two views can be moved without being moved twice or overwriting each other. Every call that moves
// rows checks it before it moves any.
//
//   apart     no byte in common, also where both lie between each other in one buffer: each is moved
//   inside    each row of one view lies in the row of the same head and token of the other (MLA: values are the latent part
//             of the keys; or both are one tensor): moved once, with the outer rows
//   else      refused: errc::views_overlap. So is a view whose own rows overlap (a stride of 0, or below the row length), and one
//             whose tables (lengths, offsets, pages, positions, scales that rows share) lie in rows that change
//
// Calls that write elsewhere than where they read: cache/check_outputs.hpp.
// What a view's rows occupy is known of strided views, and of others that say it: memory(), an array of strided_bytes with
// all that move_row() writes (cache/strided_bytes.hpp). Of a view that does not, nothing is checked, and it is moved.
// Source of the fault: llama.cpp#8862, ik_llama.cpp#400 (caches whose V is a part of K).
// Cost: O(1), see cache/strided_bytes.hpp.

#include <kvtrim/cache/row_source.hpp>

namespace KVTRIM_NAMESPACE {

/// Whether rows in this memory may move at all. Returns invalid_parameter or views_overlap.
[[nodiscard]] inline status check_movable(std::span<const strided_bytes> memory) {
    for (std::size_t i = 0; i < memory.size(); ++i) {
        if (const status s = memory[i].validate(); !s.ok()) { return s; }
        const auto earlier = memory.first(i);
        const auto shares = [&](const strided_bytes& other) { return overlap(other, memory[i]); };
        if (overlaps_itself(memory[i]) || std::any_of(earlier.begin(), earlier.end(), shares)) {
            return {errc::views_overlap,
                    "rows of one view overlap each other: moving one would destroy another"};
        }
    }
    return {};
}

/// Whether rows that change lie apart from the tables of these views, and from these lists. Returns views_overlap.
template <class... Read>
[[nodiscard]] status check_tables(std::span<const strided_bytes> changed, const Read&... read) {
    for (const strided_bytes& m : changed) {
        if ((tables_share_bytes(read, m) || ...)) {
            return {errc::views_overlap, "a table lies in the memory of the rows that it finds or decodes"};
        }
    }
    return {};
}

/// Which of two views are moved, so that the rows of both are.
struct moved_views {
    bool first = true;  ///< the first view's rows
    bool second = true; ///< the second view's rows
};

/// Checks both memories and what they have in common. Returns invalid_parameter or views_overlap, with `moved` unchanged.
[[nodiscard]] inline status check_movable(std::span<const strided_bytes> a, std::span<const strided_bytes> b,
                                          moved_views& moved) {
    for (const auto memory : {a, b}) {
        if (const status s = check_movable(memory); !s.ok()) { return s; }
    }
    const auto any_overlap = [](std::span<const strided_bytes> of, const strided_bytes& m) {
        return std::any_of(of.begin(), of.end(), [&](const strided_bytes& o) { return overlap(o, m); });
    };
    if (std::none_of(b.begin(), b.end(), [&](const strided_bytes& m) { return any_overlap(a, m); })) {
        moved = {};
        return {};
    }
    const auto lies_in = [](std::span<const strided_bytes> inner, std::span<const strided_bytes> outer) {
        return std::all_of(inner.begin(), inner.end(), [&](const strided_bytes& m) {
            return std::any_of(outer.begin(), outer.end(),
                               [&](const strided_bytes& o) { return m.empty() || rows_contain(o, m); });
        });
    };
    if (lies_in(b, a)) {
        moved = {.first = true, .second = false};
    } else if (lies_in(a, b)) {
        moved = {.first = false, .second = true};
    } else {
        return {errc::views_overlap,
                "keys and values share memory, but not the same rows: moving one would destroy the other"};
    }
    return {};
}

} // namespace KVTRIM_NAMESPACE
