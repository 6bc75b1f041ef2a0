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

#include <kvtrim/core/any_index.hpp>
#include <kvtrim/plan/candidate_rows.hpp>
#include <kvtrim/plan/concepts.hpp>

#include <algorithm>
#include <limits>
#include <numeric>

namespace KVTRIM_NAMESPACE {

/// The moments at which a policy calls its observer, with what is known by then.
enum class plan_stage : std::uint8_t { scored, allocated, selected };

/// What an observer is called with.
struct plan_progress {
    plan_stage stage;                 ///< which moment it is
    const token_scores& scores;       ///< of the layer, or of all layers
    std::span<const index_t> budgets; ///< candidates per row, from `allocated` on
};

/// The observer that does nothing.
struct no_observer {
    void operator()(const plan_progress&) const {} ///< ignores it
};

namespace detail {

template <class Inputs>
[[nodiscard]] index_t kv_heads_of(std::span<const Inputs> layers) {
    return layers.empty() ? 0 : layers.front().kv_heads();
}

template <class Stage>
[[nodiscard]] status validate_stage(const Stage& stage) {
    if constexpr (requires { stage.validate(); }) { return stage.validate(); }
    return {};
}
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

// What the scorer says of a layer that has something to score.
template <class Policy, class Inputs>
[[nodiscard]] status validate_scorer(const Policy& policy, const Inputs& in,
                                     const eviction_request& request) {
    if constexpr (requires { policy.scorer.validate(in, request); }) {
        return policy.scorer.validate(in, request);
    }
    return {};
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
    const protection& p = request.protect;
    if (const status s = valid_protection(p); !s.ok()) { return s; }
    for (const status s : {validate_stage(policy.allocator), validate_stage(policy.reranker)}) {
        if (!s.ok()) { return s; }
    }
    const index_t heads = kv_heads_of(layers);
    for (const Inputs& in : layers) {
        if (const status s = in.validate(); !s.ok()) { return s; }
        if (in.kv_heads() != heads) {
            return {errc::rows_differ, "all layers must have the same kv_heads", heads};
        }
    }
    const cache_lengths all = count_lengths(layers, p);
    if (all.longest > std::numeric_limits<keep_plan::table_index>::max()) {
        return {errc::index_overflow, "a plan addresses at most 2^31 - 1 tokens per head", all.longest};
    }
    const index_t total = request.budget.total(heads, std::ssize(layers));
    if (const status s = validate_budget(request, all, total); !s.ok()) { return s; }
    for (const Inputs& in : layers) {
        // A layer that is not scored may be shorter than the window; all other errors are returned.
        const bool unscored =
            keeps_whole<Policy>(total, all.tokens) || count_lengths(in, p).candidates() == 0;
        const status s = validate_scorer(policy, in, request);
        if (!s.ok() && !(unscored && s.code() == errc::window_exceeds_tokens)) { return s; }
    }
    return {};
}

// Scores and budgets of the rows of all layers.
template <bool WritesAttention>
struct pipeline_tables {
    std::span<index_t> offsets;          // [rows + 1]
    std::span<float> importance;         // [candidates]
    std::span<float> attention;          // [candidates] if the scorer has two stages
    std::span<float> protected_mass;     // [rows]
    std::span<index_t> protected_tokens; // [rows]
    std::span<index_t> budgets;          // [rows]
    std::span<index_t> counts;           // [kv_heads]
    std::span<index_t> own_offsets;      // [kv_heads + 1] of one layer, from 0
    std::size_t heads;

    pipeline_tables(index_t layers, index_t kv_heads, index_t candidates, workspace& scratch)
        : offsets(scratch.take<index_t>(layers * kv_heads + 1)), importance(scratch.take<float>(candidates)),
          attention(scratch.take<float>(WritesAttention ? candidates : 0)),
          protected_mass(scratch.take<float>(layers * kv_heads)),
          protected_tokens(scratch.take<index_t>(layers * kv_heads)),
          budgets(scratch.take<index_t>(layers * kv_heads)), counts(scratch.take<index_t>(kv_heads)),
          own_offsets(scratch.take<index_t>(kv_heads + 1)), heads(static_cast<std::size_t>(kv_heads)) {}

    template <class Inputs>
    void begin(std::span<const Inputs> layers, const protection& protect) const {
        offsets[0] = 0;
        for (std::size_t l = 0; l < layers.size(); ++l) {
            fill_candidate_offsets(layers[l], protect, offsets.subspan(l * heads, heads + 1),
                                   protected_tokens.subspan(l * heads, heads));
        }
        std::fill(protected_mass.begin(), protected_mass.end(), 0.0f);
        std::fill(budgets.begin(), budgets.end(), index_t{-1}); // -1 is refused if it stays
    }

