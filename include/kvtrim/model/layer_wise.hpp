// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A policy whose budget is shared by all layers: its allocator sees the rows of every (layer, KV head) at once.
//
//   one shot   plan(layers, ...)      all caches are there; any allocator over all rows
//   cascade    begin(...) and push(layer, ...) after each layer's prefill: the same result while holding `total`
//              tokens and one layer (model/layer_cascade.hpp); with the adaptive allocator
//
// The request's budget is per head, per layer (over_all_heads) or for the whole model (over_all_layers). push() takes
// the layers to come to be like the pushed one, as they are after a prefill.
//
// Source: Layer-DefensiveKV, arXiv:2510.13334; FFY0/DefensiveKV@9251b95 efficient_ada_global_scorer_press.py.
// Departures: protected tokens stay in every layer (the authors' may lose the window); every row keeps its best
// `safeguard` tokens, without which a flat layer can lose everything.
// Memory: plan() holds the scores of all layers, push() those of one.

#include <kvtrim/allocate/adaptive.hpp>
#include <kvtrim/model/layer_cascade.hpp>
#include <kvtrim/policy/eviction_policy.hpp>

#include <numeric>

namespace kvtrim {

template <class Scorer, class Allocator, class Selector>
class layer_wise {
  public:
    using layer_policy = eviction_policy<Scorer, Allocator, Selector>;

    layer_policy policy = {};

    /// What policy.validate() says of each layer, with the budget of all layers: rows_differ for layers of different kv_heads,
    /// budget_below_protection (needed: tokens of all layers). Layers that are kept whole need no window.
    template <class Inputs>
    [[nodiscard]] status validate(std::span<const Inputs> layers, const eviction_request& request) const {
        for (const Inputs& in : layers) {
            if (const status s = policy.validate(in, keeping_all(request)); !s.ok()) { return s; }
            if (in.kv_heads() != layers.front().kv_heads()) {
                return {errc::rows_differ, "layer_wise: all layers must have the same kv_heads",
                        layers.front().kv_heads()};
            }
        }
        return validate_budget(layers, std::ssize(layers), count_lengths(layers, request.protect), request);
    }

    // Bytes of workspace that plan() and push() need; 0 for inputs they refuse.
    template <class Inputs>
    [[nodiscard]] index_t workspace_bytes(std::span<const Inputs> layers,
                                          const eviction_request& request) const {
        if (layers.empty() || !validate(layers, request).ok()) { return 0; }
        return bytes_needed(layers, request);
    }

