// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Keys or values in a pool of pages, as a row source: one request of a page table.
//
//   paged_rows        all KV heads share the request's pages (vLLM, FlashInfer, TensorRT-LLM)
//   paged_head_rows   each KV head has a row of the table, and so a length, of its own: row = request * kv_heads + head
//
// Token t of head h starts at element  page * page_stride + (t % page_tokens) * token_stride + h * head_stride  of the pool,
// page = the row's (t / page_tokens)-th; its head_dim elements are contiguous. paged_head_rows: a page holds one head, no
// head_stride. Keys and values in one pool are two sources with a base pointer each (and twice the page_stride).
//
// The row of the table is checked when the source is made (cache/page_table.hpp); give the layout the number of pages, and a
// page outside the pool is refused. The views they are made of must live, and stay as they were, as long as the source.
// Made of a pool that is not const, rows can be written (store_rows): never pages that other requests read; plan_page_moves
// copies those first.
// Cost: as a contiguous cache, and one step per page; rows of bf16 that are multiplied as such are copied first.
// To evict: compact/plan_page_moves.hpp.

#include <kvtrim/cache/page_table.hpp>
#include <kvtrim/cache/read_rows.hpp>
#include <kvtrim/cache/strided_bytes.hpp>

#include <algorithm>
#include <array>

namespace KVTRIM_NAMESPACE {

namespace detail {

// Calls fn(rows, i, run) for each run of the tokens [first, first + count) that lies in one page: it begins at `rows` with
// token first + i. `pool` is shifted to the head.
template <class Pool, class Fn>
void for_each_run(Pool* pool, const page_layout& layout, std::span<const std::int32_t> pages, index_t first,
                  index_t count, Fn&& fn) {
    for (index_t i = 0; i < count;) {
        const index_t offset = (first + i) % layout.page_tokens;
        const index_t run = std::min(layout.page_tokens - offset, count - i);
        const index_t page = pages[static_cast<std::size_t>((first + i) / layout.page_tokens)];
        fn(pool + page * layout.page_stride + offset * layout.token_stride, i, run);
        i += run;
    }
}

// Rows that all lie in one page; null data if they do not.
template <class T>
[[nodiscard]] element_rows<T> paged_in_place(const T* pool, const page_layout& layout,
                                             std::span<const std::int32_t> pages, index_t first,
                                             index_t count) {
    element_rows<T> found;
    if (count > 0 && first % layout.page_tokens + count <= layout.page_tokens) {
        for_each_run(pool, layout, pages, first, count, [&](const T* rows, index_t, index_t) {
            found = {rows, layout.token_stride};
        });
    }
    return found;
}

// Copies rows to tile [count, head_dim], as floats or as the elements in memory.
template <class T, class Out>
void load_paged(const T* pool, const page_layout& layout, std::span<const std::int32_t> pages, index_t first,
                index_t count, index_t head_dim, Out* tile) {
    for_each_run(pool, layout, pages, first, count, [&](const T* rows, index_t i, index_t run) {
        copy_rows(element_rows<T>{rows, layout.token_stride}, run, head_dim, tile + i * head_dim);
    });
}

// Writes tile [count, head_dim] to rows.
template <class T>
void store_paged(T* pool, const page_layout& layout, std::span<const std::int32_t> pages, index_t first,
                 index_t count, index_t head_dim, const float* tile) {
    for_each_run(pool, layout, pages, first, count, [&](T* rows, index_t i, index_t run) {
        for (index_t t = 0; t < run; ++t) {
            kernels::narrow(tile + (i + t) * head_dim, head_dim, rows + t * layout.token_stride);
        }
    });
}

// All slots of the pool's pages up to the last of these; none of them if there are none.
template <class T>
[[nodiscard]] strided_bytes bytes_of_slots(const T* pool, const page_layout& layout,
                                           std::span<const std::int32_t> pages, index_t heads,
                                           index_t head_dim) {
    const index_t count = pages.empty() ? 0 : index_t{*std::max_element(pages.begin(), pages.end())} + 1;
    return bytes_of_pages(pool, layout, 0, count, heads, head_dim);
}

// Whether rows of `heads` heads in these pages share a byte with `other`.
template <class T>
[[nodiscard]] bool pages_overlap(const T* pool, const page_layout& layout,
                                 std::span<const std::int32_t> pages, index_t heads, index_t head_dim,
                                 const strided_bytes& other) {
    return std::any_of(pages.begin(), pages.end(), [&](std::int32_t page) {
        return overlap(bytes_of_pages(pool, layout, page, 1, heads, head_dim), other);
    });
}

// Rows of a page table that a source reads.
struct table_rows {
    index_t first;
    index_t count;
};

// The pages of these rows, which follow each other in the table.
[[nodiscard]] inline std::span<const std::int32_t> pages_of(const page_table& table, table_rows rows) {
    if (rows.count == 0) { return {}; }
    const auto begin = static_cast<std::size_t>(table.indptr[static_cast<std::size_t>(rows.first)]);
    const auto end =
        static_cast<std::size_t>(table.indptr[static_cast<std::size_t>(rows.first + rows.count)]);
    return table.indices.subspan(begin, end - begin);
}

// heads: those of a page.
template <class T>
[[nodiscard]] status validate_paged(const T* pool, const page_layout& layout, const page_table& table,
                                    table_rows rows, index_t kv_heads, index_t heads, index_t head_dim) {
    if (kv_heads < 0 || head_dim < 0) {
        return {errc::invalid_parameter, "paged rows: kv_heads and head_dim must not be negative"};
    }
    constexpr index_t longest = std::numeric_limits<std::int32_t>::max();
    if (!fits_in_memory(std::array<index_t, 3>{kv_heads, longest, head_dim}, sizeof(float))) {
        return {errc::invalid_parameter, "paged rows: more elements than memory can hold"};
    }
    if (const status s = validate_rows(table, rows.first, rows.count, layout); !s.ok()) { return s; }
    if (pool == nullptr && !table.indices.empty() && kv_heads > 0 && head_dim > 0) {
        return {errc::invalid_parameter, "paged rows: data must not be null"};
    }
    return bytes_of_slots(pool, layout, pages_of(table, rows), heads, head_dim).validate();
}

// Row of the table where a request's heads begin; -1, which no table has, for impossible numbers.
[[nodiscard]] constexpr index_t first_row_of(index_t request, index_t kv_heads) {
    constexpr index_t most = std::numeric_limits<std::int32_t>::max();
    const bool possible = 0 <= request && request <= most && 0 <= kv_heads && kv_heads <= most;
    return possible ? request * kv_heads : -1;
}

} // namespace detail

/// A row_source (cache/row_source.hpp) whose heads share pages. Pool is const T, or T for rows that can be written.
template <class T, class Pool = const T>
class paged_rows {
  public:
    /// The view is empty, and validate() says why, for what validate_rows() says of the request's row, negative extents, strides
    /// that lead beyond what memory can hold, rows without data. O(pages).
    paged_rows(Pool* pool, const page_layout& layout, const page_table& table, index_t request,
               index_t kv_heads, index_t head_dim)
        : pool_(pool), layout_(layout),
          validity_(detail::validate_paged(pool, layout, table, {request, 1}, kv_heads, kv_heads, head_dim)) {
        if (!validity_.ok()) { return; }
        kv_heads_ = kv_heads;
        head_dim_ = head_dim;
        pages_ = table.row(request);
        tokens_ = table.tokens(request, layout.page_tokens);
    }

