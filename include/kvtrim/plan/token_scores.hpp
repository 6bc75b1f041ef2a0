// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Scores of the candidate tokens of a layer, or of layers one behind the other: the plain data between scorer, allocator and
// reranker.
//
//   offsets           [rows + 1]        row r is [offsets[r], offsets[r + 1]); a row is a KV head
//   importance        [offsets[rows]]   what ranks the tokens; higher stays
//   attention         [offsets[rows]]   what ranks pass one of a selection in two passes; empty if there is none
//   protected_mass    [rows]            mean attention on the protected tokens; 0 where no attention is seen
//   protected_tokens  [rows]            tokens of the row that always stay and are no candidates; empty: none in any row
//   kv_heads                            rows of each layer where there are many; 0: one layer
//
// Column c of row r is cache row candidates(protect, tokens(r)).begin + c. Order: higher first, then the
// lower flat index; NaN ranks below everything; +infinity marks a token that no finite score outranks.

#include <kvtrim/cache/check_outputs.hpp>
#include <kvtrim/core/any_index.hpp>
#include <kvtrim/core/eviction_request.hpp>
#include <kvtrim/core/workspace.hpp>

#include <algorithm>
#include <limits>
#include <span>

namespace KVTRIM_NAMESPACE {

/// Ragged rows of floats.
struct score_rows {
    std::span<const index_t> offsets; ///< [rows + 1] where each row begins
    std::span<float> values;          ///< [offsets[rows]]
    /// [rows] tokens that stay beside these candidates, for allocators of whole pages; empty: none
    std::span<const index_t> protected_tokens = {};
    /// Rows of each layer, for allocators that tell layers apart; 0: all rows are one layer's.
    index_t kv_heads = 0;

    /// KV heads, of all layers.
    [[nodiscard]] index_t rows() const { return static_cast<index_t>(offsets.size()) - 1; }
    /// KV heads of each layer.
    [[nodiscard]] index_t rows_of_a_layer() const { return kv_heads == 0 ? rows() : kv_heads; }
    /// Layers that the rows belong to.
    [[nodiscard]] index_t layers() const { return rows() == 0 ? 0 : rows() / rows_of_a_layer(); }
    /// Candidates of all rows together.
    [[nodiscard]] index_t candidates() const { return offsets.back() - offsets.front(); }
    /// Whether no row ends before it begins. O(rows).
    [[nodiscard]] bool offsets_ascend() const {
        bool ascend = true;
        for (std::size_t r = 1; r < offsets.size(); ++r) { ascend = ascend && offsets[r - 1] <= offsets[r]; }
        return ascend;
    }
    /// Candidates of a row.
    [[nodiscard]] index_t length(index_t row) const {
        const auto r = static_cast<std::size_t>(row);
        return offsets[r + 1] - offsets[r];
    }
    /// Scores of a row.
    [[nodiscard]] std::span<float> row(index_t row) const {
        const auto r = static_cast<std::size_t>(row);
        return values.subspan(static_cast<std::size_t>(offsets[r]),
                              static_cast<std::size_t>(offsets[r + 1] - offsets[r]));
    }
};

/// Scores of the candidates, as views of the caller's memory. Shapes: above.
struct token_scores {
    /// [rows + 1] where each row begins.
    std::span<const index_t> offsets;
    /// [offsets[rows]] what ranks the tokens; higher stays.
    std::span<float> importance;
    /// [offsets[rows]] what ranks pass one of a selection in two passes; empty: there is none.
    std::span<float> attention = {};
    /// [rows] mean attention on the protected tokens; may be empty.
    std::span<float> protected_mass = {};
    /// [rows] tokens that always stay; empty: none.
    std::span<const index_t> protected_tokens = {};
    /// Rows of each layer; 0: all rows are one layer's.
    index_t kv_heads = 0;

