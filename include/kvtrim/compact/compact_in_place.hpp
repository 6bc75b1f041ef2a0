// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Moves the survivors of each head to its first rows, inside the engine's own buffer.
//
//   row i of head g  <-  row plan.row(g)[i]          ascending, so a forward copy never overwrites an unread row
//
// Works on any memory order (head-major, token-major, transposed V, negative strides) without a second
// buffer. Rows behind the survivors keep stale data; each head's buffer still starts where it did. To give
// the memory back in one piece, see compact/compact_to_flat.hpp.
//
// A cache of another kind takes part with move_row(head, from, to) and a row count per head; asked for a report, it must
// also say what a row occupies: row_bytes(); so that overlaps are found, memory() (compact/moved_views.hpp). Where heads share
// memory it moves whole tokens: heads_move_together(), move_token(from, to) and token_bytes(); a plan must then keep the
// same tokens of every head.
// Keys and values may share memory: rows of values inside the rows of keys (MLA) or the same tensor move once.
// Errors: what validate(view) says; plan_mismatch; views_overlap. The cache is unchanged then.
// Cost: every moved row read and written once.

#include <kvtrim/compact/check_plan.hpp>
#include <kvtrim/compact/moved_views.hpp>
#include <kvtrim/kernels/row_mover.hpp>

#include <algorithm>

