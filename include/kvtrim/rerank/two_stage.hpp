// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Two-pass rerankers: first the most attended tokens, then the rest of the budget by importance.
//
//   two_stage          pass one takes a share of each row's budget by attention        (CriticalKV)
//   two_stage_by_mass  pass one takes tokens until they and the protected ones hold a given share of the
//                      attention, before rows compete                                    (DefensiveKV)
//
// Source: CriticalKV, arXiv:2502.03805, Alg. 1 (first share 0.5); kvpress@8bb29b9 criticalkv_press.py.
// DefensiveKV, arXiv:2510.13334; FFY0/DefensiveKV@9251b95 efficient_defensivekv_press.py (threshold 0.9).
// Rounding of a share: kvpress takes int(budget * first_ratio), one token short wherever the product in doubles falls
// below the whole number that it stands for (100 x 0.29: 28); exact gives that number, truncated what kvpress gives.
// Departures: pass one is a mark that no norm can change (the references multiply a sentinel by the norm: a
// zero value loses its place). By mass: the attention on the protected tokens is the window's own, per KV
// head; the sum is compared in units of the whole attention; the token that crosses the threshold counts;
// a limit below zero is zero (defects D1 to D5 and D7 of the authors' code).
// Cost: three reads of the scores per pass. Workspace: none.

#include <kvtrim/core/eviction_request.hpp>
#include <kvtrim/core/workspace.hpp>
#include <kvtrim/plan/find_top_k.hpp>
#include <kvtrim/rerank/count_for_mass.hpp>

#include <cstdint>
#include <limits>

namespace KVTRIM_NAMESPACE {

namespace detail {

// Marks the `count` most attended tokens of a row as outranking every score.
inline void mark_most_attended(const token_scores& scores, index_t row, index_t count) {
    const auto importance = scores.importance_rows().row(row);
    top_k_cut cut = find_top_k(scores.attention_rows().row(row), std::min(count, scores.length(row)));
    // attention and importance may be the same row: each column is read before it is marked.
    for_each_above(scores.attention_rows().row(row), cut, [&](index_t c) {
        importance[static_cast<std::size_t>(c)] = std::numeric_limits<float>::infinity();
    });
}

} // namespace detail

/// How a share of a budget becomes tokens: exactly, or truncated in doubles as kvpress does.
enum class share_rounding : std::uint8_t { exact, truncated };
/// The former name of share_rounding.
using stage_rounding [[deprecated("use share_rounding; gone in 0.3")]] = share_rounding;

/// Pass one takes a share of each row's budget by attention, pass two the rest by importance (CriticalKV).
struct two_stage {
    double first_ratio = 0.5;   ///< share of a row's budget that pass one takes, in [0, 1]; reference 0.5
    index_t first_tokens = -1;  ///< >= 0: this many tokens per row instead
    index_t first_at_least = 0; ///< never fewer (kvpress' Ada form: the safeguard)
    share_rounding rounding = share_rounding::exact; ///< of a share to tokens; kvpress: truncated

    /// whether the allocator sees attention instead of importance
    static constexpr bool allocate_by_attention = true;
    static constexpr bool needs_uniform_budgets = false; ///< whether the allocator must be uniform

    /// Returns ratio_out_of_range unless first_ratio lies in [0, 1].
    [[nodiscard]] status validate() const {
        if (first_ratio >= 0.0 && first_ratio <= 1.0) { return {}; }
        return {errc::ratio_out_of_range, "two_stage: first_ratio must lie in [0, 1]"};
    }

    /// Tokens that pass one takes of a row with this budget.
    [[nodiscard]] index_t first_count(index_t budget) const {
        index_t first = first_tokens;
        if (first < 0 && validate().ok()) {
            first = rounding == share_rounding::exact
                        ? kept_tokens(budget, first_ratio)
                        : static_cast<index_t>(static_cast<double>(budget) * first_ratio);
        }
        return std::min(budget, std::max(first, first_at_least));
    }

    /// Marks the tokens of pass one in the importance. Returns what validate(), validate_budgets() or validate(score_rows) says, with
    /// nothing written.
    [[nodiscard]] status before_selection(const token_scores& scores, std::span<index_t> budgets,
                                          workspace&) const {
        if (const status s = validate(); !s.ok()) { return s; }
        if (const status s = validate_budgets(scores.importance_rows(), budgets); !s.ok()) { return s; }
        if (const status s = kvtrim::validate(scores.attention_rows()); !s.ok()) { return s; }
        for (index_t r = 0; r < scores.rows(); ++r) {
            detail::mark_most_attended(scores, r, first_count(budgets[static_cast<std::size_t>(r)]));
        }
        return {};
    }
};

/// Pass one takes tokens until a share of the attention is held, before rows compete (DefensiveKV).
struct two_stage_by_mass {
    double attention_mass = 0.9; ///< threshold, in [0, 1]; reference 0.9
    double first_at_most = 1.0;  ///< cap on pass one, as a share of the even budget, in [0, 1]; reference 1
    index_t first_limit_tokens = -1; ///< >= 0: this cap per row instead

    /// whether the allocator sees attention instead of importance
    static constexpr bool allocate_by_attention = false;
    static constexpr bool needs_uniform_budgets = false; ///< whether the allocator must be uniform

    /// Returns ratio_out_of_range unless attention_mass and first_at_most lie in [0, 1].
    [[nodiscard]] status validate() const {
        if (attention_mass >= 0.0 && attention_mass <= 1.0 && first_at_most >= 0.0 && first_at_most <= 1.0) {
            return {};
        }
        return {errc::ratio_out_of_range,
                "two_stage_by_mass: attention_mass and first_at_most must lie in [0, 1]"};
    }

    /// Tokens that pass one takes of a row, when `total` candidates stay in all rows.
    [[nodiscard]] index_t first_count(const token_scores& scores, index_t row, index_t total) const {
        const index_t even_share = total / scores.rows();
        const index_t limit = first_limit_tokens >= 0 ? std::min(first_limit_tokens, even_share)
                                                      : kept_tokens(even_share, first_at_most);
        const double covered = static_cast<double>(scores.protected_mass[static_cast<std::size_t>(row)]);
        return std::min(limit, count_for_mass(scores.attention_rows().row(row), attention_mass - covered));
    }

    /// Marks the tokens of pass one in the importance. Returns invalid_parameter without protected_mass [rows] or for a total that is
    /// negative or above the number of candidates, or what validate() or validate(score_rows) says, with nothing written.
    [[nodiscard]] status before_allocation(const token_scores& scores, index_t total, workspace&) const {
        if (const status s = validate(); !s.ok()) { return s; }
        if (const status s = kvtrim::validate(scores.importance_rows()); !s.ok()) { return s; }
        if (const status s = kvtrim::validate(scores.attention_rows()); !s.ok()) { return s; }
        if (static_cast<index_t>(scores.protected_mass.size()) != scores.rows()) {
            return {errc::invalid_parameter,
                    "two_stage_by_mass: scores must have protected_mass of every row"};
        }
        if (total < 0 || total > scores.importance_rows().candidates()) {
            return {errc::invalid_parameter,
                    "two_stage_by_mass: total must be between 0 and the number of candidates"};
        }
        for (index_t r = 0; r < scores.rows(); ++r) {
            detail::mark_most_attended(scores, r, first_count(scores, r, total));
        }
        return {};
    }
};

} // namespace KVTRIM_NAMESPACE