    /// KV heads, of all layers.
    [[nodiscard]] index_t rows() const { return static_cast<index_t>(offsets.size()) - 1; }
    /// Candidates of a row.
    [[nodiscard]] index_t length(index_t row) const { return importance_rows().length(row); }
    /// What ranks the tokens.
    [[nodiscard]] score_rows importance_rows() const {
        return {offsets, importance, protected_tokens, kv_heads};
    }
    /// What ranks pass one: attention where the scorer writes it, else importance.
    [[nodiscard]] score_rows attention_rows() const {
        return {offsets, attention.empty() ? importance : attention, protected_tokens, kv_heads};
    }
};

/// Returns invalid_table unless offsets begin at 0 or above, do not decrease and lie within the values, rows are a multiple
/// of kv_heads, and rows that say how many of their tokens are protected say so for each, in numbers that a plan can hold.
/// O(rows).
[[nodiscard]] KVTRIM_NOINLINE inline status validate(const score_rows& scores) {
    if (scores.offsets.empty() || scores.offsets.front() < 0 ||
        scores.offsets.back() > static_cast<index_t>(scores.values.size()) || !scores.offsets_ascend()) {
        return {errc::invalid_table, "scores: offsets must ascend within the values"};
    }
    if (scores.kv_heads < 0 || (scores.kv_heads > 0 && scores.rows() % scores.kv_heads != 0)) {
        return {errc::invalid_table, "scores: the rows must be kv_heads for each layer"};
    }
    if (scores.protected_tokens.empty()) { return {}; }
    const auto impossible = [](index_t tokens) {
        return tokens < 0 || tokens > std::numeric_limits<std::int32_t>::max();
    };
    if (static_cast<index_t>(scores.protected_tokens.size()) != scores.rows() ||
        any_element(scores.protected_tokens, impossible)) {
        return {errc::invalid_table, "scores: protected_tokens must have one entry per row, none negative"};
    }
    return {};
}

/// Checks that these are rows for the candidates of a layer's heads under this protection, from offset 0 on; for the output of a
/// scorer that is called directly. Returns the inputs' own answer, invalid_parameter or invalid_table. O(kv_heads).
template <class Inputs>
[[nodiscard]] status validate_candidates(const Inputs& in, const protection& protect,
                                         const score_rows& scores) {
    if (const status s = in.validate(); !s.ok()) { return s; }
    if (const status s = valid_protection(protect); !s.ok()) { return s; }
    if (const status s = validate(scores); !s.ok()) { return s; }
    bool fits = scores.rows() == in.kv_heads() && scores.offsets.front() == 0;
    for (index_t g = 0; fits && g < in.kv_heads(); ++g) {
        fits = scores.length(g) == candidates(protect, in.tokens(g)).size();
    }
    if (fits) { return {}; }
    return {errc::invalid_table, "scores: offsets must be those of the candidates of every KV head"};
}

/// Bytes of scratch for a scorer: those that let it run at the executor's full width if its workspace_bytes() takes the
/// executor, else all that it ever needs; 0 if it has no workspace_bytes().
template <class Scorer, class Inputs, class Executor>
[[nodiscard]] index_t scoring_bytes(const Scorer& scorer, const Inputs& in, const eviction_request& request,
                                    const Executor& ex) {
    if constexpr (requires { scorer.workspace_bytes(in, request, ex); }) {
        return scorer.workspace_bytes(in, request, ex);
    } else if constexpr (requires { scorer.workspace_bytes(in, request); }) {
        return scorer.workspace_bytes(in, request);
    }
    return 0;
}

/// What a scorer checks first, so that it can also be called without a policy: everything that it reads is valid, and
/// everything that it writes has room and lies apart from what is read. Returns what validate_candidates(), check_outputs() or
/// the scorer's own validate() says, or invalid_parameter. O(kv_heads), of paged rows O(pages).
template <class Scorer, class Inputs>
[[nodiscard]] status validate_scoring(const Scorer& scorer, const Inputs& in, const eviction_request& request,
                                      const token_scores& out) {
    if (const status s = validate_candidates(in, request.protect, out.importance_rows()); !s.ok()) {
        return s;
    }
    if constexpr (Scorer::writes_attention) {
        if (static_cast<index_t>(out.attention.size()) < out.offsets.back()) {
            return {errc::invalid_parameter, "scores: this scorer also writes attention, of every candidate",
                    out.offsets.back()};
        }
    }
    if (!out.protected_mass.empty() && static_cast<index_t>(out.protected_mass.size()) != out.rows()) {
        return {errc::invalid_parameter, "scores: protected_mass must have one entry per row, or none",
                out.rows()};
    }
    const auto attention = Scorer::writes_attention ? out.attention : std::span<float>{};
    const std::array written{bytes_of(out.importance), bytes_of(attention), bytes_of(out.protected_mass)};
    if (const status s = check_outputs(written, in, out.offsets, out.protected_tokens); !s.ok()) { return s; }
    if constexpr (requires { scorer.validate(in, request); }) { return scorer.validate(in, request); }
    return {};
}

/// The same for a scorer that takes scratch. Returns also workspace_too_small (needed: bytes).
template <class Scorer, class Inputs>
[[nodiscard]] status validate_scoring(const Scorer& scorer, const Inputs& in, const eviction_request& request,
                                      const token_scores& out, const workspace& scratch) {
    if (const status s = validate_scoring(scorer, in, request, out); !s.ok()) { return s; }
    const index_t bytes = scorer.workspace_bytes(in, request);
    return scratch.holds(bytes) ? status{} : scratch.too_small(bytes);
}

/// What every allocator checks first, so that an engine can call it directly: `total` is at most the number of candidates, and
/// each row has a budget, in memory apart from the scores. Returns invalid_table, invalid_parameter or views_overlap.
/// O(rows).
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
    return check_outputs(std::array{bytes_of(budgets)}, scores.offsets, scores.values,
                         scores.protected_tokens);
}

/// Checks budgets before selection, whether an allocator or an engine wrote them: one per row, at most the row's candidates.
/// Returns invalid_table or invalid_parameter. O(rows).
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

} // namespace KVTRIM_NAMESPACE
