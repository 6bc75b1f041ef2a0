// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What an engine with pages does after an eviction: copies between slots, a new page table, and pages that it gets
// back.
//
//   moves(r)          slot_move {from, to}, in the order of execution; slot = page * page_tokens + token of the page
//   table()           the new indptr, indices, last_page_len (0 for a row without pages)
//   freed_pages()     pages that the table owned and no longer names
//   released_pages()  shared pages that a row no longer names: decrement the page's reference count once per entry
//   taken_pages()     how many of the free pages that were offered now belong to the table, from the first on
//   origins(r)        for each slot of a row, in the order of its new table, the cache row whose token it holds now
//
// Rows r are those of the keep_plan: a row of the table, or a (row of the table, head) where heads share pages but
// not their tokens. Rows are independent of each other; moves of one row run in order. The tables keep their
// capacity, so that a plan made again for the same sizes allocates nothing. To make one: compact/plan_page_moves.hpp.

#include <kvtrim/cache/page_table.hpp>
#include <kvtrim/plan/keep_plan.hpp>

#include <vector>

namespace KVTRIM_NAMESPACE {

/// One copy between slots of the pool.
struct slot_move {
    std::int32_t from = 0; ///< slot that is read
    std::int32_t to = 0;   ///< slot that is written

    friend constexpr bool operator==(const slot_move&, const slot_move&) = default;
};

namespace detail {
class page_planner;
}

/// The moves and the new page table of one eviction. A value: copies are independent.
class move_plan {
  public:
    move_plan() = default;                       ///< never made
    move_plan(const move_plan&) = default;       ///< a copy
    move_plan(move_plan&&) = default;            ///< takes the memory
    move_plan& operator=(move_plan&&) = default; ///< takes the memory
    /// A copy; where an allocation throws this is as it was.
    move_plan& operator=(const move_plan& other) { return *this = move_plan(other); }

    /// Rows of the keep_plan; 0 for a plan never made.
    [[nodiscard]] index_t rows() const {
        return move_offsets_.empty() ? 0 : static_cast<index_t>(move_offsets_.size()) - 1;
    }
    /// Plan rows per row of the table: kv_heads where heads share pages, 1 where a slot moves with all that it holds.
    [[nodiscard]] index_t heads() const { return heads_; }
    /// The moves of a row, in the order in which they must run.
    [[nodiscard]] std::span<const slot_move> moves(index_t row) const& {
        return part(moves_, move_offsets_, row);
    }
    /// Moves of all rows together.
    [[nodiscard]] index_t total_moves() const { return static_cast<index_t>(moves_.size()); }
    /// Tokens of a page of the pool that the plan was made for; 0 for a plan never made.
    [[nodiscard]] index_t page_tokens() const { return page_tokens_; }
    /// Pages that a pool must have for the table, and all moves, to lie in it.
    [[nodiscard]] index_t pages_touched() const { return moves_.empty() ? 0 : index_t{highest_page_} + 1; }

    /// The page table after the moves, a view of this plan's memory.
    [[nodiscard]] page_table table() const& { return {indptr_, indices_, last_page_len_}; }
    /// Pages that the table owned and no longer names.
    [[nodiscard]] std::span<const std::int32_t> freed_pages() const& { return freed_; }
    /// Shared pages that a row no longer names, once for each reference that ends.
    [[nodiscard]] std::span<const std::int32_t> released_pages() const& { return released_; }
    /// How many of the free pages that were offered are now the table's, from the first on.
    [[nodiscard]] index_t taken_pages() const { return taken_; }

    /// For each slot of a row, in the order of its new table, the cache row whose token it now holds.
    [[nodiscard]] std::span<const std::int32_t> origins(index_t row) const& {
        return part(origins_, origin_offsets_, row);
    }
    /// Tokens of a row after the moves.
    [[nodiscard]] index_t kept_tokens(index_t row) const { return static_cast<index_t>(origins(row).size()); }
    /// Not of a temporary plan, whose tables are freed before they are read.
    void moves(index_t row) const&& = delete;
    void table() const&& = delete;
    void freed_pages() const&& = delete;
    void released_pages() const&& = delete;
    void origins(index_t row) const&& = delete;
    /// Tokens that stay although the keep_plan evicts them, because they lie in shared pages; all rows together.
    [[nodiscard]] index_t extra_tokens() const { return extra_; }

    /// Writes the position of the token in each slot of a row, where cache row t had position positions[t]. Errors as
    /// keep_plan::gather_positions; tokens may have changed their order, so that in place it often answers views_overlap.
    template <class Position>
    [[nodiscard]] status gather_positions(index_t row, std::span<const Position> positions,
                                          std::span<Position> out) const {
        if (row < 0 || row >= rows()) {
            return {errc::plan_mismatch, "gather_positions: the plan has no such row", rows()};
        }
        return detail::gather_positions(origins(row), positions, out);
    }

    /// Whether a list begins in a table of this plan, so that making the plan again would overwrite it.
    [[nodiscard]] bool holds(std::span<const std::int32_t> list) const {
        const auto is_in = [&](std::span<const std::int32_t> own) {
            return detail::points_into(list.data(), own);
        };
        return !list.empty() && (is_in(indptr_) || is_in(indices_) || is_in(last_page_len_) ||
                                 is_in(freed_) || is_in(released_) || is_in(origins_));
    }

    friend bool operator==(const move_plan&, const move_plan&) = default;

  private:
    friend class detail::page_planner;

    template <class T>
    static std::span<const T> part(const std::vector<T>& all, const std::vector<std::int32_t>& offsets,
                                   index_t row) {
        const auto r = static_cast<std::size_t>(row);
        return std::span(all).subspan(static_cast<std::size_t>(offsets[r]),
                                      static_cast<std::size_t>(offsets[r + 1] - offsets[r]));
    }

    index_t heads_ = 1;
    index_t page_tokens_ = 0;
    std::int32_t highest_page_ = -1; // that the tables before and after name
    index_t taken_ = 0;
    index_t extra_ = 0;
    std::vector<slot_move> moves_;
    std::vector<std::int32_t> move_offsets_; // [rows + 1]
    std::vector<std::int32_t> origins_;
    std::vector<std::int32_t> origin_offsets_; // [rows + 1]
    std::vector<std::int32_t> indptr_;
    std::vector<std::int32_t> indices_;
    std::vector<std::int32_t> last_page_len_;
    std::vector<std::int32_t> freed_;
    std::vector<std::int32_t> released_;
};

} // namespace KVTRIM_NAMESPACE
