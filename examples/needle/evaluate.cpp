// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "evaluate.hpp"

#include "require.hpp"
#include "seconds_since.hpp"

#include <kvtrim/adapter/eigen.hpp>
#include <kvtrim/measure/eviction_loss.hpp>
#include <kvtrim/score/projected_value_norms.hpp>

#include <algorithm>
#include <chrono>
#include <utility>

namespace needle {
namespace {

using lm::require;
using lm::seconds_since;

constexpr index_t sink_tokens = 4;

index_t argmax(const matrix& logits, index_t row) {
    index_t best = 0;
    logits.row(row).maxCoeff(&best);
    return best;
}

// The plan after `more` further tokens have been decoded: they stay in every head.
kvtrim::keep_plan extended(const kvtrim::keep_plan& plan, index_t tokens, index_t more) {
    std::vector<kvtrim::index_t> counts;
    for (kvtrim::index_t r = 0; r < plan.rows(); ++r) { counts.push_back(plan.kept_tokens(r) + more); }
    kvtrim::keep_plan longer;
    require(longer.reset(counts));
    for (kvtrim::index_t r = 0; r < plan.rows(); ++r) {
        auto next = std::copy(plan.row(r).begin(), plan.row(r).end(), longer.writable_row(r).begin());
        for (index_t t = 0; t < more; ++t) { *next++ = static_cast<std::int32_t>(tokens + t); }
    }
    return longer;
}

} // namespace

std::string name_of(setting when) {
    return when == setting::question_aware ? "question_aware" : "question_agnostic";
}

prefilled_sample prefill_sample(const llama_model& model, const sample& from, setting when,
                                index_t agnostic_window_tokens) {
    prefilled_sample prepared;
    const auto question_tokens = std::ssize(from.turns.at(0).question);
    prepared.cached_tokens = std::ssize(from.haystack);
    prepared.window_tokens = std::min(agnostic_window_tokens, prepared.cached_tokens);
    if (when == setting::question_aware) {
        prepared.cached_tokens += question_tokens;
        prepared.window_tokens = question_tokens;
    }
    const flat_sample flat = flatten(from);
    for (const index_t position : flat.answer_positions) {
        prepared.answers.push_back(flat.tokens[static_cast<std::size_t>(position)]);
        prepared.answer_rows.push_back(position - prepared.cached_tokens);
    }
    // One causal pass over everything gives the prompt's tensors and, behind them, the later queries as the
    // full cache sees them. Nothing is asked after the last token.
    const auto end = flat.tokens.end() - 1;
    prepared.rest.assign(flat.tokens.begin() + prepared.cached_tokens, end);
    prefill_result result = prefill(model, {flat.tokens.begin(), end}, logit_rows::all);
    prepared.layers = std::move(result.layers);
    prepared.last_logits = result.logits.row(prepared.cached_tokens - 1);
    return prepared;
}

cutter::cutter(const llama_model& model) : model_(model) {
    const model_config& config = model.config;
    for (const layer_weights& weights : model.layers) {
        const kvtrim::gram_projection gram(kvtrim::output_projection(weights.wo.floats(), config.q_heads));
        const auto floats = static_cast<std::size_t>(config.q_heads * config.head_dim * config.head_dim);
        grams_.emplace_back(gram.view().data, gram.view().data + floats);
    }
}

cut_result cutter::cut(const prefilled_sample& prepared, const named_policy& policy, double kept_ratio) {
    cut_result result;
    plan_layers(prepared, policy, kept_ratio, result);
    compact_and_answer(prepared, result);
    measure(prepared, result);
    return result;
}

void cutter::plan_layers(const prefilled_sample& prepared, const named_policy& policy, double kept_ratio,
                         cut_result& result) {
    const index_t budget = std::max<index_t>(1, kvtrim::kept_tokens(prepared.cached_tokens, kept_ratio));
    kvtrim::eviction_request request{.budget = kvtrim::per_head(budget)};
    // A budget below the window protects the window's newest tokens.
    request.protect.window_tokens = std::min(prepared.window_tokens, budget);
    request.protect.sink_tokens = std::min(sink_tokens, budget - request.protect.window_tokens);
    std::vector<layer_prompt> prompts;
    for (std::size_t layer = 0; layer < prepared.layers.size(); ++layer) {
        const attention_inputs& all = prepared.layers[layer];
        prompts.push_back({.config = model_.config,
                           .keys = {all.keys, 0, prepared.cached_tokens},
                           .values = {all.values, 0, prepared.cached_tokens},
                           .queries = rows_of(all.queries, 0, prepared.cached_tokens),
                           .wo = model_.layers[layer].wo.floats(),
                           .gram = grams_[layer],
                           .tokens = prepared.cached_tokens,
                           .window_tokens = prepared.window_tokens,
                           .lag = small_lag});
    }
    result.plans.resize(prompts.size());
    policy.plan(prompts, request, memory_, result.plans, result.plan_seconds);
    if (policy.cascade_peak_bytes) {
        result.cascade_peak_bytes = policy.cascade_peak_bytes(prompts, request, memory_);
        for (const attention_inputs& layer : prepared.layers) {
            result.one_shot_peak_bytes += static_cast<double>(layer.keys.bytes() + layer.values.bytes()) *
                                          static_cast<double>(prepared.cached_tokens) /
                                          static_cast<double>(layer.keys.tokens());
        }
    }
}

void cutter::compact_and_answer(const prefilled_sample& prepared, cut_result& result) const {
    const auto compact_start = std::chrono::steady_clock::now();
    std::vector<kv_cache> caches;
    for (std::size_t layer = 0; layer < result.plans.size(); ++layer) {
        const attention_inputs& full = prepared.layers[layer];
        caches.emplace_back(cache_rows(full.keys, 0, prepared.cached_tokens),
                            cache_rows(full.values, 0, prepared.cached_tokens), result.plans[layer]);
        result.cache_bytes += static_cast<double>(caches.back().bytes());
    }
    result.compact_seconds = seconds_since(compact_start);

    const auto decode_start = std::chrono::steady_clock::now();
    const index_t decoded = std::ssize(prepared.rest);
    matrix logits(1 + decoded, model_.config.vocabulary);
    logits.row(0) = prepared.last_logits.row(0);
    if (decoded > 0) {
        logits.bottomRows(decoded) = decode(model_, caches, prepared.rest, prepared.cached_tokens);
    }
    result.decode_seconds = seconds_since(decode_start);
    result.correct = true;
    for (std::size_t i = 0; i < prepared.answers.size(); ++i) {
        if (argmax(logits, prepared.answer_rows[i]) != prepared.answers[i]) { result.correct = false; }
    }
}

void cutter::measure(const prefilled_sample& prepared, cut_result& result) const {
    const auto decoded = std::ssize(prepared.rest);
    const index_t tokens = prepared.cached_tokens + decoded;
    const index_t queries = decoded > 0 ? decoded : prepared.window_tokens;
    const auto layers = static_cast<double>(prepared.layers.size());
    for (std::size_t layer = 0; layer < prepared.layers.size(); ++layer) {
        const attention_inputs& full = prepared.layers[layer];
        const auto in = kvtrim::layer(rows_of(full.keys, 0, tokens), rows_of(full.values, 0, tokens))
                            .with_queries(rows_of(full.queries, tokens - queries, queries))
                            .with_output_projection(kvtrim::output_projection(
                                model_.layers[layer].wo.floats(), full.queries.heads()));
        kvtrim::eviction_loss loss;
        require(kvtrim::measure_eviction(in, {},
                                         extended(result.plans[layer], prepared.cached_tokens, decoded), loss,
                                         kvtrim::loss_bound::skipped));
        const double share = 1.0 / (layers * static_cast<double>(loss.error.size()));
        for (std::size_t h = 0; h < loss.error.size(); ++h) {
            result.kept_mass += share * loss.kept_mass[h];
            result.output_error += share * loss.error[h];
            result.head_error_projected.push_back(loss.error_projected[h]);
        }
        result.output_error_projected += loss.layer_error / layers;
    }
}

} // namespace needle
