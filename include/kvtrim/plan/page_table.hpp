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

#include <kvtrim/base/contract.hpp>
#include <kvtrim/base/status.hpp>

#include <cstdint>
#include <limits>
#include <span>

namespace kvtrim {

// Where slots lie in memory. Strides count elements; with two of them swapped it is NHD or HND.
struct page_layout {
    index_t page_tokens = 16;
    index_t page_stride = 0;
    index_t token_stride = 0;
    index_t head_stride = 0;
};

struct page_table {
    std::span<const std::int32_t> indptr;
    std::span<const std::int32_t> indices;
    std::span<const std::int32_t> last_page_len;

    [[nodiscard]] index_t rows() const { return static_cast<index_t>(last_page_len.size()); }
    [[nodiscard]] index_t pages(index_t row) const {
        const auto r = static_cast<std::size_t>(row);
        return index_t{indptr[r + 1]} - indptr[r];
    }
    [[nodiscard]] std::span<const std::int32_t> row(index_t row) const {
        return indices.subspan(static_cast<std::size_t>(indptr[static_cast<std::size_t>(row)]),
                               static_cast<std::size_t>(pages(row)));
    }
    [[nodiscard]] index_t tokens(index_t row, index_t page_tokens) const {
        if (pages(row) == 0) { return 0; }
        return (pages(row) - 1) * page_tokens + last_page_len[static_cast<std::size_t>(row)];
    }
    [[nodiscard]] index_t longest_row() const { // in pages
        index_t longest = 0;
        for (index_t r = 0; r < rows(); ++r) { longest = pages(r) > longest ? pages(r) : longest; }
        return longest;
    }
};

// Bad input: page counts or sizes that are not positive or whose slots exceed 2^31 - 1 (index_overflow), offsets
// that do not ascend from 0 to the number of indices, pages outside the pool, a last page without tokens or with
// too many (invalid_table). A page may be named more than once: readers share prefixes. Requires indptr and
// last_page_len of sizes that agree. O(rows + pages named).
[[nodiscard]] inline status validate(const page_table& table, index_t pool_pages, index_t page_tokens) {
    constexpr index_t most = std::numeric_limits<std::int32_t>::max();
    KVTRIM_EXPECTS(table.indptr.size() == table.last_page_len.size() + 1,
                   "page_table: indptr must have one entry more than last_page_len");
    if (page_tokens <= 0 || pool_pages < 0) {
        return {errc::invalid_parameter, "page table: pages must hold tokens, and not be a negative number"};
    }
    if (pool_pages > most / page_tokens) {
        return {errc::index_overflow, "page table: a pool has at most 2^31 - 1 slots", pool_pages};
    }
    if (table.indptr[0] != 0 || static_cast<std::size_t>(table.indptr.back()) != table.indices.size()) {
        return {errc::invalid_table, "page table: indptr must go from 0 to the number of indices"};
    }
    for (index_t r = 0; r < table.rows(); ++r) {
        const index_t pages = table.pages(r);
        if (pages < 0) { return {errc::invalid_table, "page table: indptr must not decrease"}; }
        if (pages == 0) { continue; }
        const index_t last = table.last_page_len[static_cast<std::size_t>(r)];
        if (last < 1 || last > page_tokens) {
            return {errc::invalid_table, "page table: last_page_len must lie in 1 ... page_tokens"};
        }
        if (pages > most / page_tokens) {
            return {errc::index_overflow, "page table: a row has at most 2^31 - 1 tokens", pages};
        }
    }
    for (const std::int32_t page : table.indices) {
        if (page < 0 || page >= pool_pages) {
            return {errc::invalid_table, "page table: a page lies outside the pool"};
        }
    }
    return {};
}

} // namespace kvtrim
