// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The same budget for every row; what a short row cannot use goes to the others.
//
//   budgets[r] = total / rows, the remainder to the first rows, capped at the row's length
//
// Cost: O(rows^2) at worst, no scores read.

#include <kvtrim/core/workspace.hpp>
#include <kvtrim/plan/token_scores.hpp>

#include <algorithm>

namespace KVTRIM_NAMESPACE {

/// The same budget for every row.
struct uniform {
    static constexpr bool is_uniform = true; ///< whether rows of equal length get equal budgets

    /// Fills budgets [rows]; their sum is total. Returns what validate_total() says, with nothing written.
    [[nodiscard]] status allocate(const score_rows& scores, index_t total, std::span<index_t> budgets,
                                  workspace&) const {
        if (const status s = validate_total(scores, total, budgets); !s.ok()) { return s; }
        constexpr index_t open = -1;
        std::fill(budgets.begin(), budgets.end(), open);
        index_t open_rows = scores.rows();
        // Rows shorter than an even share get their length; the others share what remains, so their share grows.
        for (bool changed = true; changed;) {
            changed = false;
            for (index_t r = 0; r < scores.rows(); ++r) {
                index_t& budget = budgets[static_cast<std::size_t>(r)];
                if (budget != open || scores.length(r) * open_rows > total) { continue; }
                budget = scores.length(r);
                total -= budget;
                --open_rows;
                changed = true;
            }
        }
        index_t remainder = open_rows == 0 ? 0 : total % open_rows;
        for (index_t& budget : budgets) {
            if (budget != open) { continue; }
            budget = total / open_rows + (remainder > 0 ? 1 : 0);
            remainder -= remainder > 0 ? 1 : 0;
        }
        return {};
    }
};

} // namespace KVTRIM_NAMESPACE
