// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A policy is a scorer, an allocator and a reranker; plan() runs them in a straight line (policy/run_pipeline.hpp).
//
//     status s = policy.plan(inputs, request, plan, memory);            // one layer
//     status s = policy.score(inputs, request, scores, memory);         // its scores alone: plan/score_table.hpp
//
// Budgets count protected tokens; an allocator deals out what is left after them.
// Errors: status, with plan and scores untouched (core/status.hpp).
// Memory: workspace_bytes() bytes of the caller's, and the tables of the plan; nothing else is allocated.
// Determinism: equal inputs give equal plans, for any executor.

#include <kvtrim/policy/run_pipeline.hpp>

#include <utility>

namespace KVTRIM_NAMESPACE {

/// A policy for one layer: scorer, allocator and reranker (plan/concepts.hpp).
template <class Scorer, class Allocator, class Reranker>
class eviction_policy {
    static_assert(budget_allocator<Allocator>,
                  "kvtrim: the allocator needs is_uniform and allocate(score_rows, total, budgets, "
                  "workspace) -> status; see plan/concepts.hpp");
    static_assert(token_reranker<Reranker>,
                  "kvtrim: the reranker needs allocate_by_attention and needs_uniform_budgets; see "
                  "plan/concepts.hpp");
    static_assert(
        !Reranker::needs_uniform_budgets || Allocator::is_uniform,
        "kvtrim: this reranker keeps the same number of tokens in every head: combine it with the "
        "uniform allocator (chunks of heads that compete: chunked_per_head); see rerank/shared.hpp");

  public:
    [[no_unique_address]] Scorer scorer = {};       ///< scores the candidates
    [[no_unique_address]] Allocator allocator = {}; ///< deals the budget out over the KV heads
    [[no_unique_address]] Reranker reranker = {};   ///< rewrites importance before selection

    /// Everything plan() checks before it computes, the budget included; ok, or the first error.
    template <class Inputs>
    [[nodiscard]] status validate(const Inputs& in, const eviction_request& request) const {
        return detail::validate_pipeline(*this, one(in), request);
    }

    /// Bytes of workspace that plan() needs for these inputs; 0 for inputs it refuses. Bytes for a serial executor are enough;
    /// bytes for `ex` let all its workers run.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] index_t workspace_bytes(const Inputs& in, const eviction_request& request,
                                          const Executor& ex = {}) const {
        return validate(in, request).ok() ? detail::pipeline_bytes(*this, one(in), request, ex) : 0;
    }

    /// Makes the plan for one layer. Returns what validate() says, workspace_too_small (needed: workspace_bytes),
    /// invalid_parameter for an output that a ragged view of the inputs reads, index_overflow (needed: tokens), or what a stage
    /// answers; with out unchanged.
    template <class Inputs, class Executor = serial_executor, class Observer = no_observer>
    [[nodiscard]] status plan(const Inputs& in, const eviction_request& request, keep_plan& out,
                              workspace& scratch, Executor&& ex = {}, Observer&& observer = {}) const {
        expect_stages<Inputs, Executor>();
        return detail::run_pipeline(*this, one(in), request, std::span(&out, 1), scratch, ex, observer);
    }

    /// The same with a workspace that grows on first use and then stays.
    template <class Inputs, class Executor = serial_executor, class Observer = no_observer>
    [[nodiscard]] status plan(const Inputs& in, const eviction_request& request, keep_plan& out,
                              growing_workspace& memory, Executor&& ex = {}, Observer&& observer = {}) const {
        workspace scratch = memory.of_bytes(workspace_bytes(in, request, ex));
        return plan(in, request, out, scratch, ex, observer);
    }

    /// Bytes of workspace that score() needs for these inputs; 0 for inputs it refuses. Bytes for a
    /// serial executor are enough; bytes for `ex` let all its workers run.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] index_t score_bytes(const Inputs& in, const eviction_request& request,
                                      const Executor& ex = {}) const {
        return detail::score_tables_bytes(*this, one(in), request, ex);
    }

    /// The scores alone, for engines that fold them or select by themselves: of every candidate of the layer, as the scorer
    /// gives them. request.budget is not read. Returns what validate() says of inputs that no budget can repair,
    /// workspace_too_small (needed: score_bytes), or what the scorer answers; with the table as it was.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] status score(const Inputs& in, const eviction_request& request, score_table& out,
                               workspace& scratch, Executor&& ex = {}) const {
        expect_stages<Inputs, Executor>();
        return detail::score_tables(*this, one(in), request, std::span(&out, 1), scratch, ex);
    }

    /// The same with a workspace that grows on first use and then stays.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] status score(const Inputs& in, const eviction_request& request, score_table& out,
                               growing_workspace& memory, Executor&& ex = {}) const {
        workspace scratch = memory.of_bytes(score_bytes(in, request, ex));
        return score(in, request, out, scratch, ex);
    }

  private:
    template <class Inputs>
    [[nodiscard]] static std::span<const Inputs> one(const Inputs& in) {
        return {&in, 1};
    }

    template <class Inputs, class Executor>
    static constexpr void expect_stages() {
        static_assert(
            token_scorer<Scorer, Inputs>,
            "kvtrim: the scorer needs writes_attention and score(inputs, request, scores, workspace, "
            "executor) -> status for these inputs; see plan/concepts.hpp");
        static_assert(executor<std::remove_reference_t<Executor>>,
                      "kvtrim: an executor is called as ex(count, fn) and calls fn(i) for each i in [0, "
                      "count); see core/executor.hpp");
    }
};

template <class Scorer, class Allocator, class Reranker>
eviction_policy(Scorer, Allocator, Reranker) -> eviction_policy<Scorer, Allocator, Reranker>;

} // namespace KVTRIM_NAMESPACE
