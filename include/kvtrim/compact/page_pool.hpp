// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The pool that the pages of a table are from, as a planner of moves needs to know it, and how moves are planned.
//
//   page_pool           pages, their slots and heads, who else reads a page, which pages are free
//   page_move_options   the order of the moves (move_order), and what becomes of shared pages (shared_pages)

#include <kvtrim/cache/page_table.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>

namespace KVTRIM_NAMESPACE {

/// Which survivors move where; compact/plan_page_moves.hpp has an example of each.
enum class move_order : std::uint8_t {
    fewest,    ///< pages with the most survivors stay, and the other survivors fill their holes
    from_tail, ///< the first pages of a row stay, and the survivors behind them fill their holes
    in_order,  ///< survivors close up and keep their order
};
/// What becomes of a shared page that is kept in part.
enum class shared_pages : std::uint8_t {
    stay_whole, ///< all its tokens stay
    copied,     ///< its survivors are copied into pages of the row's own
};

/// The pages of a pool, as the planner needs to know them.
struct page_pool {
    index_t pages = 0;        ///< pages of the pool
    index_t page_tokens = 16; ///< slots of a page
    index_t heads = 1;        ///< KV heads in each page, each with a token set of its own
    std::span<const std::int32_t> ref_counts = {}; ///< [pages]; empty: no page is shared
    std::span<const std::int32_t> free_pages = {}; ///< for copies, taken from the first on

    /// Whether other sequences read a page too; the page is not checked.
    [[nodiscard]] bool is_shared(std::int32_t page) const {
        return !ref_counts.empty() && ref_counts[static_cast<std::size_t>(page)] > 1;
    }
};

/// Returns invalid_parameter, index_overflow, or invalid_table for ref_counts that are negative or not one per page (needed:
/// pages). Free pages are checked when they are taken. O(pages).
[[nodiscard]] inline status validate(const page_pool& pool) {
    if (const status s = page_layout{.page_tokens = pool.page_tokens, .pages = pool.pages}.validate();
        !s.ok()) {
        return s;
    }
    if (pool.pages < 0 || pool.heads <= 0) {
        return {errc::invalid_parameter, "page pool: heads must be positive, pages not be negative"};
    }
    if (pool.heads > std::numeric_limits<std::int32_t>::max() / pool.page_tokens) {
        return {errc::index_overflow, "page pool: a page holds at most 2^31 - 1 rows of all heads",
                pool.heads};
    }
    if (pool.ref_counts.empty()) { return {}; }
    if (std::ssize(pool.ref_counts) != pool.pages) {
        return {errc::invalid_table, "page pool: ref_counts must have one entry per page", pool.pages};
    }
    if (std::any_of(pool.ref_counts.begin(), pool.ref_counts.end(), [](std::int32_t c) { return c < 0; })) {
        return {errc::invalid_table, "page pool: ref_counts must not be negative"};
    }
    return {};
}

/// How moves are planned.
struct page_move_options {
    move_order order = move_order::fewest;          ///< of the moves
    shared_pages shared = shared_pages::stay_whole; ///< which are kept in part
};

} // namespace KVTRIM_NAMESPACE
