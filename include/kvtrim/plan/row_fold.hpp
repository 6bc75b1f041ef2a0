// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Many rows of scores folded into one that ranks the columns for all of them. Rows come one after the other, so
// that those of all heads and layers never have to be in memory together.
//
//   sum, maximum   of the rows' scores
//   squares        the sum of x |x|: a row in which a column stands out counts for more than many in which it does not
//   votes          +infinity for the chosen columns, the votes for the others; chosen are the `budget` first by
//                  number of rows whose own best `budget` hold the column, then sum of scores, then lower index
//
// Numerics: sums in float, those of votes in double. A NaN sum ranks last (among equal votes); maximum ignores NaN; squares of
// scores above 1e19 are infinite.
// Cost: one read of each row; votes: a top-k per row, and a partial sort at the end. Workspace: a float per
// column; votes: 20 bytes per column.

#include <kvtrim/core/workspace.hpp>
#include <kvtrim/kernels/row_kernels.hpp>
#include <kvtrim/plan/find_top_k.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>

namespace KVTRIM_NAMESPACE {

/// How rows are folded into one: their sum, their maximum, the votes of their best columns, or the sum of their squares.
enum class head_reduction : std::uint8_t { sum, maximum, votes, squares };

/// Folds rows of scores one by one: begin(), add() for each row, finish().
class row_fold {
  public:
    /// For rows of `columns` scores. Takes its memory from `scratch`; ask scratch.fits() before begin().
    row_fold(head_reduction reduction, index_t columns, workspace& scratch)
        : reduction_(reduction), folded_(scratch.take<float>(columns)),
          sums_(scratch.take<double>(reduction == head_reduction::votes ? columns : 0)),
          order_(scratch.take<index_t>(reduction == head_reduction::votes ? columns : 0)) {}

    /// Forgets the rows added before.
    void begin() const {
        constexpr float lowest = -std::numeric_limits<float>::infinity();
        std::fill(folded_.begin(), folded_.end(), reduction_ == head_reduction::maximum ? lowest : 0.0f);
        std::fill(sums_.begin(), sums_.end(), 0.0);
    }

    /// Adds a row of `columns` scores; of a longer one the first are read. budget: how many columns it votes for. A budget
    /// outside 0 ... columns counts as the nearer of them.
    void add(std::span<float> row, index_t budget) const {
        row = row.first(std::min(row.size(), folded_.size()));
        const kernels::row_kernels& steps = kernels::active_row_kernels();
        if (reduction_ == head_reduction::votes) {
            steps.add_over_rows(row.data(), 0, 1, std::ssize(row), nullptr, sums_.data());
            top_k_cut cut = find_top_k(row, budget);
            for_each_above(row, cut, [&](index_t c) { folded_[static_cast<std::size_t>(c)] += 1.0f; });
            return;
        }
        const auto fold = reduction_ == head_reduction::maximum   ? steps.raise_row
                          : reduction_ == head_reduction::squares ? steps.add_squares
                                                                  : steps.add_row;
        fold(row.data(), std::ssize(row), folded_.data());
    }

    /// The scores [columns] that rank the columns. Votes and sums do not fit one float: with votes the `budget` chosen
    /// columns are marked here by +infinity.
    [[nodiscard]] std::span<float> finish(index_t budget) const {
        if (reduction_ == head_reduction::votes) { mark_chosen(budget); }
        return folded_;
    }

  private:
    void mark_chosen(index_t budget) const {
        std::iota(order_.begin(), order_.end(), index_t{0});
        const auto ranks_before = [&](index_t a, index_t b) {
            const auto i = static_cast<std::size_t>(a);
            const auto j = static_cast<std::size_t>(b);
            if (folded_[i] != folded_[j]) { return folded_[i] > folded_[j]; }
            const bool is_number = !std::isnan(sums_[i]);
            if (is_number != !std::isnan(sums_[j])) { return is_number; }
            if (is_number && sums_[i] != sums_[j]) { return sums_[i] > sums_[j]; }
            return a < b;
        };
        const auto chosen_end = order_.begin() + std::clamp<index_t>(budget, 0, std::ssize(order_));
        std::nth_element(order_.begin(), chosen_end, order_.end(), ranks_before);
        std::for_each(order_.begin(), chosen_end, [&](index_t c) {
            folded_[static_cast<std::size_t>(c)] = std::numeric_limits<float>::infinity();
        });
    }

    head_reduction reduction_;
    std::span<float> folded_; // [columns]; sums, maxima or votes
    std::span<double> sums_;  // [columns], votes only, as below
    std::span<index_t> order_;
};

} // namespace KVTRIM_NAMESPACE
