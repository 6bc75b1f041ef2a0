// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A policy whose budget is shared by all layers: its allocator sees the rows of every (layer, KV head) at once.
//
//   one shot   plan(layers, ...)      all caches are there; any allocator over all rows
//   cascade    begin(...) and push(layer, ...) after each layer's prefill: the same result while holding `total`
//              tokens and one layer (policy/layer_cascade.hpp); with the adaptive allocator
//
// The request's budget is per head, per layer (over_all_heads) or for the whole model (over_all_layers). push() assumes
// that the layers to come have the KV heads and tokens of the pushed one, as after a prefill.
//
// Source: Layer-DefensiveKV, arXiv:2510.13334; FFY0/DefensiveKV@9251b95 efficient_ada_global_scorer_press.py.
// Departures: protected tokens stay in every layer (the authors' may lose the window); every row keeps its best
// `safeguard` tokens, without which a flat layer can lose everything.
// Memory: plan() holds the scores of all layers (policy/run_pipeline.hpp), push() those of one.

#include <kvtrim/allocate/adaptive.hpp>
#include <kvtrim/policy/eviction_policy.hpp>
#include <kvtrim/policy/layer_cascade.hpp>

namespace KVTRIM_NAMESPACE {

/// Whether a reranker has done its work before budgets are known, as a cascade needs.
template <class Reranker>
inline constexpr bool can_be_cascaded =
    !Reranker::allocate_by_attention &&
    !requires(const Reranker& r, const token_scores& scores, std::span<index_t> budgets, workspace& scratch) {
    r.before_selection(scores, budgets, scratch);
};

namespace detail {

// A cascade as the allocator of the layer that arrives: a row's budget is what stays of it for now.
struct cascade_allocator {
    layer_cascade& cascade;

    [[nodiscard]] status allocate(const score_rows& ranked, index_t /*total*/, std::span<index_t> budgets,
                                  workspace& /*scratch*/) const {
        if (const status s = cascade.push(ranked); !s.ok()) { return s; }
        for (std::size_t r = 0; r < budgets.size(); ++r) {
            budgets[r] = std::ssize(cascade.kept(cascade.layers() - 1, static_cast<index_t>(r)));
        }
        return {};
    }
};

} // namespace detail

/// A policy whose budget is shared by all layers.
template <class Scorer, class Allocator, class Reranker>
class layer_wise {
  public:
    using layer_policy = eviction_policy<Scorer, Allocator, Reranker>; ///< the stages

    layer_policy policy = {}; ///< its stages

    /// Everything plan() checks before it computes; ok, or the first error. budget_below_protection (needed: protected tokens of
    /// all layers); rows_differ where layers have different kv_heads (needed: those of the first).
    template <class Inputs>
    [[nodiscard]] status validate(std::span<const Inputs> layers, const eviction_request& request) const {
        return detail::validate_pipeline(policy, layers, request);
    }

    /// Bytes of workspace that plan() needs; 0 for inputs it refuses.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] index_t workspace_bytes(std::span<const Inputs> layers, const eviction_request& request,
                                          const Executor& ex = {}) const {
        return validate(layers, request).ok() ? detail::pipeline_bytes(policy, layers, request, ex) : 0;
    }

    /// Makes the plans of all layers, one each; the observer sees the rows of all layers. Returns what validate() says,
    /// invalid_parameter for another number of plans than layers (needed: layers) or a plan that a ragged view reads,
    /// workspace_too_small, index_overflow, or what a stage answers; with every plan unchanged.
    template <class Inputs, class Executor = serial_executor, class Observer = no_observer>
    [[nodiscard]] status plan(std::span<const Inputs> layers, const eviction_request& request,
                              std::span<keep_plan> out, workspace& scratch, Executor&& ex = {},
                              Observer&& observer = {}) const {
        return detail::run_pipeline(policy, layers, request, out, scratch, ex, observer);
    }

    /// The same with a workspace that grows on first use and then stays.
    template <class Inputs, class Executor = serial_executor, class Observer = no_observer>
    [[nodiscard]] status plan(std::span<const Inputs> layers, const eviction_request& request,
                              std::span<keep_plan> out, growing_workspace& memory, Executor&& ex = {},
                              Observer&& observer = {}) const {
        workspace scratch = memory.of_bytes(workspace_bytes(layers, request, ex));
        return plan(layers, request, out, scratch, ex, observer);
    }

