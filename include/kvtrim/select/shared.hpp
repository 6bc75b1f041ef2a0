// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// One token set for all heads, for caches whose cell holds a token for every head.
//
//   importance[g] = reduction over all rows, the same for every g; every budget becomes the smallest
//   sum, maximum: of the rows' scores
//   votes:        +infinity for the chosen columns, the votes for the others; chosen are the `budget` first by
//                 number of rows whose own best `budget` hold the column, then sum of scores, then lower index
//
// Source: TOVA, arXiv:2401.06104 (head mean); llama.cpp-like caches can represent nothing else.
// Numerics: sums in float, those of votes in double. A NaN sum ranks last (among equal votes); maximum ignores NaN.
// Cost: O(rows * columns); votes: a top-k per row and a partial sort (linear on average) more. Workspace: a float per
// column; votes: 20 bytes per column.

#include <kvtrim/base/workspace.hpp>
#include <kvtrim/math/top_k.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>

namespace kvtrim {

enum class head_reduction : std::uint8_t { sum, maximum, votes };

struct shared {
    head_reduction reduction = head_reduction::sum;

    static constexpr bool allocate_by_attention = false;
    static constexpr bool needs_uniform_budgets = true;

    [[nodiscard]] index_t workspace_bytes(index_t rows, index_t candidates) const {
        workspace counting = workspace::counting();
        static_cast<void>(take(rows == 0 ? 0 : candidates / rows, counting));
        return counting.needed_bytes();
    }

    // Makes all rows alike, and all budgets the smallest. Returns errc::rows_differ for a ragged cache.
    [[nodiscard]] status before_selection(const token_scores& scores, std::span<index_t> budgets,
                                          workspace& scratch) const {
        expect_budgets(scores.importance_rows(), budgets);
        if (scores.rows() == 0) { return {}; }
        for (index_t r = 1; r < scores.rows(); ++r) {
            if (scores.length(r) != scores.length(0)) {
                return {errc::rows_differ, "one token set for all heads needs heads of equal length"};
            }
        }
        const workspace::frame frame(scratch);
        const buffers memory = take(scores.length(0), scratch);
        if (!scratch.fits()) { return scratch.too_small(); }
        const index_t budget = *std::min_element(budgets.begin(), budgets.end());
        std::fill(budgets.begin(), budgets.end(), budget);
        if (reduction == head_reduction::votes) {
            vote(scores, budget, memory);
        } else {
            reduce(scores, memory.reduced);
        }
        for (index_t r = 0; r < scores.rows(); ++r) {
            std::copy(memory.reduced.begin(), memory.reduced.end(), scores.importance_rows().row(r).begin());
        }
        return {};
    }

  private:
    struct buffers {
        std::span<float> reduced; // [columns]
        std::span<double> sums;   // [columns], votes only, as all below
        std::span<index_t> order; // [columns]
    };

    [[nodiscard]] buffers take(index_t columns, workspace& scratch) const {
        const index_t voting = reduction == head_reduction::votes ? columns : 0;
        buffers b;
        b.reduced = scratch.take<float>(columns);
        b.sums = scratch.take<double>(voting);
        b.order = scratch.take<index_t>(voting);
        return b;
    }

    void reduce(const token_scores& scores, std::span<float> out) const {
        std::fill(out.begin(), out.end(),
                  reduction == head_reduction::maximum ? -std::numeric_limits<float>::infinity() : 0.0f);
        for (index_t r = 0; r < scores.rows(); ++r) {
            const auto row = scores.importance_rows().row(r);
            for (std::size_t c = 0; c < out.size(); ++c) {
                out[c] = reduction == head_reduction::maximum ? std::fmax(out[c], row[c]) : out[c] + row[c];
            }
        }
    }

    // Votes and sums do not fit one float, so the columns are chosen here and marked.
    static void vote(const token_scores& scores, index_t budget, const buffers& memory) {
        const auto votes = memory.reduced;
        std::fill(votes.begin(), votes.end(), 0.0f);
        std::fill(memory.sums.begin(), memory.sums.end(), 0.0);
        for (index_t r = 0; r < scores.rows(); ++r) {
            const auto row = scores.importance_rows().row(r);
            for (std::size_t c = 0; c < row.size(); ++c) { memory.sums[c] += static_cast<double>(row[c]); }
            top_k_cut cut = find_top_k(row, budget);
            for_each_above(row, cut, [&](index_t c) { votes[static_cast<std::size_t>(c)] += 1.0f; });
        }
        std::iota(memory.order.begin(), memory.order.end(), index_t{0});
        const auto ranks_before = [&](index_t a, index_t b) {
            const auto i = static_cast<std::size_t>(a);
            const auto j = static_cast<std::size_t>(b);
            if (votes[i] != votes[j]) { return votes[i] > votes[j]; }
            const bool is_number = !std::isnan(memory.sums[i]);
            if (is_number != !std::isnan(memory.sums[j])) { return is_number; }
            if (is_number && memory.sums[i] != memory.sums[j]) { return memory.sums[i] > memory.sums[j]; }
            return a < b;
        };
        const auto chosen_end = memory.order.begin() + static_cast<std::ptrdiff_t>(budget);
        std::nth_element(memory.order.begin(), chosen_end, memory.order.end(), ranks_before);
        std::for_each(memory.order.begin(), chosen_end, [&](index_t c) {
            votes[static_cast<std::size_t>(c)] = std::numeric_limits<float>::infinity();
        });
    }
};

} // namespace kvtrim
