// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The scores of the candidates of one or more layers: the first stage of every policy (policy/run_pipeline.hpp), which
// policy.score() runs alone.
//
//   rows   [layers * kv_heads], row l * kv_heads + g is KV head g of layer l
//
// A layer without candidates is not scored. Memory: the scores of all layers, tables of 6 numbers a row, and the scratch of the
// scorer.

#include <kvtrim/core/any_index.hpp>
#include <kvtrim/plan/concepts.hpp>
#include <kvtrim/plan/plan_best.hpp>
#include <kvtrim/plan/score_table.hpp>

#include <algorithm>
#include <limits>

namespace KVTRIM_NAMESPACE {

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

// What the scorer says of a layer that has something to score.
template <class Policy, class Inputs>
[[nodiscard]] status validate_scorer(const Policy& policy, const Inputs& in,
                                     const eviction_request& request) {
    if constexpr (requires { policy.scorer.validate(in, request); }) {
        return policy.scorer.validate(in, request);
    }
    return {};
}

// What is checked of layers and stages, whatever the budget.
template <class Policy, class Inputs>
[[nodiscard]] status validate_layers(const Policy& policy, std::span<const Inputs> layers,
                                     const protection& protect) {
    if (const status s = valid_protection(protect); !s.ok()) { return s; }
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
    const index_t longest = count_lengths(layers, protect).longest;
    if (longest > std::numeric_limits<keep_plan::table_index>::max()) {
        return {errc::index_overflow, "a plan addresses at most 2^31 - 1 tokens per head", longest};
    }
    return {};
}

// What the scorer says of each layer. A layer that is not scored, because it or all layers are kept whole, may be shorter than
// the window; all other errors are returned for it too.
template <class Policy, class Inputs>
[[nodiscard]] status validate_scorers(const Policy& policy, std::span<const Inputs> layers,
                                      const eviction_request& request, bool are_kept_whole) {
    for (const Inputs& in : layers) {
        const bool unscored = are_kept_whole || count_lengths(in, request.protect).candidates() == 0;
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
    std::span<float> attention;          // [candidates] if the scorer writes it
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

// Bytes of the tables, and beside them of the largest scorer or of `others`, the scratch of stages that run after it. A run over
// a counting workspace, which reads no tensor. Requires inputs that validate_layers() accepts.
template <class Policy, class Inputs, class Executor>
[[nodiscard]] index_t score_layers_bytes(const Policy& policy, std::span<const Inputs> layers,
                                         const eviction_request& request, const Executor& ex,
                                         index_t others = 0) {
    workspace counting = workspace::counting();
    static_cast<void>(tables_of<Policy>(std::ssize(layers), kv_heads_of(layers),
                                        count_lengths(layers, request.protect).candidates(), counting));
    index_t stage = others;
    for (const Inputs& in : layers) {
        if (count_lengths(in, request.protect).candidates() == 0) { continue; }
        stage = std::max(stage, scoring_bytes(policy.scorer, in, request, ex));
    }
    static_cast<void>(counting.take<std::byte>(stage));
    return counting.needed_bytes();
}

// The first step of plan(), score() and a cascade's push(): fills the tables with the scores of every layer that has
// candidates. Requires inputs that validate_layers() and validate_scorers() accept, and a workspace that holds
// score_layers_bytes() with the tables.
template <class Policy, class Inputs, class Executor>
[[nodiscard]] status score_layers(const Policy& policy, std::span<const Inputs> layers,
                                  const eviction_request& request, const tables_of<Policy>& tables,
                                  workspace& scratch, Executor& ex) {
    tables.begin(layers, request.protect);
    for (std::size_t l = 0; l < layers.size(); ++l) {
        const token_scores own = tables.layer(l);
        if (own.importance.empty()) { continue; }
        if (const status s = policy.scorer.score(layers[l], request, own, scratch, ex); !s.ok()) { return s; }
    }
    return {};
}

// What score_tables() checks: all that plan() does, except the budget.
template <class Policy, class Inputs>
[[nodiscard]] status validate_score_tables(const Policy& policy, std::span<const Inputs> layers,
                                           const eviction_request& request) {
    if (const status s = validate_layers(policy, layers, request.protect); !s.ok()) { return s; }
    return validate_scorers(policy, layers, request, false);
}

// Bytes of workspace for score_tables(); 0 for inputs that it refuses.
template <class Policy, class Inputs, class Executor>
[[nodiscard]] index_t score_tables_bytes(const Policy& policy, std::span<const Inputs> layers,
                                         const eviction_request& request, const Executor& ex) {
    const bool ok = validate_score_tables(policy, layers, request).ok();
    return ok ? score_layers_bytes(policy, layers, request, ex) : 0;
}

// Fills a table per layer. Errors leave every table as it was.
template <class Policy, class Inputs, class Executor>
[[nodiscard]] status score_tables(const Policy& policy, std::span<const Inputs> layers,
                                  const eviction_request& request, std::span<score_table> out,
                                  workspace& scratch, Executor& ex) {
    if (layers.size() != out.size()) {
        return {errc::invalid_parameter, "score: there must be one table per layer", std::ssize(layers)};
    }
    if (const status s = validate_score_tables(policy, layers, request); !s.ok()) { return s; }
    const index_t bytes = score_layers_bytes(policy, layers, request, serial_executor{});
    if (!scratch.holds(bytes)) { return scratch.too_small(bytes); }
    const workspace::frame frame(scratch);
    const tables_of<Policy> t(std::ssize(layers), kv_heads_of(layers),
                              count_lengths(layers, request.protect).candidates(), scratch);
    if (const status s = score_layers(policy, layers, request, t, scratch, ex); !s.ok()) { return s; }
    for (std::size_t l = 0; l < layers.size(); ++l) { out[l].assign(t.layer(l)); }
    return {};
}

} // namespace detail

} // namespace KVTRIM_NAMESPACE
