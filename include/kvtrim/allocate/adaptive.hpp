// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Ada-KV: the rows compete for one budget, but each row's best `safeguard` tokens are out of the competition.
//
//   forced = the best s tokens of each row,   s = floor(safeguard_ratio * total / rows)
//   budgets[r] = s + tokens of row r among the (total - rows * s) best of all others
//
// Each row is a KV head, or a (layer, KV head) pair: the algorithm is the same. Maximising the kept attention mass of
// a layer under one budget minimises Ada-KV's upper bound on the output loss (measure/eviction_loss.hpp).
//
// Source: Ada-KV, arXiv:2407.11550, Alg. 1; kvpress@8bb29b9 adakv_press.py (alpha_safeguard 0.20).
// Departures: the safeguard counts tokens that compete, not protected ones: in kvpress a safeguard below the
// window protects nothing. safeguard_tokens gives kvpress' count exactly. Budgets sum exactly.
// Method: rows whose count under the common cut stays below their safeguard are fixed at it, and the cut is
// taken again over the others, until none is below: the same result as marking the forced tokens, without
// a copy of the scores. Cost: three linear reads of the scores per round (rounds <= rows + 1, one or two in practice).

#include <kvtrim/core/eviction_request.hpp>
#include <kvtrim/core/workspace.hpp>
#include <kvtrim/plan/find_top_k.hpp>

namespace KVTRIM_NAMESPACE {

/// Ada-KV: all rows compete for one budget, apart from a safeguard per row.
struct adaptive {
    double safeguard_ratio = 0.2;  ///< alpha, in [0, 1]; kvpress 0.20
    index_t safeguard_tokens = -1; ///< >= 0: this many tokens per row instead

    static constexpr bool is_uniform = false; ///< whether rows of equal length get equal budgets

    /// Returns ratio_out_of_range unless safeguard_ratio lies in [0, 1].
    [[nodiscard]] status validate() const {
        if (safeguard_ratio >= 0.0 && safeguard_ratio <= 1.0) { return {}; }
        return {errc::ratio_out_of_range, "adaptive: safeguard_ratio must lie in [0, 1]"};
    }

    /// Fills budgets [rows]; their sum is total. Returns what validate() or validate_total() says, with nothing written.
    [[nodiscard]] status allocate(const score_rows& scores, index_t total, std::span<index_t> budgets,
                                  workspace&) const {
        if (const status s = validate(); !s.ok()) { return s; }
        if (const status s = validate_total(scores, total, budgets); !s.ok()) { return s; }
        // The budget of a row that is still open: ~count under the last cut, which is negative.
        std::fill(budgets.begin(), budgets.end(), ~index_t{0});
        const auto is_open = [&](index_t r) { return budgets[static_cast<std::size_t>(r)] < 0; };
        const auto safeguard = [&, share = safeguard_of(total, scores.rows())](index_t r) {
            return std::min(share, scores.length(r));
        };
        index_t remaining = total;
        for (bool settled = false; !settled;) {
            settled = true;
            top_k_cut cut = find_top_k(scores, remaining, is_open);
            for (index_t r = 0; r < scores.rows(); ++r) {
                if (!is_open(r)) { continue; }
                const index_t count = count_above(scores.row(r), cut);
                const bool is_below = count < safeguard(r);
                budgets[static_cast<std::size_t>(r)] = is_below ? safeguard(r) : ~count;
                remaining -= is_below ? safeguard(r) : 0;
                settled = settled && !is_below;
            }
        }
        for (index_t& budget : budgets) { budget = budget < 0 ? ~budget : budget; }
        return {};
    }

    /// Tokens of every row (or all of a shorter one) that do not compete.
    [[nodiscard]] index_t safeguard_of(index_t total, index_t rows) const {
        const index_t even_share = rows == 0 ? 0 : total / rows;
        const index_t wanted =
            safeguard_tokens >= 0 ? safeguard_tokens : kept_tokens(even_share, safeguard_ratio);
        return std::min(wanted, even_share);
    }
};

} // namespace KVTRIM_NAMESPACE
