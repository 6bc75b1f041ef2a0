// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The scores of one layer's candidates in memory of their own, kept from call to call: what policy.score() fills.
//
//   offsets [kv_heads + 1], importance [candidates], attention [candidates] or none, protected_mass [kv_heads]
//   column c of row g is the candidate c of KV head g                              as in plan/token_scores.hpp
//
// For engines that select by themselves, or fold the scores of several layers or heads before selection
// (compact/cell_scores.hpp, policy/plan_pages.hpp). Nothing allocates once the largest layer was seen.

#include <kvtrim/core/span_of.hpp>
#include <kvtrim/plan/token_scores.hpp>

#include <vector>

namespace KVTRIM_NAMESPACE {

/// Scores that own their memory. A value: copies are independent.
class score_table {
  public:
    score_table() = default;                         ///< never filled
    score_table(const score_table&) = default;       ///< a copy
    score_table(score_table&&) = default;            ///< takes the memory
    score_table& operator=(score_table&&) = default; ///< takes the memory
    /// A copy; where an allocation throws this is as it was.
    score_table& operator=(const score_table& other) { return *this = score_table(other); }

    /// KV heads; 0 for a table never filled.
    [[nodiscard]] index_t rows() const { return offsets_.empty() ? 0 : std::ssize(offsets_) - 1; }
    /// [kv_heads + 1] where each row begins.
    [[nodiscard]] std::span<const index_t> offsets() const { return span_of(offsets_); }
    /// [candidates] what ranks the tokens; higher stays.
    [[nodiscard]] std::span<const float> importance() const { return span_of(importance_); }
    /// What ranks pass one of a selection in two passes; empty where the scorer writes none.
    [[nodiscard]] std::span<const float> attention() const { return span_of(attention_); }
    /// [kv_heads] mean attention on the protected tokens.
    [[nodiscard]] std::span<const float> protected_mass() const { return span_of(protected_mass_); }
    /// The candidates of one KV head.
    [[nodiscard]] std::span<const float> row(index_t kv_head) const {
        const auto g = static_cast<std::size_t>(kv_head);
        return importance().subspan(static_cast<std::size_t>(offsets_[g]),
                                    static_cast<std::size_t>(offsets_[g + 1] - offsets_[g]));
    }
    /// The table as the output or input of stages, which may rewrite it.
    [[nodiscard]] token_scores scores() {
        return {span_of(offsets_), span_of(importance_), span_of(attention_), span_of(protected_mass_)};
    }

    /// Copies scores; allocates only beyond the largest layer seen, and before anything changes.
    void assign(const token_scores& s) {
        offsets_.reserve(s.offsets.size());
        importance_.reserve(s.importance.size());
        attention_.reserve(s.attention.size());
        protected_mass_.reserve(s.protected_mass.size());
        offsets_.assign(s.offsets.begin(), s.offsets.end());
        importance_.assign(s.importance.begin(), s.importance.end());
        attention_.assign(s.attention.begin(), s.attention.end());
        protected_mass_.assign(s.protected_mass.begin(), s.protected_mass.end());
    }

    friend bool operator==(const score_table&, const score_table&) = default;

  private:
    std::vector<index_t> offsets_;
    std::vector<float> importance_;
    std::vector<float> attention_;
    std::vector<float> protected_mass_;
};

} // namespace KVTRIM_NAMESPACE