    [[nodiscard]] token_scores all() const {
        return {offsets,        importance,       attention,
                protected_mass, protected_tokens, static_cast<index_t>(heads)};
    }
    // The rows of one layer, with offsets from 0; valid until the next call.
    [[nodiscard]] token_scores layer(std::size_t l) const {
        const auto begins = offsets.subspan(l * heads, heads + 1);
        for (std::size_t g = 0; g <= heads; ++g) { own_offsets[g] = begins[g] - begins[0]; }
        const auto first = static_cast<std::size_t>(begins[0]);
        const auto count = static_cast<std::size_t>(own_offsets.back());
        return {own_offsets, importance.subspan(first, count),
                WritesAttention ? attention.subspan(first, count) : std::span<float>{},
                protected_mass.subspan(l * heads, heads), protected_tokens.subspan(l * heads, heads)};
    }
    [[nodiscard]] std::span<index_t> layer_budgets(std::size_t l) const {
        return budgets.subspan(l * heads, heads);
    }
};

template <class Policy>
using tables_of = pipeline_tables<decltype(Policy::scorer)::writes_attention>;

// Bytes of workspace, by a run over a counting workspace, which reads no tensor. Requires inputs that validate_pipeline
// accepts.
template <class Policy, class Inputs, class Executor>
[[nodiscard]] index_t pipeline_bytes(const Policy& policy, std::span<const Inputs> layers,
                                     const eviction_request& request, const Executor& ex) {
    const index_t heads = kv_heads_of(layers);
    const cache_lengths all = count_lengths(layers, request.protect);
    const index_t total = request.budget.total(heads, std::ssize(layers));
    workspace counting = workspace::counting();
    if (keeps_whole<Policy>(total, all.tokens)) {
        static_cast<void>(counting.take<index_t>(heads));
        return counting.needed_bytes();
    }
    static_cast<void>(tables_of<Policy>(std::ssize(layers), heads, all.candidates(), counting));
    index_t stage = stage_bytes(policy.allocator, std::ssize(layers) * heads, all.candidates());
    for (const Inputs& in : layers) {
        const index_t own = count_lengths(in, request.protect).candidates();
        if (own == 0) { continue; }
        stage = std::max(stage, scoring_bytes(policy.scorer, in, request, ex));
        stage = std::max(stage, stage_bytes(policy.reranker, heads, own));
    }
    static_cast<void>(counting.take<std::byte>(stage));
    return counting.needed_bytes();
}

// Runs the reranker's before_allocation() on a layer's scores. total: candidates that stay in a layer on average.
template <class Policy>
[[nodiscard]] status before_allocation(const Policy& policy, const token_scores& scores, index_t total,
                                       workspace& scratch) {
    if constexpr (requires { policy.reranker.before_allocation(scores, total, scratch); }) {
        return policy.reranker.before_allocation(scores, total, scratch);
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
    t.begin(layers, request.protect);
    const index_t kept = std::min(total, all.tokens) - all.protected_tokens;
    for (std::size_t l = 0; l < layers.size(); ++l) {
        const token_scores own = t.layer(l);
        if (own.importance.empty()) { continue; }
        if (const status s = policy.scorer.score(layers[l], request, own, scratch, ex); !s.ok()) { return s; }
    }
    const token_scores scores = t.all();
    observer(plan_progress{plan_stage::scored, scores, {}});

    for (std::size_t l = 0; l < layers.size(); ++l) {
        const status s = before_allocation(policy, t.layer(l), kept / std::ssize(layers), scratch);
        if (!s.ok()) { return s; }
    }
    using reranker = std::remove_cvref_t<decltype(policy.reranker)>;
    const score_rows ranked =
        reranker::allocate_by_attention ? scores.attention_rows() : scores.importance_rows();
    if (const status s = policy.allocator.allocate(ranked, kept, t.budgets, scratch); !s.ok()) { return s; }
    if (const status s = validate_budgets(ranked, t.budgets); !s.ok()) { return s; }
    observer(plan_progress{plan_stage::allocated, scores, t.budgets});

    for (std::size_t l = 0; l < layers.size(); ++l) {
        const token_scores own = t.layer(l);
        const auto budgets = t.layer_budgets(l);
        if constexpr (requires { policy.reranker.before_selection(own, budgets, scratch); }) {
            if (const status s = policy.reranker.before_selection(own, budgets, scratch); !s.ok()) {
                return s;
            }
        }
        if (const status s = validate_budgets(own.importance_rows(), budgets); !s.ok()) { return s; }
        const index_t tokens = std::accumulate(budgets.begin(), budgets.end(),
                                               count_lengths(layers[l], request.protect).protected_tokens);
        if (const status s = fits_plan(tokens); !s.ok()) { return s; }
    }
    for (std::size_t l = 0; l < layers.size(); ++l) { // nothing is refused from here on
        const status s = plan_best(layers[l], request.protect, t.layer(l).importance_rows(),
                                   t.layer_budgets(l), t.counts, out[l]);
        if (!s.ok()) { return s; }
    }
    observer(plan_progress{plan_stage::selected, scores, t.budgets});
    return {};
}

} // namespace detail

} // namespace KVTRIM_NAMESPACE
