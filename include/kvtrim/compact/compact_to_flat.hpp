// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Survivors of all heads as one flat ragged array, so that head-wise budgets free real memory.
//
//   out [plan.total_tokens(), head_dim]   rows of head 0, then of head 1, ...; plan.cu_seqlens() are its offsets
//
//   gather(cache, plan, out)       into a buffer of the caller's, from any view
//   compact_to_flat(cache, plan)   inside the cache's own buffer: everything behind the returned ragged view
//                                  is free in one piece (shrink, unmap or hand out)
//   compact_to_flat(keys, values, plan)   both, or neither
//
// In place is safe because survivor i of head g lands at offsets[g] + i, never behind its old place: head g
// started at g * tokens >= offsets[g] and its survivors ascend. No second buffer.
// Errors: what validate(view) says; plan_mismatch; invalid_parameter (an output that is too short, a cache with gaps);
// views_overlap (an output inside the cache; keys and values that share memory but are not the same rows: those that are
// move once). Nothing is written then. Cost: every survivor read and written once.

#include <kvtrim/cache/check_outputs.hpp>
#include <kvtrim/cache/ragged.hpp>
#include <kvtrim/cache/read_rows.hpp>
#include <kvtrim/compact/check_plan.hpp>
#include <kvtrim/compact/moved_views.hpp>
#include <kvtrim/kernels/row_mover.hpp>

