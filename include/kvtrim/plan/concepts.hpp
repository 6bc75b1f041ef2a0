// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The contract of each stage, on one page. A third party's stage is a struct with these members; there is no
// base class, registration or macro. Optional members are marked; what is missing counts as "nothing to do".
//
//   scorer      static constexpr bool writes_attention          whether it also writes scores.attention
//               status score(inputs, request, scores, workspace, executor) const
//               optional: status validate(inputs, request) const
//               optional: index_t workspace_bytes(inputs, request) const, or (inputs, request, executor) where the number
//                         depends on the executor's width (core/for_each_item.hpp)
//   aggregator  see aggregate/attention_tile.hpp (attention_aggregator)
//   allocator   static constexpr bool is_uniform
//               status allocate(score_rows, total, budgets, workspace) const
//               optional: static constexpr bool keeps_less: a cache within the budget is scored and may be cut, too
//               optional: status validate() const; index_t workspace_bytes(rows, candidates) const
//   reranker    static constexpr bool allocate_by_attention, needs_uniform_budgets
//               optional: status before_allocation(scores, total, workspace) const
//               optional: status before_selection(scores, budgets, workspace) const
//               optional: status validate() const; index_t workspace_bytes(rows, candidates) const
//
// A stage fills its outputs or returns an error with nothing written; it takes scratch only from the workspace,
// which plan() compares with workspace_bytes() before the first stage runs: that number must cover it.
// plan() validates inputs, request, and every budget after a stage that may write one, so no stage's answer can make it read or
// write outside. A stage that is called directly must validate its own inputs, as the library's do: validate_scoring(),
// validate_total(), validate_budgets() (plan/token_scores.hpp).
// What a stage must know of the request comes with the scores (score_rows::protected_tokens), never as a field of its own.

#include <kvtrim/cache/layer.hpp>
#include <kvtrim/core/eviction_request.hpp>
#include <kvtrim/core/executor.hpp>
#include <kvtrim/core/workspace.hpp>
#include <kvtrim/plan/token_scores.hpp>

namespace KVTRIM_NAMESPACE {

/// A scorer for these inputs.
template <class S, class Inputs>
concept token_scorer = requires(const S& s, const Inputs& in, const eviction_request& request,
                                const token_scores& out, workspace& scratch, serial_executor& ex) {
    { S::writes_attention } -> std::convertible_to<bool>;
    { s.score(in, request, out, scratch, ex) } -> std::same_as<status>;
};

/// An allocator.
template <class A>
concept budget_allocator = requires(const A& a, const score_rows& scores, index_t total,
                                    std::span<index_t> budgets, workspace& scratch) {
    { A::is_uniform } -> std::convertible_to<bool>;
    { a.allocate(scores, total, budgets, scratch) } -> std::same_as<status>;
};

/// A reranker. Its two steps are optional.
template <class S>
concept token_reranker = requires {
    { S::allocate_by_attention } -> std::convertible_to<bool>;
    { S::needs_uniform_budgets } -> std::convertible_to<bool>;
};

} // namespace KVTRIM_NAMESPACE
