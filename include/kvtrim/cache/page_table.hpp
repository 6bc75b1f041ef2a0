// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Where the tokens of each row lie in a pool of pages, as CSR: FlashInfer's convention, and vLLM's block tables
// once flat.
//
//   indptr         [rows + 1]      int32; pages of row r are indices[indptr[r], indptr[r + 1])
//   indices        [indptr[rows]]  int32 pages of the pool, in the order of the row's tokens
//   last_page_len  [rows]          int32 tokens in the row's last page, 1 ... page_tokens; not read where a row is
//                                  empty
//
// A row is a request, or a (request, KV head) with pages of its own: row = request * kv_heads + head. Token t of
// row r is
// slot  indices[indptr[r] + t / page_tokens] * page_tokens + t % page_tokens  of the pool.
//
// Tables are not trusted: validate() checks them in O(rows + pages named), validate_rows() some of their rows; once for each
// table that enters.

#include <kvtrim/cache/check_outputs.hpp>
#include <kvtrim/core/any_index.hpp>
#include <kvtrim/core/saturated.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <span>

namespace KVTRIM_NAMESPACE {

/// Where the slots of a pool lie in memory. Strides count elements; with two of them swapped it is NHD or HND.
struct page_layout {
    /// The engine does not say how large the pool is: page numbers are then checked against 2^31 - 1 slots only.
    static constexpr index_t unknown_pages = -1;

    index_t page_tokens = 16;      ///< tokens of a page
    index_t page_stride = 0;       ///< from page to page
    index_t token_stride = 0;      ///< from token to token of a page
    index_t head_stride = 0;       ///< from head to head of a page
    index_t pages = unknown_pages; ///< of the pool; if given, page numbers beyond it are refused

    /// One past the largest page number that a table may hold. Slots are numbered in 32 bits.
    [[nodiscard]] constexpr index_t most_pages() const {
        return pages != unknown_pages ? pages : std::numeric_limits<std::int32_t>::max() / page_tokens;
    }
    /// Returns invalid_parameter for pages without tokens or a negative number of pages, index_overflow (needed: pages) for
    /// a pool of more than 2^31 - 1 slots.
    [[nodiscard]] constexpr status validate() const {
        if (page_tokens <= 0 || pages < unknown_pages) {
            return {errc::invalid_parameter,
                    "page layout: pages must hold tokens, and not be a negative number"};
        }
        constexpr index_t most = std::numeric_limits<std::int32_t>::max();
        if (page_tokens > most || pages > most / page_tokens) {
            const index_t asked = pages == unknown_pages ? 0 : pages;
            return {errc::index_overflow, "page layout: a pool has at most 2^31 - 1 slots", asked};
        }
        return {};
    }
};

/// Pages [page_tokens, kv_heads, head_dim]: the heads of a token lie together. Strides that index_t cannot hold become
/// the largest index_t, which every reader and mover of pages refuses.
[[nodiscard]] constexpr page_layout nhd_pages(index_t page_tokens, index_t kv_heads, index_t head_dim,
                                              index_t pages = page_layout::unknown_pages) {
    const index_t token = saturated_product(kv_heads, head_dim);
    return {page_tokens, saturated_product(page_tokens, token), token, head_dim, pages};
}
/// Pages [kv_heads, page_tokens, head_dim]: the tokens of a head lie together.
[[nodiscard]] constexpr page_layout hnd_pages(index_t page_tokens, index_t kv_heads, index_t head_dim,
                                              index_t pages = page_layout::unknown_pages) {
    const index_t head = saturated_product(page_tokens, head_dim);
    return {page_tokens, saturated_product(kv_heads, head), head_dim, head, pages};
}

namespace detail {

// The bytes that rows of `heads` heads occupy in pages [first, first + count).
template <class T>
[[nodiscard]] strided_bytes bytes_of_pages(const T* pool, const page_layout& layout, index_t first,
                                           index_t count, index_t heads, index_t head_dim) {
    constexpr index_t size = sizeof(T);
    return {.first = first == 0 ? pool : pool + first * layout.page_stride,
            .extents = {count, layout.page_tokens, heads, head_dim},
            .strides = {to_bytes(layout.page_stride, size), to_bytes(layout.token_stride, size),
                        to_bytes(layout.head_stride, size), size},
            .bytes = size};
}

} // namespace detail

/// A page table, as views of the engine's memory. Members are unchecked: see validate().
struct page_table {
    /// [rows + 1]
    std::span<const std::int32_t> indptr;
    /// [indptr[rows]]
    std::span<const std::int32_t> indices;
    /// [rows]
    std::span<const std::int32_t> last_page_len;

