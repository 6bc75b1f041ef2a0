// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Pools of pages with random tables over them, random plans for the tables, and what a planned and executed move
// must leave.

#include "compact/random_cache.hpp"

#include <kvtrim/compact/move_rows.hpp>
#include <kvtrim/compact/plan_page_moves.hpp>

#include <set>
#include <string>

namespace support {

using int32s = std::vector<std::int32_t>;

// Keys [pages, page_tokens, heads, key_dim] or [pages, heads, page_tokens, key_dim], values and positions beside
// them, and a table over some of the pages.
struct paged_cache {
    index_t page_tokens = 4;
    index_t pages = 0;
    index_t heads = 1;
    index_t key_dim = 2;
    index_t value_dim = 1;
    bool head_major = false; // HND
    std::vector<float> k, v;
    int32s positions;
    int32s indptr{0}, indices, last_page_len;
    int32s ref_counts; // [pages]; 1 where no one shares
    int32s free_pages;

    [[nodiscard]] kvtrim::page_table table() const { return {indptr, indices, last_page_len}; }
    [[nodiscard]] index_t rows() const { return std::ssize(last_page_len); }
    [[nodiscard]] index_t tokens(index_t row) const { return table().tokens(row, page_tokens); }

    [[nodiscard]] kvtrim::page_layout layout(index_t dim) const {
        const index_t page = heads * page_tokens * dim + dim; // a gap behind each page
        return head_major ? kvtrim::page_layout{page_tokens, page, dim, page_tokens * dim}
                          : kvtrim::page_layout{page_tokens, page, heads * dim, dim};
    }
    template <class T>
    [[nodiscard]] kvtrim::paged_memory<T> memory(std::vector<T>& data, index_t dim) const {
        return {data.data(), layout(dim), heads, dim};
    }
    [[nodiscard]] auto keys() { return memory(k, key_dim); }
    [[nodiscard]] auto values() { return memory(v, value_dim); }
    [[nodiscard]] auto stored_positions() { return memory(positions, 1); }

    // Fills the pool with random bits; the position of a slot is random too, so that a wrong one shows.
    void fill(random& r) {
        k = random_elements<float>(r, pages * layout(key_dim).page_stride);
        v = random_elements<float>(r, pages * layout(value_dim).page_stride);
        positions = random_elements<std::int32_t>(r, pages * layout(1).page_stride);
    }
    void move(const kvtrim::move_plan& plan) {
        CHECK(kvtrim::move_rows(keys(), values(), plan).ok());
        CHECK(kvtrim::move_rows(stored_positions(), plan).ok());
    }
};

inline std::int32_t slot_of(const kvtrim::page_table& table, index_t row, index_t token,
                            index_t page_tokens) {
    return table.row(row)[static_cast<std::size_t>(token / page_tokens)] *
               static_cast<std::int32_t>(page_tokens) +
           static_cast<std::int32_t>(token % page_tokens);
}

// Rows of these lengths over pages in random order. Some pages have a second reader, and some rows share their
// first pages.
inline paged_cache random_pages(random& r, const std::vector<index_t>& lengths, double shared) {
    paged_cache c;
    c.page_tokens = r.one_of({1, 2, 3, 4, 8, 70});
    c.heads = r.between(1, 3);
    c.key_dim = r.between(1, 4);
    c.value_dim = r.between(1, 3);
    c.head_major = r.chance(0.5);
    const auto pages_of = [&](index_t length) { return (length + c.page_tokens - 1) / c.page_tokens; };
    for (const index_t length : lengths) { c.pages += 2 * pages_of(length) + 1; }
    int32s order(static_cast<std::size_t>(c.pages));
    std::iota(order.begin(), order.end(), 0);
    for (std::size_t i = order.size(); i > 1; --i) { std::swap(order[i - 1], order[r.bits() % i]); }
    c.ref_counts.assign(order.size(), 1);
    for (const index_t length : lengths) {
        const index_t count = pages_of(length);
        const auto previous = c.rows() > 0 ? c.table().row(c.rows() - 1) : std::span<const std::int32_t>();
        const index_t common =
            r.chance(shared) ? r.between(0, std::min<index_t>(count, std::ssize(previous))) : 0;
        const int32s prefix(previous.begin(), previous.begin() + common);
        for (index_t j = 0; j < count; ++j) {
            const bool is_common = j < common && j + 1 < std::ssize(previous);
            const std::int32_t page = is_common ? prefix[static_cast<std::size_t>(j)] : order.back();
            if (is_common) {
                ++c.ref_counts[static_cast<std::size_t>(page)];
            } else {
                order.pop_back();
                if (r.chance(shared / 3)) { ++c.ref_counts[static_cast<std::size_t>(page)]; }
            }
            c.indices.push_back(page);
        }
        c.indptr.push_back(static_cast<std::int32_t>(c.indices.size()));
        c.last_page_len.push_back(
            static_cast<std::int32_t>(count == 0 ? r.between(0, 9) : length - (count - 1) * c.page_tokens));
    }
    c.free_pages = order;
    c.fill(r);
    return c;
}

inline std::vector<index_t> random_lengths(random& r, index_t most_rows, index_t longest) {
    std::vector<index_t> lengths;
    for (index_t i = r.between(0, most_rows); i > 0; --i) {
        lengths.push_back(r.chance(0.1) ? 0 : r.between(1, longest));
    }
    return lengths;
}

// `heads` rows per row of the table; of one row all keep equally many tokens, in runs, alone, or none.
inline kvtrim::keep_plan random_page_plan(random& r, const paged_cache& c, index_t heads) {
    std::vector<oracle::token_set> sets;
    for (index_t row = 0; row < c.rows(); ++row) {
        const auto first = any_plan(r, {c.tokens(row)});
        for (index_t head = 0; head < heads; ++head) {
            oracle::token_set all(static_cast<std::size_t>(c.tokens(row)));
            std::iota(all.begin(), all.end(), std::size_t{0});
            if (head == 0) {
                all.assign(first.kept().begin(), first.kept().end());
            } else {
                for (std::size_t i = all.size(); i > 1; --i) { std::swap(all[i - 1], all[r.bits() % i]); }
                all.resize(static_cast<std::size_t>(first.total_tokens()));
                std::sort(all.begin(), all.end());
            }
            sets.push_back(all);
        }
    }
    return plan_of(sets);
}

struct planned_moves {
    kvtrim::status answer;
    kvtrim::move_plan plan;
};

// In exactly the workspace that is asked for.
inline planned_moves plan_moves(const kvtrim::keep_plan& plan, const kvtrim::page_table& table,
                                const kvtrim::page_pool& pool,
                                const kvtrim::page_move_options& options = {}) {
    planned_moves p;
    kvtrim::growing_workspace memory;
    kvtrim::workspace scratch = memory.of_bytes(kvtrim::plan_page_moves_bytes(table, pool));
    p.answer = kvtrim::plan_page_moves(plan, table, pool, options, p.plan, scratch);
    return p;
}

} // namespace support
