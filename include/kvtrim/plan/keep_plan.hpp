// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What stays: for every KV head the cache rows that survive, ascending, as one CSR table.
//
//   offsets [rows + 1]        int32; rows of head r are kept[offsets[r], offsets[r + 1])
//   kept    [offsets[rows]]   int32 cache rows, strictly ascending within a head
//
// offsets are at once the cu_seqlens of the compacted cache and the indptr of an index table. The tables keep
// their capacity, so that a plan that is made again for the same shape allocates nothing.
// An engine may fill one through reset() and writable_row(): what it keeps is checked by every call that takes a plan.

#include <kvtrim/core/any_index.hpp>
#include <kvtrim/core/eviction_request.hpp>
#include <kvtrim/core/span_of.hpp>

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace KVTRIM_NAMESPACE {

namespace detail {

// Whether a pointer points to an element. By integers: pointers into different arrays have no order, and <functional>,
// which would give them one, costs each file 0.1 s.
template <class T>
[[nodiscard]] bool points_into(const T* at, std::span<const T> elements) {
    const auto address = [](const T* p) { return reinterpret_cast<std::uintptr_t>(p); };
    return address(at) >= address(elements.data()) &&
           address(at) < address(elements.data() + elements.size());
}

// out[i] = positions[tokens[i]], or a status.
template <class Position>
[[nodiscard]] status gather_positions(std::span<const std::int32_t> tokens,
                                      std::span<const Position> positions, std::span<Position> out) {
    if (out.size() < tokens.size()) {
        return {errc::invalid_parameter, "gather_positions: the output is too short", std::ssize(tokens)};
    }
    for (std::size_t i = 0; i < tokens.size(); ++i) {
        const std::int32_t token = tokens[i];
        if (token < 0 || static_cast<std::size_t>(token) >= positions.size()) {
            return {errc::invalid_parameter, "gather_positions: positions must cover the cache",
                    index_t{token} + 1};
        }
        const Position* const read = positions.data() + token;
        if (points_into(read, std::span<const Position>(out.data(), i))) {
            return {errc::views_overlap,
                    "gather_positions: a position would be written over before it is read"};
        }
    }
    for (std::size_t i = 0; i < tokens.size(); ++i) {
        out[i] = positions[static_cast<std::size_t>(tokens[i])];
    }
    return {};
}

} // namespace detail

/// The cache rows that survive, for every KV head. A value: copies are independent.
class keep_plan {
  public:
    /// The integers of both tables.
    using table_index = std::int32_t;

    keep_plan() = default;                       ///< never made
    keep_plan(const keep_plan&) = default;       ///< a copy
    keep_plan(keep_plan&&) = default;            ///< takes the memory
    keep_plan& operator=(keep_plan&&) = default; ///< takes the memory
    /// A copy; where an allocation throws this is as it was.
    keep_plan& operator=(const keep_plan& other) { return *this = keep_plan(other); }

    /// KV heads; 0 for a plan never made.
    [[nodiscard]] index_t rows() const {
        return offsets_.empty() ? 0 : static_cast<index_t>(offsets_.size()) - 1;
    }
    /// Survivors of all rows together.
    [[nodiscard]] index_t total_tokens() const { return static_cast<index_t>(kept_.size()); }
    /// Survivors of a row.
    [[nodiscard]] index_t kept_tokens(index_t row) const {
        return static_cast<index_t>(this->row(row).size());
    }
    /// Cache rows of one head that stay, ascending.
    [[nodiscard]] std::span<const table_index> row(index_t row) const& {
        const auto r = static_cast<std::size_t>(row);
        return span_of(kept_).subspan(static_cast<std::size_t>(offsets_[r]),
                                      static_cast<std::size_t>(offsets_[r + 1] - offsets_[r]));
    }
    /// [rows + 1], indptr of kept().
    [[nodiscard]] std::span<const table_index> offsets() const& { return span_of(offsets_); }
    /// [rows + 1], the cumulative lengths of the compacted cache, as varlen attention kernels take them.
    [[nodiscard]] std::span<const table_index> cu_seqlens() const& { return span_of(offsets_); }
    /// [total_tokens] the survivors of all rows, one row after the other.
    [[nodiscard]] std::span<const table_index> kept() const& { return span_of(kept_); }
    /// Not of a temporary plan, whose tables are freed before they are read.
    void row(index_t row) const&& = delete;
    void offsets() const&& = delete;
    void cu_seqlens() const&& = delete;
    void kept() const&& = delete;
    /// Survivors of the row that keeps most. O(rows).
    [[nodiscard]] index_t longest_row() const {
        index_t longest = 0;
        for (index_t r = 0; r < rows(); ++r) { longest = std::max(longest, kept_tokens(r)); }
        return longest;
    }

    /// Sizes the tables for `counts` [rows] survivors per row; the kept rows are then written through writable_row().
    /// Returns invalid_parameter for a negative count, index_overflow (needed: tokens) beyond 2^31 - 1 in total. The plan is
    /// then unchanged, as it is if an allocation throws.
    [[nodiscard]] status reset(std::span<const index_t> counts) {
        constexpr index_t most = std::numeric_limits<index_t>::max();
        index_t total = 0;
        for (const index_t count : counts) {
            if (count < 0) { return {errc::invalid_parameter, "keep_plan: counts must not be negative"}; }
            total = count > most - total ? most : total + count;
        }
        if (total > std::numeric_limits<table_index>::max()) {
            return {errc::index_overflow, "a plan holds at most 2^31 - 1 tokens", total};
        }
        offsets_.reserve(counts.size() + 1);
        kept_.resize(static_cast<std::size_t>(total)); // the last line that may throw
        offsets_.resize(counts.size() + 1);
        offsets_[0] = 0;
        for (std::size_t r = 0; r < counts.size(); ++r) {
            offsets_[r + 1] = offsets_[r] + static_cast<table_index>(counts[r]);
        }
        return {};
    }
    /// Where the survivors of a row are written, ascending, after reset().
    [[nodiscard]] std::span<table_index> writable_row(index_t row) {
        const auto r = static_cast<std::size_t>(row);
        return span_of(kept_).subspan(static_cast<std::size_t>(offsets_[r]),
                                      static_cast<std::size_t>(offsets_[r + 1] - offsets_[r]));
    }

    /// Whether every row ascends strictly and lies in [0, tokens of that row); tokens_of_row(r) gives the
    /// length of the cache the plan is for. O(kept tokens).
    template <class TokensOfRow>
    [[nodiscard]] bool check_invariants(TokensOfRow&& tokens_of_row) const {
        for (index_t r = 0; r < rows(); ++r) {
            const auto kept = row(r);
            if (kept.empty()) { continue; }
            const bool in_range = kept.front() >= 0 && kept.back() < static_cast<index_t>(tokens_of_row(r));
            const auto descends = [&](std::size_t i) { return kept[i + 1] <= kept[i]; };
            if (!in_range || any_index(kept.size() - 1, descends)) { return false; }
        }
        return true;
    }

    /// Writes the original positions of the survivors of a row, where cached row t had position positions[t]; for a cache
    /// that was never cut the plan's own rows are the positions. Returns invalid_parameter (needed: entries) for an output
    /// that is too short, or positions that do not cover the survivors; plan_mismatch for no row of the plan;
    /// views_overlap for an output among the positions that would write over one before it is read (never where it begins
    /// with them: the rows ascend). Nothing is written then.
    template <class Position>
    [[nodiscard]] status gather_positions(index_t row, std::span<const Position> positions,
                                          std::span<Position> out) const {
        if (row < 0 || row >= rows()) {
            return {errc::plan_mismatch, "gather_positions: the plan has no such row", rows()};
        }
        return detail::gather_positions(this->row(row), positions, out);
    }

    /// Whether a list begins in a table of this plan, so that making the plan again would overwrite it.
    [[nodiscard]] bool holds(std::span<const table_index> list) const {
        return !list.empty() && (detail::points_into(list.data(), span_of(offsets_)) ||
                                 detail::points_into(list.data(), span_of(kept_)));
    }

    friend bool operator==(const keep_plan&, const keep_plan&) = default;

  private:
    std::vector<table_index> offsets_;
    std::vector<table_index> kept_;
};

} // namespace KVTRIM_NAMESPACE