    /// Requests, or (request, KV head) pairs.
    [[nodiscard]] index_t rows() const { return static_cast<index_t>(last_page_len.size()); }
    /// Pages of a row.
    [[nodiscard]] index_t pages(index_t row) const {
        const auto r = static_cast<std::size_t>(row);
        return index_t{indptr[r + 1]} - indptr[r];
    }
    /// The pages of a row, in the order of its tokens.
    [[nodiscard]] std::span<const std::int32_t> row(index_t row) const {
        return indices.subspan(static_cast<std::size_t>(indptr[static_cast<std::size_t>(row)]),
                               static_cast<std::size_t>(pages(row)));
    }
    /// Tokens of a row.
    [[nodiscard]] index_t tokens(index_t row, index_t page_tokens) const {
        if (pages(row) == 0) { return 0; }
        return (pages(row) - 1) * page_tokens + last_page_len[static_cast<std::size_t>(row)];
    }
    /// Pages of the longest row. O(rows).
    [[nodiscard]] index_t longest_row() const {
        index_t longest = 0;
        for (index_t r = 0; r < rows(); ++r) { longest = pages(r) > longest ? pages(r) : longest; }
        return longest;
    }
};

namespace detail {

[[nodiscard]] inline status validate_pages(std::span<const std::int32_t> pages, index_t most_pages) {
    if (any_outside(pages, most_pages)) {
        return {errc::invalid_table, "page table: a page lies outside the pool"};
    }
    return {};
}

// The offsets and the length of one row; pages are checked by validate_pages().
[[nodiscard]] inline status validate_length(const page_table& table, index_t row, index_t page_tokens) {
    const index_t begin = table.indptr[static_cast<std::size_t>(row)];
    const index_t pages = table.pages(row);
    if (begin < 0 || pages < 0 || begin + pages > std::ssize(table.indices)) {
        return {errc::invalid_table, "page table: indptr must ascend within the indices"};
    }
    if (pages == 0) { return {}; }
    const index_t last = table.last_page_len[static_cast<std::size_t>(row)];
    if (last < 1 || last > page_tokens) {
        return {errc::invalid_table, "page table: last_page_len must lie in 1 ... page_tokens, and be "
                                     "page_tokens where the page is full"};
    }
    if (pages > std::numeric_limits<std::int32_t>::max() / page_tokens) {
        return {errc::index_overflow, "page table: a row has at most 2^31 - 1 tokens", pages};
    }
    return {};
}

} // namespace detail

/// Checks whether rows [first, first + count) of a table can be read with this layout. Returns invalid_table for a row that it
/// does not have, offsets that decrease or leave the indices, pages outside the pool, a last page without tokens or with too
/// many; index_overflow; the layout's own errors. A page may be named more than once: readers share prefixes. O(pages named).
[[nodiscard]] inline status validate_rows(const page_table& table, index_t first, index_t count,
                                          const page_layout& layout) {
    if (const status s = layout.validate(); !s.ok()) { return s; }
    if (table.indptr.size() != table.last_page_len.size() + 1) {
        return {errc::invalid_table, "page table: indptr must have one entry more than last_page_len"};
    }
    if (first < 0 || count < 0 || first > table.rows() || count > table.rows() - first) {
        return {errc::invalid_table, "page table: it has no such row", table.rows()};
    }
    for (index_t r = first; r < first + count; ++r) {
        if (const status s = detail::validate_length(table, r, layout.page_tokens); !s.ok()) { return s; }
        if (const status s = detail::validate_pages(table.row(r), layout.most_pages()); !s.ok()) { return s; }
    }
    return {};
}

/// The same for a whole table of a pool of `pool_pages` pages, whose offsets must also go from 0 to the number of indices.
/// Returns also invalid_parameter for a negative number of pages.
[[nodiscard]] inline status validate(const page_table& table, index_t pool_pages, index_t page_tokens) {
    if (pool_pages < 0) {
        return {errc::invalid_parameter, "page table: a pool has no negative number of pages"};
    }
    const page_layout layout{.page_tokens = page_tokens, .pages = pool_pages};
    if (const status s = validate_rows(table, 0, table.rows(), layout); !s.ok()) { return s; }
    if (table.indptr.front() != 0 || static_cast<std::size_t>(table.indptr.back()) != table.indices.size()) {
        return {errc::invalid_table, "page table: indptr must go from 0 to the number of indices"};
    }
    return {};
}

/// A block table [requests, most_pages] with lengths in tokens (vLLM).
struct block_table {
    std::span<const std::int32_t> pages;  ///< [requests, most_pages], row-major
    index_t most_pages;                   ///< columns
    std::span<const std::int32_t> tokens; ///< [requests]
};

/// Writes a block table as a page_table, `out`, which views the caller's indptr [requests + 1], indices [pages in use] and
/// last_page_len [requests]. Returns invalid_table (a length that is negative or needs more pages than there are columns, a
/// negative page, pages of another size; needed: pages, if indices are too short), invalid_parameter, index_overflow or
/// views_overlap, with nothing written. The source that reads the table checks whether pages lie in the pool. O(pages in use).
[[nodiscard]] inline status write_page_table(const block_table& blocks, index_t page_tokens,
                                             std::span<std::int32_t> indptr, std::span<std::int32_t> indices,
                                             std::span<std::int32_t> last_page_len, page_table& out) {
    const std::size_t requests = blocks.tokens.size();
    if (indptr.size() != requests + 1 || last_page_len.size() != requests) {
        return {errc::invalid_parameter,
                "block table: indptr must have one entry more than requests, last_page_len as many"};
    }
    constexpr index_t most = std::numeric_limits<std::int32_t>::max();
    if (page_tokens <= 0 || page_tokens > most || blocks.most_pages < 0 || blocks.most_pages > most) {
        return {errc::invalid_parameter, "block table: a page must hold tokens, and counts fit into 32 bits"};
    }
    if (std::ssize(blocks.pages) != static_cast<index_t>(requests) * blocks.most_pages) {
        return {errc::invalid_table, "block table: pages must be [requests, most_pages]"};
    }
    index_t total = 0;
    for (const std::int32_t tokens : blocks.tokens) {
        if (tokens < 0 || tokens > blocks.most_pages * page_tokens) {
            return {errc::invalid_table, "block table: a length is negative or beyond its pages"};
        }
        total += (tokens + page_tokens - 1) / page_tokens;
    }
    for (std::size_t r = 0; r < requests; ++r) {
        const auto used = static_cast<std::size_t>((blocks.tokens[r] + page_tokens - 1) / page_tokens);
        const auto row = blocks.pages.subspan(r * static_cast<std::size_t>(blocks.most_pages), used);
        if (std::any_of(row.begin(), row.end(), [](std::int32_t page) { return page < 0; })) {
            return {errc::invalid_table, "block table: a page in use has a negative number"};
        }
    }
    if (total > most) { return {errc::index_overflow, "block table: a table names 2^31 - 1 pages", total}; }
    if (total > static_cast<index_t>(indices.size())) {
        return {errc::invalid_table, "block table: indices have too little room; needed: pages", total};
    }
    const std::array written{bytes_of(indptr), bytes_of(indices), bytes_of(last_page_len)};
    if (const status s = check_outputs(written, blocks.pages, blocks.tokens); !s.ok()) { return s; }
    indptr[0] = 0;
    for (std::size_t r = 0; r < requests; ++r) {
        const index_t tokens = blocks.tokens[r];
        const index_t used = (tokens + page_tokens - 1) / page_tokens;
        const auto first = blocks.pages.begin() + static_cast<index_t>(r) * blocks.most_pages;
        std::copy_n(first, used, indices.begin() + indptr[r]);
        indptr[r + 1] = indptr[r] + static_cast<std::int32_t>(used);
        last_page_len[r] = static_cast<std::int32_t>(used == 0 ? 0 : tokens - (used - 1) * page_tokens);
    }
    out = {indptr, indices.first(static_cast<std::size_t>(total)), last_page_len};
    return {};
}

} // namespace KVTRIM_NAMESPACE
