// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What a view of a cache is, and what is known of its rows without reading them. The reader: cache/read_rows.hpp.
//
// Keys and values are [kv_heads, tokens, head_dim] logically; queries [q_heads, queries, head_dim] and the
// output projection [q_heads, head_dim, hidden] are read the same way. A source is one of
//
//   strided_view<V, 3>   any memory order: head-major, token-major, transposed V
//   tensor_view<V, 3>    indexable only: read element by element, which is slow
//   row_source<V>        extent(0) heads, extent(1) rows, extent(2) row length and
//                        load_rows(head, first, count, float* tile): paged, indirect, quantised caches.
//                        Heads of different length say so with rows(head); extent(1) is then the longest.
//                        Optional: row_bytes(), the bytes that a row occupies where it is kept, for the
//                        reports of compaction; validate(), a status that says why a view is not valid (core/status.hpp);
//                        rows_in_place(head, first, count), element_rows<T> of those rows, with null data where they do not
//                        lie at even distances as contiguous elements T; it goes with load_rows(..., T* tile), a copy of the
//                        elements, and with keeps_elements(), if that is known at run time only;
//                        memory(), an array of strided_bytes, or overlaps(strided_bytes) where the rows are more pieces:
//                        compaction refuses moves that would overwrite other rows (compact/moved_views.hpp), and calls refuse
//                        outputs in what they read (cache/check_outputs.hpp); overlaps() then counts tables in;
//                        tables_overlap(strided_bytes), whether what finds or decodes the rows shares a byte, which rows that
//                        are moved or rotated must not
//                        To be written: store_rows(head, first, count, const float* tile), the inverse of load_rows;
//                        first_channels(count), the rows' first channels as a source of their own, at least so many, where
//                        these are written without touching the others; written_places(), the pages or slots that rows are
//                        written to (int32), each listed at most once; heads_move_together(), whether heads share
//                        memory, so that none of them can be written alone
//
// All three give the same floats, so a policy's result does not depend on the layout. The one exception: where the processor
// multiplies bf16 (levels amx and neon_bf16), keys and queries that both are bf16 rows are multiplied as such, and scores are the
// same within rounding.

#include <kvtrim/cache/strided_bytes.hpp>
#include <kvtrim/cache/tensor_view.hpp>
#include <kvtrim/core/element_rows.hpp>

#include <algorithm>
#include <cstring>
#include <type_traits>

