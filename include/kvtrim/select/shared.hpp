// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// One token set for all heads, for caches whose cell holds a token for every head.
//
//   importance[g] = reduction over all rows, the same for every g; every budget becomes the smallest
//
// Source: TOVA, arXiv:2401.06104 (head mean); llama.cpp-like caches can represent nothing else.
// Cost: O(rows * columns); votes: a top-k per row more. Workspace: a float per column.

#include <kvtrim/base/workspace.hpp>
#include <kvtrim/math/top_k.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace kvtrim {

// sum, maximum: of the rows' scores. votes: rows whose own budget would keep the token; the sum breaks ties.
enum class head_reduction : std::uint8_t { sum, maximum, votes };

struct shared {
    head_reduction reduction = head_reduction::sum;

    static constexpr bool allocate_by_attention = false;
    static constexpr bool needs_uniform_budgets = true;

    [[nodiscard]] static index_t workspace_bytes(index_t rows, index_t candidates) {
        workspace counting = workspace::counting();
        static_cast<void>(counting.take<float>(rows == 0 ? 0 : candidates / rows));
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
        const auto reduced = scratch.take<float>(scores.length(0));
        if (!scratch.fits()) { return scratch.too_small(); }
        const index_t budget = *std::min_element(budgets.begin(), budgets.end());
        std::fill(budgets.begin(), budgets.end(), budget);
        reduce(scores, budget, reduced);
        for (index_t r = 0; r < scores.rows(); ++r) {
            std::copy(reduced.begin(), reduced.end(), scores.importance_rows().row(r).begin());
        }
        return {};
    }

  private:
    void reduce(const token_scores& scores, index_t budget, std::span<float> out) const {
        std::fill(out.begin(), out.end(),
                  reduction == head_reduction::maximum ? -std::numeric_limits<float>::infinity() : 0.0f);
        for (index_t r = 0; r < scores.rows(); ++r) {
            const auto row = scores.importance_rows().row(r);
            for (std::size_t c = 0; c < out.size(); ++c) {
                out[c] = reduction == head_reduction::maximum ? std::fmax(out[c], row[c]) : out[c] + row[c];
            }
        }
        if (reduction != head_reduction::votes) { return; }
        for (float& s : out) { s = 0.5f * (s / (1.0f + std::abs(s))); } // in (-0.5, 0.5): below one vote
        for (index_t r = 0; r < scores.rows(); ++r) {
            const auto row = scores.importance_rows().row(r);
            top_k_cut cut = find_top_k(row, budget);
            for_each_above(row, cut, [&](index_t c) { out[static_cast<std::size_t>(c)] += 1.0f; });
        }
    }
};

} // namespace kvtrim