namespace KVTRIM_NAMESPACE {

/// A cache of another kind that can be compacted in place: row counts per head, and rows (or whole tokens) that it moves
/// itself.
template <class V>
concept movable_rows = requires(const V& v, index_t i) {
    { v.extent(0) } -> std::convertible_to<index_t>;
    v.move_row(i, i, i);
};

namespace detail {

// Whether a row of one head cannot move alone.
template <class V>
[[nodiscard]] bool heads_move_together(const V& cache) {
    if constexpr (requires { cache.heads_move_together(); }) { return cache.heads_move_together(); }
    return false;
}

// What check_plan() answers, and plan_mismatch for a plan that keeps different tokens of heads that can only move together.
template <class V>
[[nodiscard]] status check_moves(const V& cache, const keep_plan& plan) {
    if (const status s = check_plan(cache, plan); !s.ok() || !heads_move_together(cache)) { return s; }
    for (index_t g = 1; g < plan.rows(); ++g) {
        if (!std::ranges::equal(plan.row(g), plan.row(0))) {
            return {errc::plan_mismatch,
                    "heads of this cache move together: the plan must keep the same tokens of every head"};
        }
    }
    return {};
}

// Moves the survivors of a head whose rows have strides.
template <class V>
void move_strided_rows(const V& cache, index_t head, std::span<const keep_plan::table_index> kept,
                       const kernels::row_mover& mover) {
    const auto row = static_cast<index_t>(cache.stride(1));
    const auto step = static_cast<index_t>(cache.stride(2));
    const index_t length = extent(cache, 2);
    if (length == 0 || kept.empty()) { return; } // such rows may have no memory
    auto* base = cache.data_handle() + head * static_cast<index_t>(cache.stride(0));
    if (step == 1) {
        mover.move(kept.size(), [&](std::size_t i) {
            return kernels::row_move{base + kept[i] * row, base + static_cast<index_t>(i) * row};
        });
        return;
    }
    for (index_t d = 0; d < length; ++d) { // transposed: one channel after the other
        auto* channel = base + d * step;
        for (std::size_t i = 0; i < kept.size(); ++i) {
            channel[static_cast<index_t>(i) * row] = channel[kept[i] * row];
        }
    }
}

// Moves the survivors of a plan that fits the cache.
template <class V>
void move_survivors(const V& cache, const keep_plan& plan) {
    if constexpr (requires { cache.move_survivors(plan); }) { // of a type known at run time only
        cache.move_survivors(plan);
        return;
    }
    if constexpr (requires { cache.move_token(index_t{}, index_t{}); }) {
        if (cache.heads_move_together() && plan.rows() > 0) {
            const auto kept = plan.row(0);
            for (std::size_t i = 0; i < kept.size(); ++i) {
                const auto to = static_cast<index_t>(i);
                if (kept[i] != to) { cache.move_token(kept[i], to); }
            }
            return;
        }
    }
    if constexpr (movable_rows<V>) {
        for (index_t g = 0; g < extent(cache, 0); ++g) {
            const auto kept = plan.row(g);
            for (std::size_t i = 0; i < kept.size(); ++i) {
                const auto to = static_cast<index_t>(i);
                if (kept[i] != to) { static_cast<void>(cache.move_row(g, kept[i], to)); }
            }
        }
    } else {
        const index_t row_size = extent(cache, 2) * static_cast<index_t>(sizeof(*cache.data_handle()));
        const kernels::row_mover mover(row_size, plan.total_tokens() * row_size);
        for (index_t g = 0; g < extent(cache, 0); ++g) { move_strided_rows(cache, g, plan.row(g), mover); }
    }
}

template <class V>
[[nodiscard]] compaction_report report_in_place(const V& cache, const keep_plan& plan) {
    static_assert(knows_row_bytes<V>,
                  "kvtrim: compact_in_place reports bytes: give a cache that moves its own rows the member "
                  "row_bytes(), or ask for no report; see compact/compact_in_place.hpp");
    if constexpr (requires { cache.token_bytes(); }) {
        if (cache.heads_move_together() && plan.rows() > 0) {
            return {extent(cache, 1) * cache.token_bytes(), plan.kept_tokens(0) * cache.token_bytes()};
        }
    }
    return report_rows(cache, plan, row_bytes(cache), row_bytes(cache));
}

template <class V>
constexpr void require_writable() {
    if constexpr (!movable_rows<V>) {
        static_assert(
            !std::is_const_v<std::remove_reference_t<decltype(*std::declval<const V&>().data_handle())>>,
            "kvtrim: compact_in_place moves rows: pass a view of elements that are not const");
    }
}

// Moves what `moved` says after all checks.
template <class K, class V>
[[nodiscard]] status compact_both(const K& keys, const V& values, const keep_plan& plan, moved_views& moved) {
    require_writable<K>();
    require_writable<V>();
    if (const status s = check_moves(keys, plan); !s.ok()) { return s; }
    if (const status s = check_moves(values, plan); !s.ok()) { return s; }
    const auto key_memory = memory_of(keys);
    const auto value_memory = memory_of(values);
    if (const status s = check_movable(key_memory, value_memory, moved); !s.ok()) { return s; }
    if (const status s = check_tables(key_memory, keys, values); !s.ok()) { return s; }
    if (const status s = check_tables(value_memory, keys, values); !s.ok()) { return s; }
    if (moved.first) { move_survivors(keys, plan); }
    if (moved.second) { move_survivors(values, plan); }
    return {};
}

} // namespace detail

/// Compacts one tensor [kv_heads, tokens, head_dim]. Returns what validate(view) says, plan_mismatch, or views_overlap where rows
/// share bytes with each other or with a table of the view; with the cache unchanged.
template <class V>
    requires(strided_view<V, 3> || movable_rows<V>)
[[nodiscard]] status compact_in_place(const V& cache, const keep_plan& plan) {
    detail::require_writable<V>();
    if (const status s = detail::check_moves(cache, plan); !s.ok()) { return s; }
    const auto memory = memory_of(cache);
    if (const status s = check_movable(memory); !s.ok()) { return s; }
    if (const status s = check_tables(memory, cache); !s.ok()) { return s; }
    detail::move_survivors(cache, plan);
    return {};
}

/// The same, with a report unless it is null.
template <class V>
    requires(strided_view<V, 3> || movable_rows<V>)
[[nodiscard]] status compact_in_place(const V& cache, const keep_plan& plan, compaction_report* report) {
    const status s = compact_in_place(cache, plan);
    if (s.ok() && report != nullptr) { *report = detail::report_in_place(cache, plan); }
    return s;
}

/// Compacts keys and values. Returns what the call for one tensor does, or views_overlap where both share memory but not the same
/// rows; with both unchanged.
template <class K, class V>
[[nodiscard]] status compact_in_place(const K& keys, const V& values, const keep_plan& plan) {
    moved_views moved;
    return detail::compact_both(keys, values, plan, moved);
}

/// The same, with a report unless it is null: bytes that both share are counted once.
template <class K, class V>
[[nodiscard]] status compact_in_place(const K& keys, const V& values, const keep_plan& plan,
                                      compaction_report* report) {
    moved_views moved;
    const status s = detail::compact_both(keys, values, plan, moved);
    if (s.ok() && report != nullptr) {
        compaction_report all;
        if (moved.first) { all = all + detail::report_in_place(keys, plan); }
        if (moved.second) { all = all + detail::report_in_place(values, plan); }
        *report = all;
    }
    return s;
}

} // namespace KVTRIM_NAMESPACE