namespace KVTRIM_NAMESPACE {

/// A view that copies its rows itself: load_rows(head, first, count, float* tile). Optional members: above.
template <class V>
concept row_source = requires(const V& v, index_t i, float* tile) {
    { v.extent(0) } -> std::convertible_to<index_t>;
    v.load_rows(i, i, i, tile);
};

/// Any view that the library reads rows of.
template <class V>
concept cache_view = row_source<V> || tensor_view<V, 3>;

namespace detail {

// Indexing yields elements that floats may be assigned to.
template <class V>
concept indexes_writable_elements = tensor_view<V, 3> && requires(const V& v, index_t i) {
    requires std::is_lvalue_reference_v<decltype(at(v, i, i, i))>;
    at(v, i, i, i) = element_traits<std::remove_cvref_t<decltype(at(v, i, i, i))>>::from_float(0.0f);
};

} // namespace detail

/// A view whose rows can also be written: store_rows() takes it.
template <class V>
concept row_store = cache_view<V> &&
    (detail::indexes_writable_elements<V> ||
     requires(const V& v, index_t i, const float* tile) { v.store_rows(i, i, i, tile); });

/// Rows of one head: tokens in the cache, queries in the window, or channels of W_O.
template <class V>
[[nodiscard]] constexpr index_t row_count(const V& view, index_t head) {
    if constexpr (requires { view.rows(head); }) {
        return static_cast<index_t>(view.rows(head));
    } else {
        return static_cast<index_t>(view.extent(1));
    }
}

/// Extent r of any view, signed.
template <class V>
[[nodiscard]] constexpr index_t extent(const V& view, int r) {
    return static_cast<index_t>(view.extent(static_cast<std::size_t>(r)));
}

/// Whether a view may be read: its own answer where it has one; else no extent may be negative or more than memory can hold,
/// no head may have more rows than the longest, and elements need memory. Every public call validates its views first.
/// O(1), O(heads) where heads have rows of their own.
template <class V>
[[nodiscard]] constexpr status validate(const V& view) {
    if constexpr (requires { view.validate(); }) {
        return view.validate();
    } else if constexpr (cache_view<V> || tensor_view<V, 2>) {
        std::array<index_t, tensor_view<V, 2> ? 2 : 3> extents{};
        bool empty = false;
        for (std::size_t r = 0; r < extents.size(); ++r) {
            extents[r] = extent(view, static_cast<int>(r));
            if (extents[r] < 0) { return {errc::invalid_parameter, "view: extents must not be negative"}; }
            empty = empty || extents[r] == 0;
        }
        if (!detail::fits_in_memory(extents, sizeof(float))) {
            return {errc::invalid_parameter, "view: extents of more elements than memory can hold"};
        }
        if constexpr (requires { view.rows(index_t{}); }) {
            for (index_t h = 0; h < extents[0]; ++h) {
                if (row_count(view, h) < 0 || row_count(view, h) > extents[1]) {
                    return {errc::invalid_parameter, "view: a head has at most extent(1) rows", extents[1]};
                }
            }
        }
        if constexpr (requires { view.data_handle() == nullptr; }) {
            if (!empty && view.data_handle() == nullptr) {
                return {errc::invalid_parameter, "view: data must not be null"};
            }
        }
    }
    return {};
}

/// The bytes of a view's rows, as an array of strided_bytes; an empty array where they are not known.
template <class V>
[[nodiscard]] auto memory_of(const V& view) {
    if constexpr (requires { view.memory(); }) {
        return view.memory();
    } else if constexpr (strided_view<V, 3>) {
        constexpr index_t size = sizeof(*view.data_handle());
        const auto step = [&](std::size_t r) { return to_bytes(static_cast<index_t>(view.stride(r)), size); };
        return std::array{strided_bytes{.first = view.data_handle(),
                                        .extents = {1, extent(view, 0), extent(view, 1), extent(view, 2)},
                                        .strides = {0, step(0), step(1), step(2)},
                                        .bytes = size}};
    } else {
        return std::array<strided_bytes, 0>{};
    }
}

/// Whether what finds or decodes the rows of a view (lengths, offsets, pages, indices, shared scales), or a list itself, shares a
/// byte with `other`; false where that is not known.
template <class V>
[[nodiscard]] bool tables_share_bytes(const V& view, const strided_bytes& other) {
    if constexpr (requires { view.tables_overlap(other); }) {
        return view.tables_overlap(other);
    } else if constexpr (requires { std::span(view); }) {
        return overlap(bytes_of(std::span(view)), other);
    } else {
        return false;
    }
}

namespace detail {

// Whether every head of a view has this many rows. O(1), O(heads) where heads have rows of their own.
template <class V>
[[nodiscard]] constexpr bool heads_have_rows(const V& view, index_t rows) {
    if constexpr (requires { view.rows(index_t{}); }) {
        for (index_t h = 0; h < extent(view, 0); ++h) {
            if (row_count(view, h) != rows) { return false; }
        }
        return true;
    } else {
        return extent(view, 0) == 0 || extent(view, 1) == rows;
    }
}

template <class V>
[[nodiscard]] constexpr auto find_stored_element() {
    if constexpr (requires(const V& v, index_t i) { v.rows_in_place(i, i, i).data; }) {
        using rows = decltype(std::declval<const V&>().rows_in_place(0, 0, 0));
        return std::type_identity<std::remove_cvref_t<decltype(*rows{}.data)>>{};
    } else if constexpr (!row_source<V> && strided_view<V, 3>) {
        return std::type_identity<std::remove_cvref_t<decltype(*std::declval<const V&>().data_handle())>>{};
    } else {
        return std::type_identity<void>{};
    }
}

} // namespace detail

/// The element that the rows of a view consist of in memory; void where rows are decoded.
template <class V>
using stored_element = typename decltype(detail::find_stored_element<V>())::type;

/// Whether every view of the type consists of such elements; of a source with keeps_elements() it is known at run time only.
template <class V, class Element>
inline constexpr bool is_made_of = std::is_same_v<stored_element<V>, Element> && !requires(const V& v) {
    v.keeps_elements();
};

/// The first channels of every row as a view of its own: `count` of them, or more where these cannot be written without
/// others. Requires 0 <= count <= extent(2). Heads may have fewer rows than it says.
template <cache_view V>
[[nodiscard]] constexpr auto first_channels(const V& view, index_t count) {
    if constexpr (requires { view.first_channels(count); }) {
        return view.first_channels(count);
    } else if constexpr (!row_source<V> && strided_view<V, 3>) {
        return strided(view.data_handle(), {extent(view, 0), extent(view, 1), count},
                       {static_cast<index_t>(view.stride(0)), static_cast<index_t>(view.stride(1)),
                        static_cast<index_t>(view.stride(2))});
    } else {
        return view;
    }
}

} // namespace KVTRIM_NAMESPACE
