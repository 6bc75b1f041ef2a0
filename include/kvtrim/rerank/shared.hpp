// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// One token set for all heads, for caches whose cell holds a token for every head.
//
//   importance[g] = reduction over all rows, the same for every g; every budget becomes the smallest
//   reductions (sum, maximum, votes of the rows): plan/row_fold.hpp
//
// Source: TOVA, arXiv:2401.06104 (head mean); llama.cpp-like caches can represent nothing else.
// Numerics, cost and workspace: those of plan/row_fold.hpp.

#include <kvtrim/plan/row_fold.hpp>

namespace KVTRIM_NAMESPACE {

/// Gives all rows the same importance, and all the smallest budget, so that every head keeps the same tokens.
struct shared {
    head_reduction reduction = head_reduction::sum; ///< how the rows are folded into one

    /// whether the allocator sees attention instead of importance
    static constexpr bool allocate_by_attention = false;
    static constexpr bool needs_uniform_budgets = true; ///< whether the allocator must be uniform

    /// Bytes of workspace for before_selection() over so many rows and candidates.
    [[nodiscard]] index_t workspace_bytes(index_t rows, index_t candidates) const {
        workspace counting = workspace::counting();
        static_cast<void>(row_fold(reduction, rows == 0 ? 0 : candidates / rows, counting));
        return counting.needed_bytes();
    }

    /// Makes all rows equal, and all budgets the smallest. Returns errc::rows_differ for a ragged cache.
    [[nodiscard]] status before_selection(const token_scores& scores, std::span<index_t> budgets,
                                          workspace& scratch) const {
        if (const status s = validate_budgets(scores.importance_rows(), budgets); !s.ok()) { return s; }
        if (scores.rows() == 0) { return {}; }
        for (index_t r = 1; r < scores.rows(); ++r) {
            if (scores.length(r) != scores.length(0)) {
                return {errc::rows_differ, "one token set for all heads needs heads of equal length"};
            }
        }
        const workspace::frame frame(scratch);
        const row_fold fold(reduction, scores.length(0), scratch);
        if (!scratch.fits()) { return scratch.too_small(); }
        const index_t budget = *std::min_element(budgets.begin(), budgets.end());
        std::fill(budgets.begin(), budgets.end(), budget);
        fold.begin();
        for (index_t r = 0; r < scores.rows(); ++r) { fold.add(scores.importance_rows().row(r), budget); }
        const auto folded = fold.finish(budget);
        for (index_t r = 0; r < scores.rows(); ++r) {
            std::copy(folded.begin(), folded.end(), scores.importance_rows().row(r).begin());
        }
        return {};
    }
};

} // namespace KVTRIM_NAMESPACE
