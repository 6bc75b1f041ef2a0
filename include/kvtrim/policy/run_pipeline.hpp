// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The stages of every policy, run in order over the rows of one or more layers.
//
//   score              importance of every candidate of a layer                      scorer, layer by layer
//   before_allocation  e.g. marks tokens that stay under any budget                  reranker, layer by layer
//   allocate           candidates that stay, per row; their sum is the request's     allocator, all rows at once
//   before_selection   e.g. one set for all heads, whole chunks                      reranker, layer by layer
//   plan               the best of each row by importance, and the protected tokens
//
//   rows   [layers * kv_heads], row l * kv_heads + g is KV head g of layer l; allocators treat all rows alike
//
// A cache within the budget is kept whole, without being scored (unless the allocator keeps_less); so is a layer of protected
// tokens alone, whatever its scorer says of the window. Errors leave every plan as it was.
// Memory: the scores of all layers, tables of 6 numbers a row, and the scratch of the largest stage.

#include <kvtrim/policy/plan_progress.hpp>
#include <kvtrim/policy/score_layers.hpp>

#include <algorithm>
#include <limits>
#include <numeric>

namespace KVTRIM_NAMESPACE::detail {

template <class Stage>
[[nodiscard]] index_t stage_bytes(const Stage& stage, index_t rows, index_t candidates) {
    if constexpr (requires { stage.workspace_bytes(rows, candidates); }) {
        return stage.workspace_bytes(rows, candidates);
    }
    return 0;
}

// Whether a budget of `total` keeps `tokens` tokens without a look at them.
template <class Policy>
[[nodiscard]] constexpr bool keeps_whole(index_t total, index_t tokens) {
    using allocator = std::remove_cvref_t<decltype(Policy::allocator)>;
    if constexpr (requires { requires allocator::keeps_less; }) {
        return total == std::numeric_limits<index_t>::max(); // keeping_all()
    }
    return total >= tokens;
}

// What a budget of `total` tokens means to caches of these lengths, all together.
[[nodiscard]] inline status validate_budget(const eviction_request& request, const cache_lengths& all,
                                            index_t total) {
    if (request.budget.tokens < 0 || (request.budget.tokens == 0 && all.tokens > 0)) {
        return {errc::budget_zero, "the budget must be at least one token"};
    }
    if (all.protected_tokens > total) {
        return {errc::budget_below_protection, "the protected tokens alone exceed the budget",
                all.protected_tokens};
    }
    return {};
}

// Everything that is checked before anything is computed.
template <class Policy, class Inputs>
[[nodiscard]] status validate_pipeline(const Policy& policy, std::span<const Inputs> layers,
                                       const eviction_request& request) {
    if (const status s = validate_layers(policy, layers, request.protect); !s.ok()) { return s; }
    const cache_lengths all = count_lengths(layers, request.protect);
    const index_t total = request.budget.total(kv_heads_of(layers), std::ssize(layers));
    if (const status s = validate_budget(request, all, total); !s.ok()) { return s; }
    return validate_scorers(policy, layers, request, keeps_whole<Policy>(total, all.tokens));
}

// Bytes of the reranker's scratch for the layer that needs most.
template <class Policy, class Inputs>
[[nodiscard]] index_t reranking_bytes(const Policy& policy, std::span<const Inputs> layers,
                                      const protection& protect) {
    index_t most = 0;
    for (const Inputs& in : layers) {
        const index_t candidates = count_lengths(in, protect).candidates();
        if (candidates == 0) { continue; }
        most = std::max(most, stage_bytes(policy.reranker, in.kv_heads(), candidates));
    }
    return most;
}

// Bytes of workspace for run_pipeline(). Requires inputs that validate_pipeline() accepts.
template <class Policy, class Inputs, class Executor>
[[nodiscard]] index_t pipeline_bytes(const Policy& policy, std::span<const Inputs> layers,
                                     const eviction_request& request, const Executor& ex) {
    const index_t heads = kv_heads_of(layers);
    const cache_lengths all = count_lengths(layers, request.protect);
    if (keeps_whole<Policy>(request.budget.total(heads, std::ssize(layers)), all.tokens)) {
        workspace counting = workspace::counting();
        static_cast<void>(counting.take<index_t>(heads));
        return counting.needed_bytes();
    }
    const index_t allocating = stage_bytes(policy.allocator, std::ssize(layers) * heads, all.candidates());
    return score_layers_bytes(policy, layers, request, ex,
                              std::max(allocating, reranking_bytes(policy, layers, request.protect)));
}

// Runs the reranker's before_allocation() on a layer's scores. even_share: candidates that stay in a layer on average, of
// which a short layer can keep its own at most.
template <class Policy>
[[nodiscard]] status before_allocation(const Policy& policy, const token_scores& scores, index_t even_share,
                                       workspace& scratch) {
    if constexpr (requires { policy.reranker.before_allocation(scores, even_share, scratch); }) {
        const index_t total = std::min(even_share, scores.importance_rows().candidates());
        return policy.reranker.before_allocation(scores, total, scratch);
    }
    return {};
}

// Scores and budgets of the rows of these layers: every stage but the plan. allocator: the policy's, or the cascade that stands in
// for it while layers arrive. kept: candidates that it deals out; even_share: what a layer keeps on average. Requires inputs that
// validate_pipeline() or push() accepts, and scratch for each stage beside the tables.
template <class Policy, class Allocator, class Inputs, class Executor, class Observer>
[[nodiscard]] status run_stages(const Policy& policy, const Allocator& allocator,
                                std::span<const Inputs> layers, const eviction_request& request, index_t kept,
                                index_t even_share, const tables_of<Policy>& t, workspace& scratch,
                                Executor& ex, Observer&& observer) {
    if (const status s = score_layers(policy, layers, request, t, scratch, ex); !s.ok()) { return s; }
    const token_scores scores = t.all();
    observer(plan_progress{plan_stage::scored, scores, {}});

    for (std::size_t l = 0; l < layers.size(); ++l) {
        const status s = before_allocation(policy, t.layer(l), even_share, scratch);
        if (!s.ok()) { return s; }
    }
    using reranker = std::remove_cvref_t<decltype(policy.reranker)>;
    const score_rows ranked =
        reranker::allocate_by_attention ? scores.attention_rows() : scores.importance_rows();
    if (const status s = allocator.allocate(ranked, kept, t.budgets, scratch); !s.ok()) { return s; }
    if (const status s = validate_budgets(ranked, t.budgets); !s.ok()) { return s; }
    observer(plan_progress{plan_stage::allocated, scores, t.budgets});

    if constexpr (requires(token_scores own) { policy.reranker.before_selection(own, t.budgets, scratch); }) {
        for (std::size_t l = 0; l < layers.size(); ++l) {
            const token_scores own = t.layer(l);
            const auto budgets = t.layer_budgets(l);
            if (const status s = policy.reranker.before_selection(own, budgets, scratch); !s.ok()) {
                return s;
            }
            if (const status s = validate_budgets(own.importance_rows(), budgets); !s.ok()) { return s; }
        }
    }
    return {};
}

// Runs all stages. out: a plan per layer. scratch: pipeline_bytes() of a serial executor at least, or the answer names them
// and nothing is scored.
template <class Policy, class Inputs, class Executor, class Observer>
[[nodiscard]] status run_pipeline(const Policy& policy, std::span<const Inputs> layers,
                                  const eviction_request& request, std::span<keep_plan> out,
                                  workspace& scratch, Executor& ex, Observer& observer) {
    if (layers.size() != out.size()) {
        return {errc::invalid_parameter, "plan: there must be one plan per layer", std::ssize(layers)};
    }
    for (const Inputs& in : layers) {
        if (any_element(out, [&](const keep_plan& p) { return reads_tables_of(in, p); })) {
            return {errc::invalid_parameter,
                    "plan: the outputs must be other plans than those that ragged views read"};
        }
    }
    if (const status s = validate_pipeline(policy, layers, request); !s.ok()) { return s; }
    const index_t bytes = pipeline_bytes(policy, layers, request, serial_executor{});
    if (!scratch.holds(bytes)) { return scratch.too_small(bytes); }
    const workspace::frame frame(scratch);
    const index_t heads = kv_heads_of(layers);
    const cache_lengths all = count_lengths(layers, request.protect);
    const index_t total = request.budget.total(heads, std::ssize(layers));
    if (keeps_whole<Policy>(total, all.tokens)) {
        return plan_everything(layers, scratch.take<index_t>(heads), out);
    }
    const tables_of<Policy> t(std::ssize(layers), heads, all.candidates(), scratch);
    const index_t kept = std::min(total, all.tokens) - all.protected_tokens;
    const status ran = run_stages(policy, policy.allocator, layers, request, kept, kept / std::ssize(layers),
                                  t, scratch, ex, observer);
    if (!ran.ok()) { return ran; }
    for (std::size_t l = 0; l < layers.size(); ++l) {
        const auto budgets = t.layer_budgets(l);
        const index_t tokens = std::accumulate(budgets.begin(), budgets.end(),
                                               count_lengths(layers[l], request.protect).protected_tokens);
        if (const status s = fits_plan(tokens); !s.ok()) { return s; }
    }
    for (std::size_t l = 0; l < layers.size(); ++l) { // nothing is refused from here on
        const status s = plan_best(layers[l], request.protect, t.layer(l).importance_rows(),
                                   t.layer_budgets(l), t.counts, out[l]);
        if (!s.ok()) { return s; }
    }
    observer(plan_progress{plan_stage::selected, t.all(), t.budgets});
    return {};
}

} // namespace KVTRIM_NAMESPACE::detail