    /// Makes the plans of all layers; the observer sees the rows of all layers. Returns what validate() says, invalid_parameter
    /// for another number of plans than layers (needed: layers) or a plan that a ragged view reads, workspace_too_small,
    /// index_overflow, or what a stage answers; with every plan unchanged.
    template <class Inputs, class Executor = serial_executor, class Observer = no_observer>
    [[nodiscard]] status plan(std::span<const Inputs> layers, const eviction_request& request,
                              std::span<keep_plan> out, workspace& scratch, Executor&& ex = {},
                              Observer&& observer = {}) const {
        if (layers.size() != out.size()) {
            return {errc::invalid_parameter, "layer_wise: there must be one plan per layer",
                    std::ssize(layers)};
        }
        for (const Inputs& in : layers) {
            if (std::any_of(out.begin(), out.end(), [&](const auto& p) { return reads_tables_of(in, p); })) {
                return {errc::invalid_parameter,
                        "plan: the outputs must be other plans than those that ragged views read"};
            }
        }
        if (const status s = validate(layers, request); !s.ok()) { return s; }
        if (layers.empty()) { return {}; }
        const index_t bytes = bytes_needed(layers, request);
        if (!scratch.holds(bytes)) { return scratch.too_small(bytes); }
        const workspace::frame frame(scratch);
        const tables t = take(layers, request, scratch);
        const index_t total = request.budget.total(layers.front().kv_heads(), std::ssize(layers)) -
                              count_lengths(layers, request.protect).protected_tokens;
        if (total >= t.offsets.back()) { return plan_everything(layers, t.counts, out); }
        for (std::size_t l = 0; l < layers.size(); ++l) {
            const token_scores scores = layer_scores(layers, t, l);
            if (const status s = policy.scorer.score(layers[l], request, scores, scratch, ex); !s.ok()) {
                return s;
            }
            if constexpr (requires { policy.selector.before_allocation(scores, total, scratch); }) {
                const status s =
                    policy.selector.before_allocation(scores, total / std::ssize(layers), scratch);
                if (!s.ok()) { return s; }
            }
        }
        const token_scores all{t.offsets, t.importance, t.attention, t.protected_mass};
        observer(plan_progress{plan_stage::scored, all, {}});
        const score_rows ranked =
            Selector::allocate_by_attention ? all.attention_rows() : all.importance_rows();
        std::fill(t.budgets.begin(), t.budgets.end(),
                  index_t{-1}); // what an allocator leaves out is no budget
        if (const status s = policy.allocator.allocate(ranked, total, t.budgets, scratch); !s.ok()) {
            return s;
        }
        if (const status s = validate_budgets(ranked, t.budgets); !s.ok()) { return s; }
        observer(plan_progress{plan_stage::allocated, all, t.budgets});
        for (std::size_t l = 0; l < layers.size(); ++l) {
            const auto budgets = layer_rows(layers, t.budgets, l);
            const index_t kept = std::accumulate(budgets.begin(), budgets.end(),
                                                 count_lengths(layers[l], request.protect).protected_tokens);
            if (const status s = fits_plan(kept); !s.ok()) { return s; }
            const token_scores scores = layer_scores(layers, t, l);
            if constexpr (requires { policy.selector.before_selection(scores, budgets, scratch); }) {
                if (const status s = policy.selector.before_selection(scores, budgets, scratch); !s.ok()) {
                    return s;
                }
            }
        }
        for (std::size_t l = 0; l < layers.size(); ++l) { // nothing is refused from here on
            const status s =
                plan_best(layers[l], request.protect, layer_scores(layers, t, l).importance_rows(),
                          layer_rows(layers, t.budgets, l), t.counts, out[l]);
            if (!s.ok()) { return s; }
        }
        observer(plan_progress{plan_stage::selected, all, t.budgets});
        return {};
    }

    template <class Inputs, class Executor = serial_executor, class Observer = no_observer>
    [[nodiscard]] status plan(std::span<const Inputs> layers, const eviction_request& request,
                              std::span<keep_plan> out, growing_workspace& memory, Executor&& ex = {},
                              Observer&& observer = {}) const {
        workspace scratch = memory.of_bytes(workspace_bytes(layers, request));
        return plan(layers, request, out, scratch, ex, observer);
    }

    /// The cascade for `layers` layers like this one. Where validate() of so many would refuse them, or `layers` is not positive,
    /// it holds nothing and answers that (layer_cascade::validate).
    template <class Inputs>
    [[nodiscard]] layer_cascade begin(const Inputs& in, const eviction_request& request,
                                      index_t layers) const {
        static_assert(
            std::is_same_v<Allocator, adaptive>,
            "kvtrim: a cascade keeps the best tokens of all rows: combine it with the adaptive allocator; "
            "see model/layer_cascade.hpp");
        if (const status s = validate_alike(in, request, layers); !s.ok()) {
            return layer_cascade::invalid(s);
        }
        const index_t total = candidates_of(in, request, layers);
        return {total, policy.allocator.safeguard_of(total, layers * in.kv_heads())};
    }

