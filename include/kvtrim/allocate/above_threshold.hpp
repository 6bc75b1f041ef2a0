// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A threshold in place of a budget: every row keeps the tokens whose score is above it, and the budget is a bound.
//
//   budgets[r] = tokens of row r with a score above the threshold           if they are `total` at most, all together
//              = tokens of row r among the `total` best of all rows         otherwise: the threshold is raised
//
// For scores whose size means something by itself: those of a model trained to say what it will need again (DMS,
// arXiv:2506.05345; KVzap, arXiv:2601.07891: score/given_scores.hpp), or losses (score/single_eviction.hpp). How much
// stays then depends on the text. A NaN is above no threshold.
//
// A cache within the budget is scored and cut all the same (keeps_less); only the request of keeping_all() keeps it whole.
// Cost: one linear read of the scores, two to four more where the budget binds.

#include <kvtrim/plan/find_top_k.hpp>

#include <numeric>

namespace KVTRIM_NAMESPACE {

/// Each row keeps what scores above a threshold, within the budget of all rows together.
struct above_threshold {
    float threshold = 0; ///< tokens at or below it go

    static constexpr bool is_uniform = false; ///< whether rows of equal length get equal budgets
    static constexpr bool keeps_less = true;  ///< whether a cache within the budget may be cut, too

    /// Returns invalid_parameter for a threshold that is NaN.
    [[nodiscard]] status validate() const {
        if (threshold == threshold) { return {}; }
        return {errc::invalid_parameter, "above_threshold: the threshold must be a number"};
    }

    /// Fills budgets [rows]; their sum is total at most. Returns what validate() or validate_total() says, with nothing
    /// written.
    [[nodiscard]] status allocate(const score_rows& scores, index_t total, std::span<index_t> budgets,
                                  workspace&) const {
        if (const status s = validate(); !s.ok()) { return s; }
        if (const status s = validate_total(scores, total, budgets); !s.ok()) { return s; }
        top_k_cut above{ordered_bits(threshold), 0};
        count(scores, above, budgets);
        if (std::accumulate(budgets.begin(), budgets.end(), index_t{0}) <= total) { return {}; }
        top_k_cut best = find_top_k(scores, total);
        count(scores, best, budgets);
        return {};
    }

  private:
    static void count(const score_rows& scores, top_k_cut& cut, std::span<index_t> budgets) {
        for (index_t r = 0; r < scores.rows(); ++r) {
            budgets[static_cast<std::size_t>(r)] = count_above(scores.row(r), cut);
        }
    }
};

} // namespace KVTRIM_NAMESPACE
