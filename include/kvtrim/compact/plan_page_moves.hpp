// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A keep_plan on a paged cache: which slots are copied where, which pages become free, and the table afterwards.
//
//   before      [a b . c] [. . d .] [e f g .]     page_tokens 4; a point is an evicted token, or an empty slot
//   fewest      [a b d c]  freed    [e f g]       d fills the hole: 1 move
//   from_tail   [a b e c] [f g d]    freed        3 moves
//   in_order    [a b c d] [e f g]    freed        5 moves
//
// A row keeps ceil(kept / page_tokens) pages. Order of moves:
//   fewest     pages with the most survivors stay, survivors of the others fill their holes. No other choice of
//              pages, and of the page that ends the row, needs fewer moves. A window of new tokens, all kept,
//              mostly stays where it is
//   from_tail  the first pages of a row stay: one move for each survivor beyond the new length, no other
//   in_order   pages close up and tokens keep their order: one move for each survivor whose slot changes
// In the first two no destination is a source, so moves may run in any order. In the third no slot is overwritten
// before it is read if the moves of a row run as listed. There is no second buffer.
//
// Heads: plan rows per row of the table. 1: a slot moves with everything it holds; for tables per (request, KV
// head), and for one token set for all heads. More: pages span `heads` heads, each with tokens of its own (row *
// heads + head of the plan), equally many in one row; moves are per head.
//
// Shared pages (ref_counts above 1) are never written and never freed. One without survivors is released, one of
// which all heads keep everything stays. Of one that is kept in part
//   stay_whole   all tokens stay, also those that the plan evicts; extra_tokens() counts them
//   copied       survivors are copied into pages that the row owns, and what those cannot hold into free_pages;
//                in_order, a free page takes the place of each one that is copied
// A page stands in the table at most as often as its ref_count says; without ref_counts, once.
//
// page_shared is the answer where a shared page would have to change under stay_whole: a last page that is not full, or
// in_order one behind an evicted token. pages_too_few: copies need more free pages than there are.
// Cost: linear in kept tokens, pages of the pool, and heads * page_tokens for each row. Workspace: an int per page
// of the pool, heads + 2 for each page of the longest row, and heads * page_tokens.

#include <kvtrim/compact/page_fates.hpp>
#include <kvtrim/plan/move_plan.hpp>

#include <bit>
#include <numeric>
#include <utility>

namespace KVTRIM_NAMESPACE {

namespace detail {

class page_planner {
  public:
    page_planner(const page_table& table, const page_pool& pool, const page_move_options& options,
                 workspace& scratch)
        : table_(table), pool_(pool), options_(options), tokens_(pool.page_tokens),
          named_(scratch.take<std::int32_t>(pool.pages)), row_(table, pool, options, scratch) {}

    // Returns the error of the whole call, before anything is written.
    [[nodiscard]] status check(const keep_plan& plan) {
        if (plan.rows() != table_.rows() * pool_.heads) {
            return {errc::plan_mismatch, "the plan has another number of rows than the page table",
                    plan.rows()};
        }
        if (!plan.check_invariants([&](index_t r) { return table_.tokens(r / pool_.heads, tokens_); })) {
            return {errc::plan_mismatch, "the plan keeps rows that the cache does not have"};
        }
        if (const status s = check_pages(); !s.ok()) { return s; }
        index_t fresh_pages = 0;
        total_tokens_ = 0;
        for (index_t row = 0; row < table_.rows(); ++row) {
            if (const status s = row_.check(plan, row); !s.ok()) { return s; }
            fresh_pages += row_.fresh_pages();
            total_tokens_ += row_.kept() * pool_.heads;
        }
        if (total_tokens_ > std::numeric_limits<std::int32_t>::max()) {
            return {errc::index_overflow, "a plan holds at most 2^31 - 1 tokens", total_tokens_};
        }
        return check_free_pages(fresh_pages);
    }

    // Writes the plan that was checked.
    void write(const keep_plan& plan, move_plan& out) {
        clear(out);
        out.origins_.resize(static_cast<std::size_t>(total_tokens_));
        out.moves_.resize(static_cast<std::size_t>(total_tokens_)); // at most
        std::int32_t* origin = out.origins_.data();
        slot_move* move = out.moves_.data();
        for (index_t row = 0; row < table_.rows(); ++row) {
            static_cast<void>(row_.decide(plan, row));
            write_pages(out);
            const auto first_page = static_cast<std::size_t>(out.indptr_.end()[-2]);
            const std::span<const std::int32_t> new_pages = std::span(out.indices_).subspan(first_page);
            for (index_t head = 0; head < pool_.heads; ++head) {
                const auto kept = plan.row(row * pool_.heads + head);
                move = options_.order == move_order::in_order
                           ? close_up(kept.data(), head, new_pages, origin, move)
                           : fill_holes(kept.data(), head, new_pages, origin, move);
                origin += row_.kept();
                out.move_offsets_.push_back(static_cast<std::int32_t>(move - out.moves_.data()));
                out.origin_offsets_.push_back(static_cast<std::int32_t>(origin - out.origins_.data()));
                out.extra_ += row_.kept() - std::ssize(kept);
            }
        }
        out.moves_.resize(static_cast<std::size_t>(move - out.moves_.data()));
    }