    /// Scores a layer and adds it to the cascade, which then says what goes, in this layer and in those before. Needs
    /// workspace_bytes() of this layer alone.
    /// Returns what begin() or the cascade's push() answer, or workspace_too_small, with the cascade unchanged.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] status push(const Inputs& in, const eviction_request& request, index_t layers,
                              layer_cascade& cascade, workspace& scratch, Executor&& ex = {}) const {
        static_assert(
            !Selector::allocate_by_attention,
            "kvtrim: a selector that ranks anew inside each budget (two_stage) can not be cascaded: what a "
            "budget keeps would not be known before the last layer; see model/layer_cascade.hpp");
        if (const status s = cascade.validate(); !s.ok()) { return s; }
        if (const status s = validate_alike(in, request, layers); !s.ok()) { return s; }
        const std::span<const Inputs> one(&in, 1);
        const index_t bytes = bytes_needed(one, request);
        if (!scratch.holds(bytes)) { return scratch.too_small(bytes); }
        const workspace::frame frame(scratch);
        const tables t = take(one, request, scratch);
        const token_scores scores = layer_scores(one, t, 0);
        const index_t total = candidates_of(in, request, layers);
        if (total >= layers * t.offsets.back()) { // everything stays, unscored
            std::fill(t.importance.begin(), t.importance.end(), 0.0f);
            return cascade.push(scores.importance_rows());
        }
        if (const status s = policy.scorer.score(in, request, scores, scratch, ex); !s.ok()) { return s; }
        if constexpr (requires { policy.selector.before_allocation(scores, total, scratch); }) {
            if (const status s = policy.selector.before_allocation(scores, total / layers, scratch);
                !s.ok()) {
                return s;
            }
        }
        return cascade.push(scores.importance_rows());
    }

    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] status push(const Inputs& in, const eviction_request& request, index_t layers,
                              layer_cascade& cascade, growing_workspace& memory, Executor&& ex = {}) const {
        workspace scratch = memory.of_bytes(workspace_bytes(std::span<const Inputs>(&in, 1), request));
        return push(in, request, layers, cascade, scratch, ex);
    }

  private:
    struct tables {
        std::span<index_t> offsets;      // [rows of all layers + 1]
        std::span<float> importance;     // [candidates of all layers]
        std::span<float> attention;      // likewise if the scorer has two stages
        std::span<float> protected_mass; // [rows of all layers]
        std::span<index_t> budgets;      // [rows of all layers]
        std::span<index_t> counts;       // [kv_heads]
        std::span<index_t> own_offsets;  // [kv_heads + 1] of one layer, from 0
    };

    template <class Inputs>
    [[nodiscard]] static tables take(std::span<const Inputs> layers, const eviction_request& request,
                                     workspace& scratch) {
        const index_t heads = layers.front().kv_heads();
        const index_t rows = std::ssize(layers) * heads;
        const index_t all = count_lengths(layers, request.protect).candidates();
        tables t;
        t.offsets = scratch.take<index_t>(rows + 1);
        t.importance = scratch.take<float>(all);
        t.attention = scratch.take<float>(Scorer::two_stage ? all : 0);
        t.protected_mass = scratch.take<float>(rows);
        t.budgets = scratch.take<index_t>(rows);
        t.counts = scratch.take<index_t>(heads);
        t.own_offsets = scratch.take<index_t>(heads + 1);
        if (t.offsets.empty()) { return t; } // a counting run
        t.offsets[0] = 0;
        for (std::size_t l = 0; l < layers.size(); ++l) {
            fill_candidate_offsets(layers[l], request.protect, layer_offsets(layers, t.offsets, l));
        }
        std::fill(t.protected_mass.begin(), t.protected_mass.end(), 0.0f);
        return t;
    }

    // What begin() and push() check: `layers` layers like this one.
    template <class Inputs>
    [[nodiscard]] status validate_alike(const Inputs& in, const eviction_request& request,
                                        index_t layers) const {
        constexpr index_t most = std::numeric_limits<layer_cascade::column_index>::max();
        if (layers <= 0) {
            return {errc::invalid_parameter, "layer_wise: there must be at least one layer", 1};
        }
        if (const status s = policy.validate(in, keeping_all(request)); !s.ok()) { return s; }
        const index_t rows = saturated_product(layers, in.kv_heads());
        if (rows > most) { return {errc::index_overflow, "layer_cascade: at most 2^31 - 1 rows", rows}; }
        cache_lengths all = count_lengths(in, request.protect);
        all.tokens *= layers; // at most 2^31 rows of 2^31 tokens
        all.protected_tokens *= layers;
        return validate_budget(std::span<const Inputs>(&in, 1), layers, all, request);
    }

    // What a request says of `all` tokens of so many layers, whose numbers are valid.
    template <class Inputs>
    [[nodiscard]] status validate_budget(std::span<const Inputs> inputs, index_t layers,
                                         const cache_lengths& all, const eviction_request& request) const {
        if (inputs.empty()) { return {}; }
        const index_t total = request.budget.total(inputs.front().kv_heads(), layers);
        if (request.budget.tokens < 0 || (request.budget.tokens == 0 && all.tokens > 0)) {
            return {errc::budget_zero, "the budget must be at least one token"};
        }
        if (all.protected_tokens > total) {
            return {errc::budget_below_protection, "the protected tokens of all layers exceed the budget",
                    all.protected_tokens};
        }
        for (const Inputs& in : inputs) {
            if (total >= all.tokens) { break; } // kept whole, unscored
            if (const status s = policy.validate_scorer(in, request); !s.ok()) { return s; }
        }
        return {};
    }

    template <class Inputs>
    [[nodiscard]] index_t bytes_needed(std::span<const Inputs> layers,
                                       const eviction_request& request) const {
        workspace counting = workspace::counting();
        static_cast<void>(take(layers, request, counting));
        static_cast<void>(counting.take<std::byte>(stage_bytes(layers, request)));
        return counting.needed_bytes();
    }

    template <class Inputs>
    [[nodiscard]] index_t stage_bytes(std::span<const Inputs> layers, const eviction_request& request) const {
        const index_t heads = layers.front().kv_heads();
        index_t bytes = 0;
        for (const Inputs& in : layers) {
            const index_t own = count_lengths(in, request.protect).candidates();
            if constexpr (requires { policy.scorer.workspace_bytes(in, request); }) {
                if (policy.validate_scorer(in, request).ok()) { // else the layer is kept whole
                    bytes = std::max(bytes, policy.scorer.workspace_bytes(in, request));
                }
            }
            if constexpr (requires { policy.selector.workspace_bytes(heads, own); }) {
                bytes = std::max(bytes, policy.selector.workspace_bytes(heads, own));
            }
        }
        const index_t all = count_lengths(layers, request.protect).candidates();
        if constexpr (requires { policy.allocator.workspace_bytes(heads, all); }) {
            bytes = std::max(bytes, policy.allocator.workspace_bytes(std::ssize(layers) * heads, all));
        }
        return bytes;
    }

    // Candidates that stay in `layers` layers like this one, which validate_alike() has seen.
    template <class Inputs>
    [[nodiscard]] static index_t candidates_of(const Inputs& in, const eviction_request& request,
                                               index_t layers) {
        const cache_lengths one = count_lengths(in, request.protect);
        const index_t total = std::min(request.budget.total(in.kv_heads(), layers), layers * one.tokens);
        return total - layers * one.protected_tokens;
    }
    template <class Inputs, class T>
    [[nodiscard]] static std::span<T> layer_rows(std::span<const Inputs> layers, std::span<T> rows,
                                                 std::size_t layer) {
        const auto heads = static_cast<std::size_t>(layers.front().kv_heads());
        return rows.subspan(layer * heads, heads);
    }
    template <class Inputs>
    [[nodiscard]] static std::span<index_t> layer_offsets(std::span<const Inputs> layers,
                                                          std::span<index_t> offsets, std::size_t layer) {
        const auto heads = static_cast<std::size_t>(layers.front().kv_heads());
        return offsets.subspan(layer * heads, heads + 1);
    }
    // One layer's part of the tables, as if there were no other; valid until the next call.
    template <class Inputs>
    [[nodiscard]] static token_scores layer_scores(std::span<const Inputs> layers, const tables& t,
                                                   std::size_t layer) {
        const auto offsets = layer_offsets(layers, t.offsets, layer);
        for (std::size_t g = 0; g < offsets.size(); ++g) { t.own_offsets[g] = offsets[g] - offsets[0]; }
        const auto begin = static_cast<std::size_t>(offsets[0]);
        const auto count = static_cast<std::size_t>(t.own_offsets.back());
        return {t.own_offsets, t.importance.subspan(begin, count),
                Scorer::two_stage ? t.attention.subspan(begin, count) : std::span<float>{},
                layer_rows(layers, t.protected_mass, layer)};
    }
};

template <class Scorer, class Allocator, class Selector>
layer_wise(eviction_policy<Scorer, Allocator, Selector>) -> layer_wise<Scorer, Allocator, Selector>;

} // namespace kvtrim