    [[nodiscard]] status validate() const { return validity_; } ///< ok, or why the source is empty
    /// {kv_heads, tokens of the longest head, head_dim}[r].
    [[nodiscard]] index_t extent(std::size_t r) const {
        return r == 0 ? kv_heads_ : r == 1 ? tokens_ : head_dim_;
    }
    /// Rows that lie in one page; else null data.
    [[nodiscard]] element_rows<T> rows_in_place(index_t head, index_t first, index_t count) const {
        return detail::paged_in_place<T>(pool_ + head * layout_.head_stride, layout_, pages_, first, count);
    }
    /// Copies rows to tile [count, head_dim], as floats or as elements T.
    template <class Out>
    void load_rows(index_t head, index_t first, index_t count, Out* tile) const {
        detail::load_paged<T>(pool_ + head * layout_.head_stride, layout_, pages_, first, count, head_dim_,
                              tile);
    }
    /// Writes tile [count, head_dim] to rows.
    void store_rows(index_t head, index_t first, index_t count, const float* tile) const
        requires(kvtrim::detail::indexes_writable_elements<strided<Pool, 3>>) {
        detail::store_paged(pool_ + head * layout_.head_stride, layout_, pages_, first, count, head_dim_,
                            tile);
    }
    /// The first channels of every row as a source of their own.
    [[nodiscard]] paged_rows first_channels(index_t count) const {
        paged_rows channels = *this;
        channels.head_dim_ = count;
        return channels;
    }
    /// The pages that store_rows() may write; none may be named twice then.
    [[nodiscard]] std::span<const std::int32_t> written_places() const { return pages_; }
    /// The bytes of all slots of the pool, up to its last page that is read. O(pages).
    [[nodiscard]] std::array<strided_bytes, 1> memory() const {
        return {detail::bytes_of_slots(pool_, layout_, pages_, kv_heads_, head_dim_)};
    }
    /// Bytes of a row.
    [[nodiscard]] index_t row_bytes() const { return head_dim_ * static_cast<index_t>(sizeof(T)); }
    /// Whether its pages, or the list of them, share a byte with other memory. O(pages).
    [[nodiscard]] bool overlaps(const strided_bytes& other) const {
        return tables_overlap(other) ||
               detail::pages_overlap(pool_, layout_, pages_, kv_heads_, head_dim_, other);
    }
    /// Whether the list does.
    [[nodiscard]] bool tables_overlap(const strided_bytes& other) const {
        return overlap(bytes_of(pages_), other);
    }

