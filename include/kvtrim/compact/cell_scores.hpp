// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// One token set for all heads and layers, for caches whose cell holds one token for all of them (llama.cpp).
//
//   cell_scores all(request, scratch);
//   s = all.add(policy, inputs, attention, memory);      // each layer: what the policy's scorer gives, or rows of one's own
//   s = all.plan(plan);                                  // a plan of one row, for edit_cells (compact/edit_cells.hpp)
//
// Rows of all layers are folded (plan/row_fold.hpp): by the sum of their squares, their sum, their maximum or their votes.
// Squares are the default: they were the best of the four on a real model (docs/engines/llama-cpp.md).
// Cost: a fold per row. Workspace: plan/row_fold.hpp; add(policy, ...) takes its own from `memory`.

#include <kvtrim/core/executor.hpp>
#include <kvtrim/plan/find_top_k.hpp>
#include <kvtrim/plan/keep_plan.hpp>
#include <kvtrim/plan/plan_best.hpp>
#include <kvtrim/plan/row_fold.hpp>
#include <kvtrim/plan/score_table.hpp>

#include <algorithm>
#include <limits>

namespace KVTRIM_NAMESPACE {

/// Folds the scores of all layers into one token set for all heads and layers.
class cell_scores {
  public:
    /// What is asked of all layers: of `tokens` cells `kept_tokens` stay, protected ones included.
    struct request {
        index_t tokens = 0;      ///< cells of the sequence
        index_t kept_tokens = 0; ///< cells that stay
        protection protect = {}; ///< tokens that always stay
        head_reduction reduction =
            head_reduction::squares; ///< how rows are folded; docs/engines/llama-cpp.md

        [[nodiscard]] token_range range() const { return candidates(protect, tokens); } ///< the candidates
        /// Candidates that stay.
        [[nodiscard]] index_t budget() const {
            return std::min(kept_tokens, tokens) - tokens + range().size();
        }

        /// Returns budget_zero, budget_below_protection (needed: tokens), invalid_parameter for negative numbers,
        /// index_overflow.
        [[nodiscard]] status validate() const {
            const protection& p = protect;
            if (tokens < 0 || p.sink_tokens < 0 || p.pinned_tokens < 0 || p.window_tokens < 0 ||
                p.rollback_tokens < 0) {
                return {errc::invalid_parameter, "cell_scores: token counts must not be negative"};
            }
            if (tokens > std::numeric_limits<keep_plan::table_index>::max()) {
                return {errc::index_overflow, "a plan addresses at most 2^31 - 1 tokens", tokens};
            }
            if (kept_tokens <= 0) { return {errc::budget_zero, "the budget must be at least one token"}; }
            if (budget() < 0) {
                return {errc::budget_below_protection, "the protected tokens alone exceed the budget",
                        tokens - range().size()};
            }
            return {};
        }
        /// Bytes of workspace; 0 for what validate() refuses.
        [[nodiscard]] index_t workspace_bytes() const {
            if (!validate().ok()) { return 0; }
            workspace counting = workspace::counting();
            static_cast<void>(cell_scores(*this, counting));
            return counting.needed_bytes();
        }
    };

    /// Takes its scratch from `memory`, which must stay valid and taken until plan() returns. Of a request that is not
    /// valid, or with too little memory, every call answers why.
    cell_scores(const request& asked, workspace& memory)
        : status_(asked.validate()), asked_(status_.ok() ? asked : request{}),
          fold_(asked_.reduction, asked_.range().size(), memory) {
        if (status_.ok() && !memory.fits()) { status_ = memory.too_small(); }
        if (status_.ok()) { fold_.begin(); }
    }

    [[nodiscard]] status validate() const { return status_; } ///< why it is not valid, or ok

    /// Adds the importance rows of one layer, as a scorer writes them: one per KV head, a column per candidate.
    /// Returns rows_differ, invalid_table, or invalid_parameter for a score of +infinity, which marks a token as selected and
    /// would outweigh all other rows (votes only count it), with nothing added, or what validate() says.
    [[nodiscard]] status add(const score_rows& layer) {
        if (!status_.ok()) { return status_; }
        if (const status s = kvtrim::validate(layer); !s.ok()) { return s; }
        const std::uint32_t selected = ordered_bits(std::numeric_limits<float>::infinity());
        for (index_t r = 0; r < layer.rows(); ++r) {
            if (layer.length(r) != asked_.range().size()) {
                return {errc::rows_differ, "one token set for all heads needs rows of one length"};
            }
            const auto row = layer.row(r);
            if (asked_.reduction != head_reduction::votes && kernels::compare(row, selected).equal > 0) {
                return {errc::invalid_parameter,
                        "cell_scores: +infinity marks a selected token; add the scores before selection"};
            }
        }
        for (index_t r = 0; r < layer.rows(); ++r) { fold_.add(layer.row(r), asked_.budget()); }
        return {};
    }

    /// Adds what a policy's scorer gives for one layer; its allocator and reranker have no part in one token set. Returns what
    /// policy.score() or add(score_rows) says, with nothing added.
    template <class Policy, class Inputs, class Executor = serial_executor>
    [[nodiscard]] status add(const Policy& policy, const Inputs& in, const attention_options& attention,
                             growing_workspace& memory, Executor&& ex = {}) {
        if (!status_.ok()) { return status_; }
        const eviction_request scored{.budget = {}, .protect = asked_.protect, .attention = attention};
        if (const status s = policy.score(in, scored, table_, memory, ex); !s.ok()) { return s; }
        return add(table_.scores().importance_rows());
    }

    /// Writes a plan of one row: protected tokens and the best of the others. Returns what validate() says, with out
    /// unchanged.
    [[nodiscard]] status plan(keep_plan& out) const {
        if (!status_.ok()) { return status_; }
        const token_range range = asked_.range();
        const index_t kept = std::min(asked_.kept_tokens, asked_.tokens);
        if (const status s = out.reset(std::span(&kept, 1)); !s.ok()) { return s; }
        const auto importance = fold_.finish(asked_.budget());
        const top_k_cut cut = find_top_k(importance, asked_.budget());
        detail::write_survivors(importance, cut, range, asked_.tokens, out.writable_row(0).data());
        return {};
    }

  private:
    status status_;
    request asked_;
    row_fold fold_;
    score_table table_; // of the layer that is added
};

} // namespace KVTRIM_NAMESPACE
