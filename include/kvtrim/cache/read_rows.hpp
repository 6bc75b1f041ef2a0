// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Reads the rows of any view: the cache's, the queries', W_O's (cache/row_source.hpp says what a view is).
//
//   for_each_row(view, head, {begin, end}, tile, f)    f(token, span<const float> row [row length])
//   for_each_tile(view, head, {begin, end}, tile, f)   f(first, count, float_rows) for a few rows at a time
//   read_rows(view, head, first, count, memory)        rows without a copy where the view holds them, else through memory
//   load_rows(view, head, first, count, memory)        a copy [count, row length]
//   store_rows(view, head, first, count, floats)       writes floats [count, row length] to rows
//
// Heads and rows are indices, as a vector's: call validate(view) first, and keep them below extent(0) and row_count(view, head).
// Rows are floats, or the elements that the view holds (stored_element). All views give the same floats, so a policy's
// result does not depend on the layout. The one exception: where the processor multiplies bf16 (levels amx and neon_bf16), keys
// and queries that both are bf16 rows are multiplied as such, and scores are the same within rounding.
//
// Cost: float rows of strided, filled, latent and ragged caches, ranges of them, and runs inside a page are read where they
// lie; f16, bf16, fp8, scaled codes and ggml's blocks are decoded by vectors, also behind pages and indices. Slow, because
// element by element: a tensor_view without strides, elements of an engine's own, channels that are not contiguous (but for
// 16-bit and 8-bit elements of a transposed V, whose tokens are).

#include <kvtrim/cache/row_source.hpp>
#include <kvtrim/core/eviction_request.hpp>
#include <kvtrim/core/saturated.hpp>
#include <kvtrim/core/workspace.hpp>
#include <kvtrim/kernels/convert.hpp>

namespace KVTRIM_NAMESPACE {

/// Copies rows to tile [count, length], as floats or as the elements in memory.
template <class T, class Out>
void copy_rows(const element_rows<T>& rows, index_t count, index_t length, Out* tile) {
    const bool one_run = rows.stride == length;
    const index_t elements = one_run ? count * length : length;
    for (index_t t = 0; t < (one_run ? std::min<index_t>(count, 1) : count); ++t, tile += length) {
        if constexpr (std::is_same_v<T, Out>) {
            std::copy_n(rows.row(t), elements, tile);
        } else {
            kernels::widen(rows.row(t), elements, tile);
        }
    }
}

/// Rows [first, first + count) of a head where they lie; null data if they are not contiguous elements at even distances.
template <cache_view V>
    requires(!std::is_void_v<stored_element<V>>)
[[nodiscard]] element_rows<stored_element<V>> rows_in_place(const V& view, index_t head, index_t first,
                                                            index_t count) {
    if constexpr (row_source<V>) {
        return view.rows_in_place(head, first, count);
    } else {
        const auto stride = static_cast<index_t>(view.stride(1));
        if (view.stride(2) != 1 || stride <= 0 || extent(view, 2) == 0) { return {}; }
        return {view.data_handle() + head * static_cast<index_t>(view.stride(0)) + first * stride, stride};
    }
}

/// Whether load_rows() and read_rows() can give the rows as such elements, because they are kept as these.
template <class Element, cache_view V>
[[nodiscard]] bool keeps(const V& view) {
    if constexpr (std::is_same_v<stored_element<V>, Element> && requires { view.keeps_elements(); }) {
        return view.keeps_elements();
    } else {
        return is_made_of<V, Element>;
    }
}

namespace detail {

// Copies rows whose channels lie `step` elements apart. Channels are the outer loop, so that reads stay sequential where
// tokens follow each other; those are also widened several at once.
template <class T, class Out>
void copy_channels(const T* base, index_t row_stride, index_t step, index_t count, index_t length,
                   Out* tile) {
    constexpr index_t most = 64;
    for (index_t d = 0; d < length; ++d, base += step) {
        if constexpr (std::is_same_v<T, Out>) {
            for (index_t t = 0; t < count; ++t) { tile[t * length + d] = base[t * row_stride]; }
        } else {
            for (index_t t = 0; t < count; t += most) {
                float tokens[most];
                const index_t some = std::min(most, count - t);
                if (row_stride == 1) {
                    kernels::widen(base + t, some, tokens);
                } else {
                    for (index_t i = 0; i < some; ++i) { tokens[i] = to_float(base[(t + i) * row_stride]); }
                }
                for (index_t i = 0; i < some; ++i) { tile[(t + i) * length + d] = tokens[i]; }
            }
        }
    }
}

} // namespace detail

/// Copies rows [first, first + count) of a head to tile [count, extent(2)]; Out is float, or an element that the view
/// keeps().
template <cache_view V, class Out>
void load_rows(const V& view, index_t head, index_t first, index_t count, Out* tile) {
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
            copy_rows(element_rows<stored_element<V>>{base, row_stride}, count, length, tile);
        } else {
            detail::copy_channels(base, row_stride, step, count, length, tile);
        }
    } else {
        for (index_t t = 0; t < count; ++t) {
            for (index_t d = 0; d < length; ++d) { *tile++ = to_float(at(view, head, first + t, d)); }
        }
    }
}

