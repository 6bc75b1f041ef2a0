// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Some neighbouring rows of every head of a view: the newest queries of a prompt, the first tokens of a cache.
//
//   row_range(view, first, count)   [heads, count, row length], rows [first, first + count) of each head

#include <kvtrim/cache/check_outputs.hpp>
#include <kvtrim/cache/read_rows.hpp>

namespace KVTRIM_NAMESPACE {

/// A row_source (cache/row_source.hpp) of neighbouring rows of a view.
template <cache_view V>
class row_range {
  public:
    /// The view is empty, and validate() says why, for a view that is not valid, rows that not every head has. O(heads).
    row_range(const V& view, index_t first, index_t count)
        : view_(view), first_(first), count_(count), validity_(check()) {}

    /// Ok, or why the range is empty.
    [[nodiscard]] status validate() const { return validity_; }
    /// {heads, count, row length}[r].
    [[nodiscard]] index_t extent(std::size_t r) const {
        if (!validity_.ok()) { return 0; }
        return r == 1 ? count_ : static_cast<index_t>(view_.extent(r));
    }
    /// Rows [first, first + count) of a head where they lie; null data where the view says so.
    [[nodiscard]] auto rows_in_place(index_t head, index_t first, index_t count) const
        requires(!std::is_void_v<stored_element<V>>) {
        return kvtrim::rows_in_place(view_, head, first_ + first, count);
    }
    /// Whether rows can be copied as the elements in memory.
    [[nodiscard]] bool keeps_elements() const requires requires(const V& v) { v.keeps_elements(); }
    { return view_.keeps_elements(); }
    /// Copies rows [first, first + count) of a head to tile [count, row length], as floats or as the elements in memory.
    template <class Out>
    void load_rows(index_t head, index_t first, index_t count, Out* tile) const {
        kvtrim::load_rows(view_, head, first_ + first, count, tile);
    }
    /// Writes tile [count, row length] to rows [first, first + count) of a head.
    void store_rows(index_t head, index_t first, index_t count,
                    const float* tile) const requires row_store<V> {
        kvtrim::store_rows(view_, head, first_ + first, count, tile);
    }
    /// The first channels of every row as a range of their own.
    [[nodiscard]] auto first_channels(index_t count) const {
        const auto channels = kvtrim::first_channels(view_, count);
        return kvtrim::row_range<std::remove_const_t<decltype(channels)>>(channels, first_, extent(1));
    }
    /// The bytes of all rows of the view.
    [[nodiscard]] auto memory() const { return memory_of(view_); }
    /// Whether the view that the rows are of shares a byte with other memory.
    [[nodiscard]] bool overlaps(const strided_bytes& other) const { return shares_bytes(view_, other); }
    /// The pages or slots that store_rows() may write.
    [[nodiscard]] auto written_places() const requires requires(const V& v) { v.written_places(); }
    { return view_.written_places(); }
    /// Whether a row of one head cannot move alone.
    [[nodiscard]] bool heads_move_together() const requires requires(const V& v) { v.heads_move_together(); }
    { return view_.heads_move_together(); }

  private:
    [[nodiscard]] status check() const {
        if (const status s = kvtrim::validate(view_); !s.ok()) { return s; }
        if (first_ < 0 || count_ < 0) {
            return {errc::invalid_parameter, "row_range: first and count must not be negative"};
        }
        index_t shortest = kvtrim::extent(view_, 1);
        if constexpr (requires { view_.rows(index_t{}); }) {
            for (index_t h = 0; h < kvtrim::extent(view_, 0); ++h) {
                shortest = std::min(shortest, row_count(view_, h));
            }
        }
        if (count_ > shortest - first_) {
            return {errc::invalid_parameter, "row_range: a head has fewer rows", shortest};
        }
        return {};
    }

    V view_;
    index_t first_;
    index_t count_;
    status validity_;
};

} // namespace KVTRIM_NAMESPACE