  private:
    [[nodiscard]] status check_pages() {
        std::fill(named_.begin(), named_.end(), 0);
        for (const std::int32_t page : table_.indices) {
            const auto p = static_cast<std::size_t>(page);
            highest_page_ = std::max(highest_page_, page);
            const std::int32_t owners = pool_.ref_counts.empty() ? 1 : pool_.ref_counts[p];
            if (++named_[p] > owners) {
                return {errc::invalid_table, "page table: a page stands in it more often than it has owners"};
            }
        }
        return {};
    }
    [[nodiscard]] status check_free_pages(index_t needed) {
        if (needed > std::ssize(pool_.free_pages)) {
            return {errc::pages_too_few, "copies of shared pages need more free pages", needed};
        }
        for (const std::int32_t page : pool_.free_pages.first(static_cast<std::size_t>(needed))) {
            if (page < 0 || page >= pool_.pages || named_[static_cast<std::size_t>(page)]++ > 0) {
                return {errc::invalid_table, "a free page lies outside the pool, is in use or stands twice"};
            }
        }
        return {};
    }

    // All but the moves and origins, which are written over.
    void clear(move_plan& out) const {
        out.heads_ = pool_.heads;
        out.page_tokens_ = tokens_;
        out.highest_page_ = highest_page_;
        out.taken_ = 0;
        out.extra_ = 0;
        for (auto* table : {&out.move_offsets_, &out.origin_offsets_, &out.indptr_}) { table->assign(1, 0); }
        for (auto* list : {&out.indices_, &out.last_page_len_, &out.freed_, &out.released_}) {
            list->clear();
        }
    }

    // The pages of the current row, before and after.
    void write_pages(move_plan& out) const {
        const auto take = [&] {
            const std::int32_t page = pool_.free_pages[static_cast<std::size_t>(out.taken_++)];
            out.highest_page_ = std::max(out.highest_page_, page);
            return page;
        };
        const index_t taken_before = out.taken_;
        std::int32_t last = -1;
        for (std::size_t j = 0; j < row_.pages(); ++j) {
            switch (row_[j]) {
            case page_fate::stays:
                out.indices_.push_back(row_.page(j));
                break;
            case page_fate::ends_row:
                last = row_.page(j);
                break;
            case page_fate::leaves:
                out.freed_.push_back(row_.page(j));
                break;
            case page_fate::copied:
                out.released_.push_back(row_.page(j));
                break;
            case page_fate::replaced:
                out.released_.push_back(row_.page(j));
                out.indices_.push_back(take());
                break;
            }
        }
        while (out.taken_ - taken_before < row_.fresh_pages()) { out.indices_.push_back(take()); }
        if (last >= 0) { out.indices_.push_back(last); }
        out.indptr_.push_back(static_cast<std::int32_t>(out.indices_.size()));
        out.last_page_len_.push_back(static_cast<std::int32_t>(row_.used_of_last()));
    }

    [[nodiscard]] index_t first_token(std::size_t j) const { return static_cast<index_t>(j) * tokens_; }
    [[nodiscard]] std::int32_t shift(std::size_t j) const {
        return static_cast<std::int32_t>(row_.page(j) * tokens_ - first_token(j));
    }

    // Survivors in used slots of pages that stay are in place; the others fill the empty slots there. Until a survivor is
    // assigned to a hole, `from` of its move is the hole's index among the origins.
    slot_move* fill_holes(const std::int32_t* kept, index_t head, std::span<const std::int32_t> new_pages,
                          std::int32_t* const origins, slot_move* const moves) const {
        const std::int32_t* const first = row_.first(head);
        slot_move* hole = moves;
        std::int32_t origin = 0;
        // The page that ends the row comes after the others, wherever it stands in the table.
        std::size_t last = row_.pages();
        for (std::size_t n = 0; n <= row_.pages(); ++n) {
            const bool is_last = n == row_.pages();
            const std::size_t j = is_last ? last : n;
            if (j == row_.pages()) { break; }
            if (!is_last && row_[j] == page_fate::ends_row) { last = j; }
            if (!is_last && row_[j] != page_fate::stays) { continue; }
            const auto used = static_cast<std::int32_t>(is_last ? row_.used_of_last() : tokens_);
            const auto begin = static_cast<std::int32_t>(first_token(j));
            if (row_.is_shared(j)) {
                std::iota(origins + origin, origins + origin + used, begin);
                origin += used;
                continue;
            }
            const std::int32_t* next = kept + first[j];
            const std::int32_t* const end = kept + first[j + 1];
            for (std::int32_t part = 0; part < used; part += 64) { // a bit for each hole
                const std::int32_t count = std::min(64, used - part);
                std::uint64_t holes = ~std::uint64_t{0} >> (64 - count);
                for (; next != end && *next - begin < part + count; ++next) {
                    const std::int32_t i = *next - begin - part;
                    origins[origin + i] = *next;
                    holes &= ~(std::uint64_t{1} << i);
                }
                const std::int32_t slot = begin + shift(j) + part;
                for (; holes != 0; holes &= holes - 1) {
                    const std::int32_t i = std::countr_zero(holes);
                    *hole++ = {origin + i, slot + i};
                }
                origin += count;
            }
        }
        for (index_t fresh = row_.fresh_pages(); fresh > 0; --fresh) {
            const std::int32_t page = new_pages[new_pages.size() - static_cast<std::size_t>(fresh)];
            const index_t used = fresh == 1 ? row_.used_of_last() : tokens_;
            const auto slot = static_cast<std::int32_t>(page * tokens_);
            for (std::int32_t i = 0; i < used; ++i) { *hole++ = {origin++, slot + i}; }
        }
        slot_move* move = moves;
        for (std::size_t j = 0; j < row_.pages(); ++j) {
            if (row_[j] == page_fate::stays) { continue; }
            const std::int32_t* next = kept + first[j];
            const std::int32_t* const end = kept + first[j + 1];
            if (row_[j] == page_fate::ends_row) {
                next = std::lower_bound(next, end, first_token(j) + row_.used_of_last());
            }
            for (const std::int32_t slots = shift(j); next != end; ++next, ++move) {
                origins[move->from] = *next;
                move->from = *next + slots;
            }
        }
        return move;
    }

