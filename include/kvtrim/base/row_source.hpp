// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Rows of a cache as floats, whatever the memory behind them.
//
// Keys and values are [kv_heads, tokens, head_dim] logically; queries [q_heads, queries, head_dim] and the
// output projection [q_heads, head_dim, hidden] are read the same way. A source is one of
//
//   strided_view<V, 3>   any memory order: head-major, token-major, transposed V; the fast path
//   tensor_view<V, 3>    indexable only; the generic path, and the oracle of the fast one
//   row_source<V>        extent(0) heads, extent(1) rows, extent(2) row length and
//                        load_rows(head, first, count, float* tile): paged, indirect, quantised caches.
//                        Heads of different length say so with rows(head); extent(1) is then the longest.
//                        Optional: row_bytes(), the bytes that a row occupies where it is kept, for the
//                        reports of compaction; has_bf16_rows() and load_bf16_rows(head, first, count, bf16* tile),
//                        the rows as they are kept, for processors that multiply bf16 (kernels/rows.hpp);
//                        validate(), a status that says why a view is not to be read (base/status.hpp);
//                        memory(), an array of strided_bytes, or overlaps(strided_bytes) where the rows are more pieces:
//                        what compaction must know not to destroy rows (compact/overlap.hpp)
//                        To be written: store_rows(head, first, count, const float* tile), the way back of load_rows;
//                        first_channels(count), the rows' first channels as a source of their own, at least so many, where
//                        these are written without touching the others; written_places(), the pages or slots that rows are
//                        written to (int32), of which none may stand there twice; heads_move_together(), whether heads share
//                        memory, so that none of them can be written alone
//
// All three give the same floats, so a policy's result does not depend on the layout. The one exception: on a processor with
// AMX, keys and queries that both are bf16 rows are multiplied as such, and scores are the same within rounding.

#include <kvtrim/base/strided_bytes.hpp>
#include <kvtrim/base/tensor_view.hpp>

#include <algorithm>
#include <cstring>
#include <type_traits>

namespace kvtrim {

template <class V>
concept row_source = requires(const V& v, index_t i, float* tile) {
    { v.extent(0) } -> std::convertible_to<index_t>;
    v.load_rows(i, i, i, tile);
};

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

/// A view whose rows can be written, too: store_rows() takes it.
template <class V>
concept row_store = cache_view<V> &&
    (detail::indexes_writable_elements<V> ||
     requires(const V& v, index_t i, const float* tile) { v.store_rows(i, i, i, tile); });

// Rows of one head: tokens in the cache, queries in the window, or channels of W_O.
template <class V>
[[nodiscard]] constexpr index_t row_count(const V& view, index_t head) {
    if constexpr (requires { view.rows(head); }) {
        return static_cast<index_t>(view.rows(head));
    } else {
        return static_cast<index_t>(view.extent(1));
    }
}

// Extent r of any view, signed.
template <class V>
[[nodiscard]] constexpr index_t extent(const V& view, int r) {
    return static_cast<index_t>(view.extent(static_cast<std::size_t>(r)));
}

/// Whether a view may be read: its own answer where it has one; else no extent may be negative or more than memory can hold,
/// no head may have more rows than the longest, and elements need memory. Every public call that takes views asks it first.
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

// Whether the rows of a view lie in memory as such elements.
template <class View, class Element>
[[nodiscard]] constexpr bool is_memory_of() {
    if constexpr (!row_source<View> && strided_view<View, 3>) {
        return std::is_same_v<std::remove_cvref_t<decltype(*std::declval<const View&>().data_handle())>,
                              Element>;
    } else {
        return false;
    }
}

} // namespace detail

