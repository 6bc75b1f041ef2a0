// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Scores of the candidate tokens of one layer: the plain data between scorer, allocator and selector.
//
//   offsets         [rows + 1]        row r is [offsets[r], offsets[r + 1]); a row is a KV head
//   importance      [offsets[rows]]   what ranks the tokens; higher stays
//   attention       [offsets[rows]]   what ranks stage one of a two-stage selection; empty if there is none
//   protected_mass  [rows]            mean attention on the protected tokens; 0 where no attention is seen
//
// Column c of row r is cache row candidates(protect, tokens(r)).begin + c. Order: higher first, then the
// lower flat index; NaN ranks below everything; +infinity marks a token that no finite score outranks.

#include <kvtrim/base/status.hpp>

#include <algorithm>
#include <span>

namespace kvtrim {

// Ragged rows of floats.
struct score_rows {
    std::span<const index_t> offsets; // [rows + 1]
    std::span<float> values;          // [offsets[rows]]

    [[nodiscard]] index_t rows() const { return static_cast<index_t>(offsets.size()) - 1; }
    [[nodiscard]] index_t candidates() const { return offsets.back() - offsets.front(); } // of all rows
    [[nodiscard]] index_t length(index_t row) const {
        const auto r = static_cast<std::size_t>(row);
        return offsets[r + 1] - offsets[r];
    }
    [[nodiscard]] std::span<float> row(index_t row) const {
        const auto r = static_cast<std::size_t>(row);
        return values.subspan(static_cast<std::size_t>(offsets[r]),
                              static_cast<std::size_t>(offsets[r + 1] - offsets[r]));
    }
};

struct token_scores {
    std::span<const index_t> offsets;
    std::span<float> importance;
    std::span<float> attention = {};
    std::span<float> protected_mass = {};

    [[nodiscard]] index_t rows() const { return static_cast<index_t>(offsets.size()) - 1; }
    [[nodiscard]] index_t length(index_t row) const { return importance_rows().length(row); }
    [[nodiscard]] score_rows importance_rows() const { return {offsets, importance}; }
    // What stage one ranks by: attention where the scorer keeps it apart, else importance.
    [[nodiscard]] score_rows attention_rows() const {
        return {offsets, attention.empty() ? importance : attention};
    }
};

/// Whether offsets begin at 0 or above, do not decrease, and lie within the values. invalid_table; O(rows).
[[nodiscard]] inline status validate(const score_rows& scores) {
    if (scores.offsets.empty() || scores.offsets.front() < 0 ||
        scores.offsets.back() > static_cast<index_t>(scores.values.size()) ||
        !std::is_sorted(scores.offsets.begin(), scores.offsets.end())) {
        return {errc::invalid_table, "scores: offsets must ascend within the values"};
    }
    return {};
}

/// What every allocator asks of an engine that enters here: candidates for `total`, a place for each budget. O(rows).
[[nodiscard]] inline status validate_total(const score_rows& scores, index_t total,
                                           std::span<const index_t> budgets) {
    if (const status s = validate(scores); !s.ok()) { return s; }
    if (static_cast<index_t>(budgets.size()) != scores.rows()) {
        return {errc::invalid_parameter, "allocate: budgets must have one entry per row", scores.rows()};
    }
    if (total < 0 || total > scores.candidates()) {
        return {errc::invalid_parameter, "allocate: total must be between 0 and the number of candidates",
                scores.candidates()};
    }
    return {};
}

/// What selection asks of an allocator, or of an engine that enters here. O(rows).
[[nodiscard]] inline status validate_budgets(const score_rows& scores, std::span<const index_t> budgets) {
    if (const status s = validate(scores); !s.ok()) { return s; }
    if (static_cast<index_t>(budgets.size()) != scores.rows()) {
        return {errc::invalid_parameter, "select: budgets must have one entry per row", scores.rows()};
    }
    for (index_t r = 0; r < scores.rows(); ++r) {
        const index_t budget = budgets[static_cast<std::size_t>(r)];
        if (budget < 0 || budget > scores.length(r)) {
            return {errc::invalid_parameter,
                    "select: a budget must be between 0 and the number of candidates of its row",
                    scores.length(r)};
        }
    }
    return {};
}

} // namespace kvtrim
