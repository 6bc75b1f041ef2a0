// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A policy is a scorer, an allocator and a selector; plan() runs them in a straight line.
//
//   score      importance of every candidate                                   scorer
//   allocate   candidates that stay, per row; their sum is the request's       allocator
//   select     the best of each row by importance, plus the protected tokens   selector
//
// A prompt within the budget is kept whole, without being scored. Budgets count protected tokens; an allocator
// deals out what is left after them.
//
// Errors: status, with plan untouched (base/status.hpp).
// Memory: workspace_bytes() bytes of the caller's, and the tables of the plan; nothing else is allocated.
// Determinism: equal inputs give equal plans, for any executor.

#include <kvtrim/policy/candidate_rows.hpp>
#include <kvtrim/policy/concepts.hpp>

#include <limits>
#include <utility>

namespace kvtrim {

// The moments at which plan() calls its observer, with what is known by then.
enum class plan_stage : std::uint8_t { scored, allocated, selected };

struct plan_progress {
    plan_stage stage;
    const token_scores& scores;
    std::span<const index_t> budgets; // candidates per row, from `allocated` on
};

struct no_observer {
    void operator()(const plan_progress&) const {}
};

template <class Scorer, class Allocator, class Selector>
class eviction_policy {
    static_assert(budget_allocator<Allocator>,
                  "kvtrim: the allocator needs is_uniform and allocate(score_rows, total, budgets, "
                  "workspace) -> status; see policy/concepts.hpp");
    static_assert(token_selector<Selector>,
                  "kvtrim: the selector needs allocate_by_attention and needs_uniform_budgets; see "
                  "policy/concepts.hpp");
    static_assert(
        !Selector::needs_uniform_budgets || Allocator::is_uniform,
        "kvtrim: this selector keeps the same number of tokens in every head: combine it with the "
        "uniform allocator (chunks of heads that compete: chunked_per_head); see select/shared.hpp");

  public:
    [[no_unique_address]] Scorer scorer = {};
    [[no_unique_address]] Allocator allocator = {};
    [[no_unique_address]] Selector selector = {};

    // Everything plan() checks before it computes; the budget included.
    template <class Inputs>
    [[nodiscard]] status validate(const Inputs& in, const eviction_request& request) const {
        if (const status s = in.validate(); !s.ok()) { return s; }
        const protection& p = request.protect;
        if (p.sink_tokens < 0 || p.pinned_tokens < 0 || p.window_tokens < 0 || p.rollback_tokens < 0) {
            return {errc::invalid_parameter, "protected token counts must not be negative"};
        }
        if (request.budget.tokens <= 0) {
            const bool keeps_nothing_of_nothing = request.budget.tokens == 0 && in.longest_row() == 0;
            if (!keeps_nothing_of_nothing) {
                return {errc::budget_zero, "the budget must be at least one token"};
            }
        }
        for (const status s : {validate_stage(allocator), validate_stage(selector)}) {
            if (!s.ok()) { return s; }
        }
        const cache_lengths all = count_lengths(in, p);
        if (all.longest > std::numeric_limits<keep_plan::table_index>::max()) {
            return {errc::index_overflow, "a plan addresses at most 2^31 - 1 tokens per head", all.longest};
        }
        const index_t total = request.budget.total(in.kv_heads());
        if (all.protected_tokens > total) {
            return {errc::budget_below_protection, "the protected tokens alone exceed the budget",
                    all.protected_tokens};
        }
        const status s = validate_scorer(in, request);
        const bool kept_whole = total >= all.tokens && s.code() == errc::window_exceeds_tokens;
        return kept_whole ? status{} : s;
    }

    // What the scorer alone says of inputs that are valid.
    template <class Inputs>
    [[nodiscard]] status validate_scorer(const Inputs& in, const eviction_request& request) const {
        if constexpr (requires { scorer.validate(in, request); }) { return scorer.validate(in, request); }
        return {};
    }

    // Bytes of workspace that plan() needs for these inputs; 0 for inputs it refuses.
    template <class Inputs>
    [[nodiscard]] index_t workspace_bytes(const Inputs& in, const eviction_request& request) const {
        if (!validate(in, request).ok()) { return 0; }
        return bytes_needed(in, request, count_lengths(in, request.protect));
    }