// Copies rows [first, first + count) of a head into tile [count, extent(2)], as floats.
template <cache_view V>
void load_rows(const V& view, index_t head, index_t first, index_t count, float* tile) {
    const index_t length = extent(view, 2);
    if (length == 0) { return; } // such rows may have no memory
    if constexpr (row_source<V>) {
        view.load_rows(head, first, count, tile);
    } else if constexpr (strided_view<V, 3>) {
        const auto row_stride = static_cast<index_t>(view.stride(1));
        const auto step = static_cast<index_t>(view.stride(2));
        const auto* base =
            view.data_handle() + head * static_cast<index_t>(view.stride(0)) + first * row_stride;
        if (step == 1) {
            for (index_t t = 0; t < count; ++t) {
                const auto* row = base + t * row_stride;
                if constexpr (std::is_same_v<std::remove_cvref_t<decltype(*row)>, float>) {
                    std::copy_n(row, length, tile + t * length);
                } else {
                    for (index_t d = 0; d < length; ++d) { tile[t * length + d] = to_float(row[d]); }
                }
            }
        } else { // transposed V: channels outside, so that reads stay sequential
            for (index_t d = 0; d < length; ++d) {
                const auto* channel = base + d * step;
                for (index_t t = 0; t < count; ++t) {
                    tile[t * length + d] = to_float(channel[t * row_stride]);
                }
            }
        }
    } else {
        for (index_t t = 0; t < count; ++t) {
            for (index_t d = 0; d < length; ++d) {
                tile[t * length + d] = to_float(at(view, head, first + t, d));
            }
        }
    }
}

/// Writes tile [count, extent(2)] to rows [first, first + count) of a head: rounded to the elements, or quantised anew as the
/// source says.
template <row_store V>
void store_rows(const V& view, index_t head, index_t first, index_t count, const float* tile) {
    const index_t length = extent(view, 2);
    if (length == 0) { return; }
    if constexpr (row_source<V>) {
        view.store_rows(head, first, count, tile);
    } else {
        using value = std::remove_cvref_t<decltype(at(view, head, first, first))>;
        if constexpr (strided_view<V, 3>) {
            const auto row_stride = static_cast<index_t>(view.stride(1));
            const auto step = static_cast<index_t>(view.stride(2));
            auto* base =
                view.data_handle() + head * static_cast<index_t>(view.stride(0)) + first * row_stride;
            if (step != 1) { // transposed: channels outside, so that writes stay sequential
                for (index_t d = 0; d < length; ++d) {
                    for (index_t t = 0; t < count; ++t) {
                        base[t * row_stride + d * step] =
                            element_traits<value>::from_float(tile[t * length + d]);
                    }
                }
                return;
            }
        }
        for (index_t t = 0; t < count; ++t) {
            for (index_t d = 0; d < length; ++d) {
                at(view, head, first + t, d) = element_traits<value>::from_float(tile[t * length + d]);
            }
        }
    }
}

/// The first channels of every row as a view of its own: `count` of them, or as many as cannot be written without one another.
/// Requires 0 <= count <= extent(2). Heads may have fewer rows than it says.
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

// A block of float rows somewhere in memory: row t starts at data + t * stride.
struct float_rows {
    const float* data;
    index_t stride;
};

// Rows [first, ...) of a head where the source itself holds them as contiguous floats, else a null pointer.
template <cache_view V>
[[nodiscard]] float_rows contiguous_rows(const V& view, index_t head, index_t first) {
    if constexpr (!row_source<V> && strided_view<V, 3>) {
        using value = std::remove_cvref_t<decltype(*view.data_handle())>;
        if constexpr (std::is_same_v<value, float>) {
            if (view.stride(2) == 1 && view.stride(1) > 0 && extent(view, 2) > 0) {
                return {view.data_handle() + head * static_cast<index_t>(view.stride(0)) +
                            first * static_cast<index_t>(view.stride(1)),
                        static_cast<index_t>(view.stride(1))};
            }
        }
    }
    return {nullptr, 0};
}

// The same rows without a copy where that is possible, else through tile.
template <cache_view V>
[[nodiscard]] float_rows read_rows(const V& view, index_t head, index_t first, index_t count, float* tile) {
    float_rows rows = contiguous_rows(view, head, first);
    if (rows.data == nullptr) {
        load_rows(view, head, first, count, tile);
        rows = {tile, extent(view, 2)};
    }
    return rows;
}

} // namespace kvtrim