    // Survivor i goes to slot i of the new pages.
    slot_move* close_up(const std::int32_t* kept, index_t head, std::span<const std::int32_t> new_pages,
                        std::int32_t* origin, slot_move* move) const {
        const std::int32_t* const first = row_.first(head);
        std::size_t page = 0;
        index_t offset = 0;
        const auto place = [&](std::int32_t token, std::int32_t from) {
            if (offset == tokens_) { offset = 0, ++page; }
            const auto to = static_cast<std::int32_t>(new_pages[page] * tokens_ + offset++);
            *origin++ = token;
            *move = {from, to};
            move += from != to ? 1 : 0;
        };
        for (std::size_t j = 0; j < row_.pages(); ++j) {
            const bool is_whole =
                row_.is_shared(j) && (row_[j] == page_fate::stays || row_[j] == page_fate::ends_row);
            if (is_whole) {
                const auto begin = static_cast<std::int32_t>(first_token(j));
                for (std::int32_t i = 0; i < row_.page_length(j); ++i) {
                    place(begin + i, begin + i + shift(j));
                }
                continue;
            }
            for (std::int32_t i = first[j]; i < first[j + 1]; ++i) { place(kept[i], kept[i] + shift(j)); }
        }
        return move;
    }

    const page_table& table_;
    const page_pool& pool_;
    const page_move_options& options_;
    index_t tokens_;                 // of a page
    std::int32_t highest_page_ = -1; // of the table
    index_t total_tokens_ = 0;       // of all heads after the moves
    std::span<std::int32_t> named_;  // [pages] times the table names each page
    page_fates row_;
};

// Bytes of workspace for a valid table and pool.
[[nodiscard]] inline index_t page_planner_bytes(const page_table& table, const page_pool& pool) {
    workspace counting = workspace::counting();
    static_cast<void>(page_planner(table, pool, {}, counting));
    return counting.needed_bytes();
}

} // namespace detail

/// Bytes of workspace for this table; 0 for a table or a pool that is refused.
[[nodiscard]] inline index_t plan_page_moves_bytes(const page_table& table, const page_pool& pool) {
    const bool is_valid = validate(table, pool.pages, pool.page_tokens).ok() && validate(pool).ok();
    return is_valid ? detail::page_planner_bytes(table, pool) : 0;
}

/// Plans the moves. Returns what validate(table) and validate(pool) say; plan_mismatch for a plan of other rows;
/// rows_differ where heads that share pages keep different numbers of tokens; invalid_table for a page that is named too often or
/// a free page that is in use; page_shared, pages_too_few (needed: pages) or index_overflow, see above; workspace_too_small; or
/// invalid_parameter if `out` holds the table or the pool's lists. `out` is then as it was.
[[nodiscard]] inline status plan_page_moves(const keep_plan& plan, const page_table& table,
                                            const page_pool& pool, const page_move_options& options,
                                            move_plan& out, workspace& scratch) {
    for (const auto read :
         {table.indptr, table.indices, table.last_page_len, pool.ref_counts, pool.free_pages}) {
        if (out.holds(read)) {
            return {errc::invalid_parameter,
                    "plan_page_moves: the output must be another plan than the one whose tables are read"};
        }
    }
    if (const status s = validate(table, pool.pages, pool.page_tokens); !s.ok()) { return s; }
    if (const status s = validate(pool); !s.ok()) { return s; }
    const index_t bytes = detail::page_planner_bytes(table, pool);
    if (!scratch.holds(bytes)) { return scratch.too_small(bytes); }
    const workspace::frame frame(scratch);
    detail::page_planner planner(table, pool, options, scratch);
    if (const status s = planner.check(plan); !s.ok()) { return s; }
    move_plan made =
        std::exchange(out, {}); // its memory; where an allocation throws, `out` is a plan never made
    planner.write(plan, made);
    out = std::move(made);
    return {};
}

} // namespace KVTRIM_NAMESPACE