  private:
    Pool* pool_;
    page_layout layout_;
    status validity_;
    std::span<const std::int32_t> pages_;
    index_t kv_heads_ = 0;
    index_t tokens_ = 0;
    index_t head_dim_ = 0;
};

template <class T>
paged_rows(T*, const page_layout&, const page_table&, index_t, index_t, index_t)
    -> paged_rows<std::remove_const_t<T>, T>;

/// A row_source whose heads have pages of their own. Pool is const T, or T for rows that can be written.
template <class T, class Pool = const T>
class paged_head_rows {
  public:
    /// The view is empty, and validate() says why, for what validate_rows() says of the request's kv_heads rows, negative
    /// extents, strides that lead beyond what memory can hold, rows without data. O(pages of all heads).
    paged_head_rows(Pool* pool, const page_layout& layout, const page_table& table, index_t request,
                    index_t kv_heads, index_t head_dim)
        : pool_(pool), layout_(layout), table_(table), first_row_(detail::first_row_of(request, kv_heads)),
          validity_(
              detail::validate_paged(pool, layout, table, {first_row_, kv_heads}, kv_heads, 1, head_dim)) {
        if (!validity_.ok()) { return; }
        kv_heads_ = kv_heads;
        head_dim_ = head_dim;
        for (index_t h = 0; h < kv_heads; ++h) { longest_ = std::max(longest_, rows(h)); }
        places_ = detail::pages_of(table, {first_row_, kv_heads});
    }

    [[nodiscard]] status validate() const { return validity_; } ///< ok, or why the source is empty
    /// {kv_heads, tokens of the longest head, head_dim}[r].
    [[nodiscard]] index_t extent(std::size_t r) const {
        return r == 0 ? kv_heads_ : r == 1 ? longest_ : head_dim_;
    }
    /// Tokens of a head.
    [[nodiscard]] index_t rows(index_t head) const {
        return table_.tokens(first_row_ + head, layout_.page_tokens);
    }
    /// Rows that lie in one page; else null data.
    [[nodiscard]] element_rows<T> rows_in_place(index_t head, index_t first, index_t count) const {
        return detail::paged_in_place<T>(pool_, layout_, table_.row(first_row_ + head), first, count);
    }
    /// Copies rows to tile [count, head_dim], as floats or as elements T.
    template <class Out>
    void load_rows(index_t head, index_t first, index_t count, Out* tile) const {
        detail::load_paged<T>(pool_, layout_, table_.row(first_row_ + head), first, count, head_dim_, tile);
    }
    /// Writes tile [count, head_dim] to rows.
    void store_rows(index_t head, index_t first, index_t count, const float* tile) const
        requires(kvtrim::detail::indexes_writable_elements<strided<Pool, 3>>) {
        detail::store_paged(pool_, layout_, table_.row(first_row_ + head), first, count, head_dim_, tile);
    }
    /// The first channels of every row as a source of their own.
    [[nodiscard]] paged_head_rows first_channels(index_t count) const {
        paged_head_rows channels = *this;
        channels.head_dim_ = count;
        return channels;
    }
    /// [kv_heads + 1] where each head's pages begin in the table; empty where the source is.
    [[nodiscard]] std::span<const std::int32_t> offsets() const {
        if (kv_heads_ == 0) { return {}; }
        return table_.indptr.subspan(static_cast<std::size_t>(first_row_),
                                     static_cast<std::size_t>(kv_heads_) + 1);
    }
    /// The pages that store_rows() may write; none may be named twice then.
    [[nodiscard]] std::span<const std::int32_t> written_places() const { return places_; }
    /// The bytes of all slots of the pool, up to its last page that is read. O(pages of all heads).
    [[nodiscard]] std::array<strided_bytes, 1> memory() const {
        return {detail::bytes_of_slots(pool_, layout_, places_, 1, head_dim_)};
    }
    /// Bytes of a row.
    [[nodiscard]] index_t row_bytes() const { return head_dim_ * static_cast<index_t>(sizeof(T)); }
    /// Whether its pages or its rows of the table share a byte with other memory. O(pages).
    [[nodiscard]] bool overlaps(const strided_bytes& other) const {
        return tables_overlap(other) || detail::pages_overlap(pool_, layout_, places_, 1, head_dim_, other);
    }
    /// Whether its rows of the table do.
    [[nodiscard]] bool tables_overlap(const strided_bytes& other) const {
        const auto last = kv_heads_ == 0 ? table_.last_page_len.first(0)
                                         : table_.last_page_len.subspan(static_cast<std::size_t>(first_row_),
                                                                        static_cast<std::size_t>(kv_heads_));
        return overlap(bytes_of(places_), other) || overlap(bytes_of(offsets()), other) ||
               overlap(bytes_of(last), other);
    }

  private:
    Pool* pool_;
    page_layout layout_;
    page_table table_;
    std::span<const std::int32_t> places_;
    index_t first_row_;
    status validity_;
    index_t kv_heads_ = 0;
    index_t longest_ = 0;
    index_t head_dim_ = 0;
};

template <class T>
paged_head_rows(T*, const page_layout&, const page_table&, index_t, index_t, index_t)
    -> paged_head_rows<std::remove_const_t<T>, T>;

} // namespace KVTRIM_NAMESPACE