    // Makes the plan for one layer. `scratch` holds at least workspace_bytes(in, request), or nothing is scored and
    // the answer names them.
    template <class Inputs, class Executor = serial_executor, class Observer = no_observer>
    [[nodiscard]] status plan(const Inputs& in, const eviction_request& request, keep_plan& out,
                              workspace& scratch, Executor&& ex = {}, Observer&& observer = {}) const {
        static_assert(token_scorer<Scorer, Inputs>,
                      "kvtrim: the scorer needs two_stage and score(inputs, request, scores, workspace, "
                      "executor) -> status for these inputs; see policy/concepts.hpp");
        static_assert(executor<std::remove_reference_t<Executor>>,
                      "kvtrim: an executor is called as ex(count, fn) and calls fn(i) for each i in [0, "
                      "count); see base/executor.hpp");
        if (reads_tables_of(in, out)) {
            return {errc::invalid_parameter,
                    "plan: the output must be another plan than the one that the ragged view reads"};
        }
        if (const status s = validate(in, request); !s.ok()) { return s; }
        const cache_lengths all = count_lengths(in, request.protect);
        const index_t bytes = bytes_needed(in, request, all);
        if (!scratch.holds(bytes)) { return scratch.too_small(bytes); }
        const workspace::frame frame(scratch);
        if (request.budget.total(in.kv_heads()) >= all.tokens) {
            return plan_everything(in, scratch.take<index_t>(in.kv_heads()), out);
        }
        const tables t = take(in, all, scratch);
        t.offsets[0] = 0;
        fill_candidate_offsets(in, request.protect, t.offsets);
        const token_scores scores{t.offsets, t.importance, t.attention, t.protected_mass};
        std::fill(t.protected_mass.begin(), t.protected_mass.end(), 0.0f);

        if (const status s = scorer.score(in, request, scores, scratch, ex); !s.ok()) { return s; }
        observer(plan_progress{plan_stage::scored, scores, {}});

        const index_t total = request.budget.total(in.kv_heads()) - all.protected_tokens;
        if constexpr (requires { selector.before_allocation(scores, total, scratch); }) {
            if (const status s = selector.before_allocation(scores, total, scratch); !s.ok()) { return s; }
        }
        const score_rows ranked =
            Selector::allocate_by_attention ? scores.attention_rows() : scores.importance_rows();
        if (const status s = allocator.allocate(ranked, total, t.budgets, scratch); !s.ok()) { return s; }
        observer(plan_progress{plan_stage::allocated, scores, t.budgets});

        if constexpr (requires { selector.before_selection(scores, t.budgets, scratch); }) {
            if (const status s = selector.before_selection(scores, t.budgets, scratch); !s.ok()) { return s; }
        }
        const status s =
            plan_best(in, request.protect, scores.importance_rows(), t.budgets, t.kept_counts, out);
        observer(plan_progress{plan_stage::selected, scores, t.budgets});
        return s;
    }

    // The same with a workspace that grows on first use and then stays.
    template <class Inputs, class Executor = serial_executor, class Observer = no_observer>
    [[nodiscard]] status plan(const Inputs& in, const eviction_request& request, keep_plan& out,
                              growing_workspace& memory, Executor&& ex = {}, Observer&& observer = {}) const {
        workspace scratch = memory.of_bytes(workspace_bytes(in, request));
        return plan(in, request, out, scratch, ex, observer);
    }

  private:
    struct tables {
        std::span<index_t> offsets;      // [rows + 1]
        std::span<float> importance;     // [candidates]
        std::span<float> attention;      // [candidates] if the scorer has two stages
        std::span<float> protected_mass; // [rows]
        std::span<index_t> budgets;      // [rows]
        std::span<index_t> kept_counts;  // [rows]
    };

    template <class Stage>
    static status validate_stage(const Stage& stage) {
        if constexpr (requires { stage.validate(); }) { return stage.validate(); }
        return {};
    }

    template <class Stage>
    static index_t stage_bytes(const Stage& stage, index_t rows, index_t candidates) {
        if constexpr (requires { stage.workspace_bytes(rows, candidates); }) {
            return stage.workspace_bytes(rows, candidates);
        }
        return 0;
    }

    // workspace_bytes() of inputs that are valid: a counting run, which reads no tensor.
    template <class Inputs>
    [[nodiscard]] index_t bytes_needed(const Inputs& in, const eviction_request& request,
                                       const cache_lengths& all) const {
        workspace counting = workspace::counting();
        if (request.budget.total(in.kv_heads()) >= all.tokens) {
            static_cast<void>(counting.take<index_t>(in.kv_heads()));
            return counting.needed_bytes();
        }
        static_cast<void>(take(in, all, counting));
        index_t stage = 0;
        if constexpr (requires { scorer.workspace_bytes(in, request); }) {
            stage = std::max(stage, scorer.workspace_bytes(in, request));
        }
        stage = std::max(stage, stage_bytes(allocator, in.kv_heads(), all.candidates()));
        stage = std::max(stage, stage_bytes(selector, in.kv_heads(), all.candidates()));
        static_cast<void>(counting.take<std::byte>(stage));
        return counting.needed_bytes();
    }

    template <class Inputs>
    static tables take(const Inputs& in, const cache_lengths& all, workspace& scratch) {
        tables t;
        t.offsets = scratch.take<index_t>(in.kv_heads() + 1);
        t.importance = scratch.take<float>(all.candidates());
        t.attention = scratch.take<float>(Scorer::two_stage ? all.candidates() : 0);
        t.protected_mass = scratch.take<float>(in.kv_heads());
        t.budgets = scratch.take<index_t>(in.kv_heads());
        t.kept_counts = scratch.take<index_t>(in.kv_heads());
        return t;
    }
};

template <class Scorer, class Allocator, class Selector>
eviction_policy(Scorer, Allocator, Selector) -> eviction_policy<Scorer, Allocator, Selector>;

} // namespace kvtrim
