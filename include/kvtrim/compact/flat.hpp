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
//
// In place is safe because survivor i of head g lands at offsets[g] + i, never behind its old place: head g
// started at g * tokens >= offsets[g] and its survivors ascend. No second buffer.
// Errors: errc::plan_mismatch, with nothing written. Cost: every survivor read and written once.

#include <kvtrim/base/ragged.hpp>
#include <kvtrim/compact/check_plan.hpp>

#include <cstring>

namespace kvtrim {

template <class V>
inline constexpr bool is_ragged = false;
template <class T>
inline constexpr bool is_ragged<ragged<T>> = true;

// Copies the survivors of a cache into out. A strided or ragged cache needs out of its own element type, and
// bits are copied; any other source is read as floats. Requires out.size() >= total_tokens * head_dim.
template <class V, class T>
    requires(cache_view<V>)
[[nodiscard]] status gather(const V& cache, const keep_plan& plan, std::span<T> out,
                            compaction_report* report = nullptr) {
    if (const status s = check_plan(cache, plan); !s.ok()) { return s; }
    const index_t length = extent(cache, 2);
    KVTRIM_EXPECTS(static_cast<index_t>(out.size()) >= plan.total_tokens() * length,
                   "gather: out must hold total_tokens * head_dim elements");
    T* to = out.data();
    const index_t heads = length == 0 ? 0 : extent(cache, 0); // rows without elements may have no memory
    for (index_t g = 0; g < heads; ++g) {
        for (const auto token : plan.row(g)) {
            if constexpr (is_ragged<V>) {
                using element = std::remove_cvref_t<decltype(*cache.row(g, token))>;
                static_assert(std::is_same_v<element, T>,
                              "kvtrim: gather needs an output of the cache's own element type");
                std::memcpy(to, cache.row(g, token), static_cast<std::size_t>(length) * sizeof(T));
            } else if constexpr (strided_view<V, 3>) {
                using element = std::remove_cvref_t<decltype(*cache.data_handle())>;
                static_assert(std::is_same_v<element, T>,
                              "kvtrim: gather needs an output of the cache's own element type");
                const auto step = static_cast<index_t>(cache.stride(2));
                const auto* from = cache.data_handle() + g * static_cast<index_t>(cache.stride(0)) +
                                   token * static_cast<index_t>(cache.stride(1));
                for (index_t d = 0; d < length; ++d) { to[d] = from[d * step]; }
            } else {
                static_assert(std::is_same_v<T, float>,
                              "kvtrim: this cache is read as floats: gather into float");
                load_rows(cache, g, token, 1, to);
            }
            to += length;
        }
    }
    if (report != nullptr) { *report = report_rows<T>(cache, plan); }
    return {};
}

namespace detail {

// Moves every survivor to the front; head_begin(g) is the row at which head g starts.
template <class T, class HeadBegin>
void flatten(T* data, index_t length, const keep_plan& plan, HeadBegin&& head_begin) {
    T* to = data;
    if (length == 0) { return; } // rows without elements may have no memory
    for (index_t g = 0; g < plan.rows(); ++g) {
        for (const auto token : plan.row(g)) {
            const T* from = data + (head_begin(g) + token) * length;
            if (from != to) { std::memmove(to, from, static_cast<std::size_t>(length) * sizeof(T)); }
            to += length;
        }
    }
}

} // namespace detail

// Compacts a contiguous head-major cache [kv_heads, tokens, head_dim] to the front of its buffer. The view's
// new offsets are plan.cu_seqlens(); flat_view() makes the view of what is left.
template <class T>
[[nodiscard]] status compact_to_flat(const strided<T, 3>& cache, const keep_plan& plan,
                                     compaction_report* report = nullptr) {
    if (const status s = check_plan(cache, plan); !s.ok()) { return s; }
    const index_t tokens = cache.extent(1);
    const index_t length = cache.extent(2);
    KVTRIM_EXPECTS(cache.stride(2) == 1 && cache.stride(1) == length && cache.stride(0) == tokens * length,
                   "compact_to_flat: the cache must be contiguous and head-major");
    detail::flatten(cache.data_handle(), length, plan, [&](index_t head) { return head * tokens; });
    if (report != nullptr) { *report = report_rows<T>(cache, plan); }
    return {};
}

// Compacts a cache that is already flat and ragged, in place.
template <class T>
[[nodiscard]] status compact_to_flat(const ragged<T>& cache, const keep_plan& plan,
                                     compaction_report* report = nullptr) {
    if (const status s = check_plan(cache, plan); !s.ok()) { return s; }
    detail::flatten(cache.data_handle(), cache.extent(2), plan,
                    [&](index_t head) { return index_t{cache.offsets()[static_cast<std::size_t>(head)]}; });
    if (report != nullptr) { *report = report_rows<T>(cache, plan); }
    return {};
}

// The flat ragged view of a buffer that gather or compact_to_flat filled by this plan; the plan must outlive it.
template <class T>
[[nodiscard]] ragged<T> flat_view(T* data, const keep_plan& plan, index_t head_dim) {
    return ragged<T>(data, plan.cu_seqlens(), head_dim);
}

} // namespace kvtrim
