// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Moves the survivors of each head to its first rows, inside the engine's own buffer.
//
//   row i of head g  <-  row plan.row(g)[i]          ascending, so a forward copy never overwrites an unread row
//
// Works on any memory order (head-major, token-major, transposed V, negative strides) without a second
// buffer. Rows behind the survivors keep stale data; each head's buffer still starts where it did. To give
// the memory back in one piece, see compact/flat.hpp.
//
// A cache of another kind takes part with move_row(head, from, to) and a row count per head.
// Errors: errc::plan_mismatch, with the cache unchanged. Cost: every moved row read and written once.

#include <kvtrim/compact/check_plan.hpp>

#include <cstring>

namespace kvtrim {

template <class V>
concept movable_rows = requires(const V& v, index_t i) {
    { v.extent(0) } -> std::convertible_to<index_t>;
    v.move_row(i, i, i);
};

namespace detail {

// Calls fn(from, to, count) for each run of neighbouring survivors that moves.
template <class Fn>
void for_each_moved_run(std::span<const keep_plan::table_index> kept, Fn&& fn) {
    for (std::size_t i = 0; i < kept.size();) {
        std::size_t end = i + 1;
        while (end < kept.size() && kept[end] == kept[end - 1] + 1) { ++end; }
        if (kept[i] != static_cast<keep_plan::table_index>(i)) {
            fn(index_t{kept[i]}, static_cast<index_t>(i), static_cast<index_t>(end - i));
        }
        i = end;
    }
}

template <class V>
void move_strided_run(const V& cache, index_t head, index_t from, index_t to, index_t count) {
    using element = std::remove_cvref_t<decltype(*cache.data_handle())>;
    const auto row = static_cast<index_t>(cache.stride(1));
    const auto step = static_cast<index_t>(cache.stride(2));
    const index_t length = extent(cache, 2);
    if (length == 0) { return; } // rows without elements may have no memory
    auto* base = cache.data_handle() + head * static_cast<index_t>(cache.stride(0));
    if (step == 1) {
        const bool touching = row == length; // rows without gaps move as one block
        const index_t blocks = touching ? 1 : count;
        const auto bytes = static_cast<std::size_t>(touching ? count * length : length) * sizeof(element);
        for (index_t i = 0; i < blocks; ++i) {
            std::memmove(base + (to + i) * row, base + (from + i) * row, bytes);
        }
        return;
    }
    for (index_t d = 0; d < length; ++d) { // transposed: one channel after the other
        auto* channel = base + d * step;
        for (index_t i = 0; i < count; ++i) { channel[(to + i) * row] = channel[(from + i) * row]; }
    }
}

} // namespace detail

// Compacts one tensor [kv_heads, tokens, head_dim].
template <class V>
    requires(strided_view<V, 3> || movable_rows<V>)
[[nodiscard]] status compact_in_place(const V& cache, const keep_plan& plan,
                                      compaction_report* report = nullptr) {
    if (const status s = check_plan(cache, plan); !s.ok()) { return s; }
    for (index_t g = 0; g < extent(cache, 0); ++g) {
        detail::for_each_moved_run(plan.row(g), [&](index_t from, index_t to, index_t count) {
            if constexpr (movable_rows<V>) {
                for (index_t i = 0; i < count; ++i) { cache.move_row(g, from + i, to + i); }
            } else {
                detail::move_strided_run(cache, g, from, to, count);
            }
        });
    }
    if constexpr (!movable_rows<V>) {
        using element = std::remove_cvref_t<decltype(*cache.data_handle())>;
        if (report != nullptr) { *report = report_rows<element>(cache, plan); }
    }
    return {};
}

// Compacts keys and values; both are checked before either is changed.
template <class K, class V>
[[nodiscard]] status compact_in_place(const K& keys, const V& values, const keep_plan& plan,
                                      compaction_report* report = nullptr) {
    if (const status s = check_plan(values, plan); !s.ok()) { return s; }
    compaction_report of_keys;
    if (const status s = compact_in_place(keys, plan, &of_keys); !s.ok()) { return s; }
    compaction_report of_values;
    const status s = compact_in_place(values, plan, &of_values);
    if (report != nullptr) { *report = of_keys + of_values; }
    return s;
}

} // namespace kvtrim