    /// Bytes of workspace that score() needs; 0 for inputs it refuses.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] index_t score_bytes(std::span<const Inputs> layers, const eviction_request& request,
                                      const Executor& ex = {}) const {
        return detail::score_tables_bytes(policy, layers, request, ex);
    }

    /// The scores alone, a table per layer: what plan() ranks by. request.budget is not read. An engine that has one layer at a
    /// time calls policy.score(). Returns what validate() says of inputs that no budget can repair, invalid_parameter for another
    /// number of tables than layers (needed: layers), workspace_too_small, or what the scorer answers; with every table as it
    /// was.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] status score(std::span<const Inputs> layers, const eviction_request& request,
                               std::span<score_table> out, workspace& scratch, Executor&& ex = {}) const {
        return detail::score_tables(policy, layers, request, out, scratch, ex);
    }

    /// The same with a workspace that grows on first use and then stays.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] status score(std::span<const Inputs> layers, const eviction_request& request,
                               std::span<score_table> out, growing_workspace& memory,
                               Executor&& ex = {}) const {
        workspace scratch = memory.of_bytes(score_bytes(layers, request, ex));
        return score(layers, request, out, scratch, ex);
    }

    /// A cascade for `layers` layers like this one. Where validate() would refuse so many, or `layers` is not positive, the
    /// cascade holds nothing and its validate() says why.
    template <class Inputs>
    [[nodiscard]] layer_cascade begin(const Inputs& in, const eviction_request& request,
                                      index_t layers) const {
        expect_cascade();
        if (const status s = validate_alike(in, request, layers); !s.ok()) {
            return layer_cascade::invalid(s);
        }
        const index_t total = candidates_of(in, request, layers);
        return {total, policy.allocator.safeguard_of(total, layers * in.kv_heads())};
    }

    /// Bytes of workspace that push() needs for a layer; 0 for inputs it refuses.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] index_t push_bytes(const Inputs& in, const eviction_request& request, index_t layers,
                                     const Executor& ex = {}) const {
        if (!validate_alike(in, request, layers).ok()) { return 0; }
        const std::span<const Inputs> one(&in, 1);
        return detail::score_layers_bytes(policy, one, request, ex,
                                          detail::reranking_bytes(policy, one, request.protect));
    }

    /// Scores a layer and adds it to the cascade, which then says what goes, in this layer and in those before. Returns what
    /// begin() or the cascade's push() answer, workspace_too_small (needed: push_bytes), or what a stage answers; with the
    /// cascade unchanged.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] status push(const Inputs& in, const eviction_request& request, index_t layers,
                              layer_cascade& cascade, workspace& scratch, Executor&& ex = {}) const {
        expect_cascade();
        if (const status s = cascade.validate(); !s.ok()) { return s; }
        if (const status s = validate_alike(in, request, layers); !s.ok()) { return s; }
        const index_t bytes = push_bytes(in, request, layers);
        if (!scratch.holds(bytes)) { return scratch.too_small(bytes); }
        const workspace::frame frame(scratch);
        const std::span<const Inputs> one(&in, 1);
        const index_t candidates = count_lengths(in, request.protect).candidates();
        const detail::tables_of<layer_policy> t(1, in.kv_heads(), candidates, scratch);
        const index_t total = candidates_of(in, request, layers);
        if (total >= layers * candidates) { // everything is kept, without scoring
            t.begin(one, request.protect);
            std::fill(t.importance.begin(), t.importance.end(), 0.0f);
            return cascade.push(t.all().importance_rows());
        }
        return detail::run_stages(policy, detail::cascade_allocator{cascade}, one, request, total,
                                  total / layers, t, scratch, ex, no_observer{});
    }

    /// The same with a workspace that grows on first use and then stays.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] status push(const Inputs& in, const eviction_request& request, index_t layers,
                              layer_cascade& cascade, growing_workspace& memory, Executor&& ex = {}) const {
        workspace scratch = memory.of_bytes(push_bytes(in, request, layers, ex));
        return push(in, request, layers, cascade, scratch, ex);
    }

  private:
    static constexpr void expect_cascade() {
        static_assert(
            std::is_same_v<Allocator, adaptive>,
            "kvtrim: a cascade keeps the best tokens of all rows: combine it with the adaptive allocator; "
            "see policy/layer_cascade.hpp");
        static_assert(
            can_be_cascaded<Reranker>,
            "kvtrim: a reranker that ranks anew inside each budget (two_stage, chunked_per_head) can "
            "not be cascaded: what a budget keeps would not be known before the last layer; see "
            "policy/layer_cascade.hpp");
    }
    // What begin() and push() check: `layers` layers like this one.
    template <class Inputs>
    [[nodiscard]] status validate_alike(const Inputs& in, const eviction_request& request,
                                        index_t layers) const {
        constexpr index_t most = std::numeric_limits<layer_cascade::column_index>::max();
        if (layers <= 0) {
            return {errc::invalid_parameter, "layer_wise: there must be at least one layer", 1};
        }
        const std::span<const Inputs> one(&in, 1);
        if (const status s = detail::validate_layers(policy, one, request.protect); !s.ok()) { return s; }
        const index_t rows = saturated_product(layers, in.kv_heads());
        if (rows > most) { return {errc::index_overflow, "layer_cascade: at most 2^31 - 1 rows", rows}; }
        cache_lengths all = count_lengths(in, request.protect); // at most 2^31 rows each, so the product fits
        all.tokens *= layers;
        all.protected_tokens *= layers;
        const index_t total = request.budget.total(in.kv_heads(), layers);
        if (const status s = detail::validate_budget(request, all, total); !s.ok()) { return s; }
        return detail::validate_scorers(policy, one, request,
                                        detail::keeps_whole<layer_policy>(total, all.tokens));
    }

    // Candidates that stay in `layers` layers like this one, which validate_alike() has seen.
    template <class Inputs>
    [[nodiscard]] static index_t candidates_of(const Inputs& in, const eviction_request& request,
                                               index_t layers) {
        const cache_lengths one = count_lengths(in, request.protect);
        const index_t total = std::min(request.budget.total(in.kv_heads(), layers), layers * one.tokens);
        return total - layers * one.protected_tokens;
    }
};

template <class Scorer, class Allocator, class Reranker>
layer_wise(eviction_policy<Scorer, Allocator, Reranker>) -> layer_wise<Scorer, Allocator, Reranker>;

} // namespace KVTRIM_NAMESPACE