/// Rows [first, first + count) of a head: in place if the view holds such elements, else copied to tile [count, extent(2)].
template <class Element = float, cache_view V>
[[nodiscard]] element_rows<Element> read_rows(const V& view, index_t head, index_t first, index_t count,
                                              Element* tile) {
    if constexpr (std::is_same_v<stored_element<V>, Element>) {
        const auto rows = rows_in_place(view, head, first, count);
        if (rows.data != nullptr) { return rows; }
    }
    load_rows(view, head, first, count, tile);
    return {tile, extent(view, 2)};
}

/// Writes tile [count, extent(2)] to rows [first, first + count) of a head: rounded to the elements, or quantised anew as
/// the source says.
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
            auto* const base =
                view.data_handle() + head * static_cast<index_t>(view.stride(0)) + first * row_stride;
            if (step == 1) {
                for (index_t t = 0; t < count; ++t) {
                    kernels::narrow(tile + t * length, length, base + t * row_stride);
                }
                return;
            }
            for (index_t d = 0; d < length; ++d) { // channels are the outer loop: writes stay sequential
                for (index_t t = 0; t < count; ++t) {
                    base[t * row_stride + d * step] = element_traits<value>::from_float(tile[t * length + d]);
                }
            }
        } else {
            for (index_t t = 0; t < count; ++t) {
                for (index_t d = 0; d < length; ++d) {
                    at(view, head, first + t, d) = element_traits<value>::from_float(tile[t * length + d]);
                }
            }
        }
    }
}

/// Scratch for a few rows of a view, from a workspace: rows that do not lie in memory as floats are copied to it.
class row_tile {
  public:
    /// Most rows of any tile.
    static constexpr index_t most_rows = 256;

    /// For rows of `length` floats. Empty if the workspace does not hold them: the loops below then call nothing.
    row_tile(index_t length, workspace& scratch)
        : rows_(std::clamp<index_t>(most_floats / std::max<index_t>(1, length), 1, most_rows)),
          floats_(scratch.take<float>(saturated_product(rows_, length))), fits_(scratch.fits()) {}

    /// Bytes of a workspace that holds one, also as worker_bytes of for_each_item().
    [[nodiscard]] static index_t bytes(index_t length) {
        workspace counting = workspace::counting();
        static_cast<void>(row_tile(length, counting));
        return counting.needed_bytes();
    }
    /// Rows of the tile; 0 if the workspace did not hold it.
    [[nodiscard]] index_t rows() const { return fits_ ? rows_ : 0; }
    /// Memory of the tile.
    [[nodiscard]] float* data() const { return floats_.data(); }

  private:
    // Few enough to stay in the first level cache together with the elements that they are decoded from.
    static constexpr index_t most_floats = 4 * 1024;

    index_t rows_;
    std::span<float> floats_;
    bool fits_;
};

/// Calls f(first, count, rows) for the tokens `range` of a head in ascending order, count <= tile.rows(): rows is a
/// float_rows. The tile is for rows as long as the view's, or longer ones. The rows are valid until f returns.
template <cache_view V, class Fn>
void for_each_tile(const V& view, index_t head, token_range range, const row_tile& tile, Fn&& f) {
    if (tile.rows() == 0) { return; }
    for (index_t t = range.begin; t < range.end; t += tile.rows()) {
        const index_t count = std::min(tile.rows(), range.end - t);
        f(t, count, read_rows(view, head, t, count, tile.data()));
    }
}

/// Calls f(token, row) for the tokens `range` of a head in ascending order: row is a span<const float> of the view's row
/// length, valid until f returns.
template <cache_view V, class Fn>
void for_each_row(const V& view, index_t head, token_range range, const row_tile& tile, Fn&& f) {
    const auto length = static_cast<std::size_t>(extent(view, 2));
    for_each_tile(view, head, range, tile, [&](index_t first, index_t count, const float_rows& rows) {
        for (index_t i = 0; i < count; ++i) { f(first + i, std::span<const float>(rows.row(i), length)); }
    });
}

} // namespace KVTRIM_NAMESPACE