namespace KVTRIM_NAMESPACE {

namespace detail {

// Copies the survivors of a head to `to`: rows that lie there as such elements are moved, others are read one by one.
template <class V, class T>
void gather_head(const V& cache, index_t head, std::span<const keep_plan::table_index> kept,
                 const kernels::row_mover& mover, T* to) {
    const index_t length = extent(cache, 2);
    if constexpr (std::is_same_v<stored_element<V>, T>) {
        const element_rows<T> rows = rows_in_place(cache, head, 0, row_count(cache, head));
        if (rows.data != nullptr) {
            mover.move(kept.size(), [&](std::size_t i) {
                return kernels::row_move{rows.row(kept[i]), to + static_cast<index_t>(i) * length};
            });
            return;
        }
    }
    for (const auto token : kept) {
        load_rows(cache, head, token, 1, to);
        to += length;
    }
}

} // namespace detail

/// Copies the survivors of a cache into out: bit for bit where the cache keeps elements of out's type, else as floats, and out
/// is of floats. out holds total_tokens * head_dim elements, and is not in the cache's memory: compact_to_flat is for that.
/// The report sets what the source's rows occupy against what was written; a source of floats that does not say what a
/// row occupies (row_bytes()) counts as if it held them. Returns what validate(view) says, plan_mismatch, invalid_parameter for
/// a cache of other elements than out's or an out that is too short (needed: elements), or views_overlap; with nothing written.
template <class V, class T>
    requires(cache_view<V>)
[[nodiscard]] status gather(const V& cache, const keep_plan& plan, std::span<T> out,
                            compaction_report* report = nullptr) {
    static_assert(std::is_same_v<T, float> || std::is_same_v<T, stored_element<V>>,
                  "kvtrim: gather needs an output of floats, or of the cache's own elements");
    if (const status s = check_plan(cache, plan); !s.ok()) { return s; }
    if (!std::is_same_v<T, float> && !keeps<T>(cache)) {
        return {errc::invalid_parameter, "gather: the cache keeps other elements than the output has"};
    }
    const index_t length = extent(cache, 2);
    if (length > 0 && plan.total_tokens() > std::ssize(out) / length) {
        return {errc::invalid_parameter, "gather: out must hold total_tokens * head_dim elements",
                to_bytes(plan.total_tokens(), length)};
    }
    const auto target = out.first(static_cast<std::size_t>(plan.total_tokens() * length));
    if (const status s = check_outputs(std::array{bytes_of(target)}, cache, plan.kept(), plan.offsets());
        !s.ok()) {
        return s;
    }
    T* to = out.data();
    const index_t heads = length == 0 ? 0 : extent(cache, 0); // rows without elements may have no memory
    const index_t row_size = length * static_cast<index_t>(sizeof(T));
    const kernels::row_mover mover(row_size, plan.total_tokens() * row_size);
    for (index_t g = 0; g < heads; ++g) {
        const auto kept = plan.row(g);
        if (kept.empty()) { continue; }
        detail::gather_head(cache, g, kept, mover, to);
        to += std::ssize(kept) * length;
    }
    if (report != nullptr) {
        const index_t written = length * static_cast<index_t>(sizeof(T));
        index_t occupied = written;
        if constexpr (knows_row_bytes<V>) { occupied = row_bytes(cache); }
        *report = report_rows(cache, plan, occupied, written);
    }
    return {};
}

namespace detail {

// Moves every survivor to the front; head_begin(g) is the row at which head g starts.
template <class T, class HeadBegin>
void flatten(T* data, index_t length, const keep_plan& plan, HeadBegin&& head_begin) {
    T* to = data;
    if (length == 0) { return; } // rows without elements may have no memory
    const index_t row_size = length * static_cast<index_t>(sizeof(T));
    const kernels::row_mover mover(row_size, plan.total_tokens() * row_size);
    for (index_t g = 0; g < plan.rows(); ++g) {
        const auto kept = plan.row(g);
        const T* const from = data + head_begin(g) * length;
        mover.move(kept.size(), [&](std::size_t i) {
            return kernels::row_move{from + kept[i] * length, to + static_cast<index_t>(i) * length};
        });
        to += std::ssize(kept) * length;
    }
}

// Whether the elements lie as in a row-major array; the strides of extents below 2 reach no element.
template <class T>
[[nodiscard]] bool is_head_major(const strided<T, 3>& cache) {
    const auto steps = [&](std::size_t r, index_t stride) {
        return cache.extent(r) <= 1 || cache.stride(r) == stride;
    };
    return steps(2, 1) && steps(1, cache.extent(2)) && steps(0, cache.extent(1) * cache.extent(2));
}

template <class T>
[[nodiscard]] index_t first_row(const strided<T, 3>& cache, index_t head) {
    return head * cache.extent(1);
}
template <class T>
[[nodiscard]] index_t first_row(const ragged<T>& cache, index_t head) {
    return cache.offsets()[static_cast<std::size_t>(head)];
}

template <class V>
[[nodiscard]] status check_flat(const V& cache, const keep_plan& plan) {
    static_assert(!std::is_const_v<typename V::element_type>,
                  "kvtrim: compact_to_flat moves rows: pass a view of elements that are not const");
    if (const status s = check_plan(cache, plan); !s.ok()) { return s; }
    if constexpr (!is_ragged<V>) {
        if (!is_head_major(cache)) {
            return {errc::invalid_parameter, "compact_to_flat: the cache must be contiguous and head-major"};
        }
    }
    return check_tables(memory_of(cache), cache);
}

template <class V>
compaction_report move_to_front(const V& cache, const keep_plan& plan) {
    flatten(cache.data_handle(), extent(cache, 2), plan,
            [&](index_t head) { return first_row(cache, head); });
    return report_rows(cache, plan, row_bytes(cache), row_bytes(cache));
}

// Whether both are the same rows of the same memory, which then move once.
template <class K, class V>
[[nodiscard]] bool same_flat_rows(const K& keys, const V& values) {
    const auto same_begin = [&](index_t head) { return first_row(keys, head) == first_row(values, head); };
    bool same =
        static_cast<const void*>(keys.data_handle()) == static_cast<const void*>(values.data_handle()) &&
        row_bytes(keys) == row_bytes(values);
    for (index_t head = 0; same && head < extent(keys, 0); ++head) { same = same_begin(head); }
    return same;
}

template <class V>
inline constexpr bool can_be_flat = is_ragged<V>;
template <class T>
inline constexpr bool can_be_flat<strided<T, 3>> = true;

} // namespace detail

/// Compacts a cache to the front of its buffer: a strided one that is contiguous and head-major
/// [kv_heads, tokens, head_dim], or one that is already flat and ragged. The view's new offsets are
/// plan.cu_seqlens(); flat_view() makes the view of what is left. Returns what validate(view) says, plan_mismatch,
/// invalid_parameter for a cache with gaps, or views_overlap where its offsets lie in its rows; with the cache unchanged.
template <class V>
    requires(detail::can_be_flat<V>)
[[nodiscard]] status compact_to_flat(const V& cache, const keep_plan& plan,
                                     compaction_report* report = nullptr) {
    if (const status s = detail::check_flat(cache, plan); !s.ok()) { return s; }
    const compaction_report moved = detail::move_to_front(cache, plan);
    if (report != nullptr) { *report = moved; }
    return {};
}

/// Compacts keys and values. The report counts what both share once. Returns what the call for one cache does, or views_overlap
/// where both share memory but not the same rows; with both unchanged.
template <class K, class V>
    requires(detail::can_be_flat<K>&& detail::can_be_flat<V>)
[[nodiscard]] status compact_to_flat(const K& keys, const V& values, const keep_plan& plan,
                                     compaction_report* report = nullptr) {
    if (const status s = detail::check_flat(keys, plan); !s.ok()) { return s; }
    if (const status s = detail::check_flat(values, plan); !s.ok()) { return s; }
    if (const status s = check_tables(memory_of(keys), values); !s.ok()) { return s; }
    if (const status s = check_tables(memory_of(values), keys); !s.ok()) { return s; }
    const bool same = detail::same_flat_rows(keys, values);
    if (!same && overlap(memory_of(keys).front(), memory_of(values).front())) {
        return {errc::views_overlap, "compact_to_flat: keys and values share memory, but not the same rows"};
    }
    compaction_report moved = detail::move_to_front(keys, plan);
    if (!same) { moved = moved + detail::move_to_front(values, plan); }
    if (report != nullptr) { *report = moved; }
    return {};
}

/// The flat ragged view of a buffer that gather or compact_to_flat filled by this plan; the plan must outlive it.
template <class T>
[[nodiscard]] ragged<T> flat_view(T* data, const keep_plan& plan, index_t head_dim) {
    return ragged<T>(data, plan.cu_seqlens(), head_dim);
}
/// Refused: the plan must outlive the view.
template <class T>
ragged<T> flat_view(T* data, keep_plan&& plan, index_t head_dim) = delete;

} // namespace KVTRIM_NAMESPACE
