// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "evaluate.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>
#include <utility>

namespace needle {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

index_t argmax(const matrix& logits, index_t row) {
    index_t best = 0;
    logits.row(row).maxCoeff(&best);
    return best;
}

} // namespace

compression layer_by_layer(layer_compression compress) {
    return [compress = std::move(compress)](const cut_request& request) {
        std::vector<keep_list> keep;
        for (const attention_inputs& layer : request.layers) {
            keep.push_back(compress({.layer = std::ssize(keep),
                                     .queries = layer.queries,
                                     .keys = layer.keys,
                                     .values = layer.values,
                                     .window_tokens = request.window_tokens,
                                     .kept_tokens = request.kept_tokens}));
        }
        return keep;
    };
}

prefilled_sample prefill_sample(const recall_model& model, const sample& from, setting when,
                                index_t agnostic_window_tokens) {
    prefilled_sample prepared;
    const auto question_tokens = std::ssize(from.turns.at(0).question);
    prepared.prefilled_tokens = std::ssize(from.haystack);
    prepared.window_tokens = std::min(agnostic_window_tokens, prepared.prefilled_tokens);
    if (when == setting::question_aware) {
        prepared.prefilled_tokens += question_tokens;
        prepared.window_tokens = question_tokens;
    }

    const flat_sample flat = flatten(from);
    for (const index_t position : flat.answer_positions) {
        prepared.answers.push_back(flat.tokens[static_cast<std::size_t>(position)]);
        prepared.answer_rows.push_back(position - prepared.prefilled_tokens);
    }
    const auto cut = flat.tokens.begin() + prepared.prefilled_tokens;
    prepared.rest.assign(cut, flat.tokens.end() - 1); // nothing is asked after the last token

    prefill_result result = prefill(model, {flat.tokens.begin(), cut});
    prepared.layers = std::move(result.layers);
    prepared.last_logits = std::move(result.logits);
    return prepared;
}

cut_result cut_and_answer(const recall_model& model, const prefilled_sample& prepared,
                          const compression& compress, double kept_ratio) {
    const double budget = kept_ratio * static_cast<double>(prepared.prefilled_tokens);
    const std::vector<keep_list> keep = compress({.layers = prepared.layers,
                                                  .window_tokens = prepared.window_tokens,
                                                  .kept_tokens = std::lround(budget)});
    if (keep.size() != prepared.layers.size()) {
        throw std::invalid_argument("a compression returns one list per layer");
    }
    cut_result result;
    std::vector<ragged_cache> caches;
    for (std::size_t layer = 0; layer < keep.size(); ++layer) {
        caches.emplace_back(prepared.layers[layer].keys, prepared.layers[layer].values, keep[layer]);
        result.cache_bytes += caches.back().bytes();
    }

    const index_t decoded = std::ssize(prepared.rest);
    matrix logits(1 + decoded, model.config.vocabulary);
    logits.row(0) = prepared.last_logits.row(0);
    if (decoded > 0) {
        logits.bottomRows(decoded) = decode(model, caches, prepared.rest, prepared.prefilled_tokens);
    }
    result.correct = true;
    for (std::size_t i = 0; i < prepared.answers.size(); ++i) {
        if (argmax(logits, prepared.answer_rows[i]) != prepared.answers[i]) { result.correct = false; }
    }
    return result;
}

evaluation evaluate(const recall_model& model, const sample_range& range, setting when,
                    std::span<const experiment> experiments, index_t agnostic_window_tokens) {
    evaluation sums{.accuracy = std::vector<double>(experiments.size()),
                    .mean_cache_bytes = std::vector<double>(experiments.size())};
    for (index_t i = 0; i < range.samples; ++i) {
        const sample asked = make_sample(range.task, range.haystack_tokens, range.first_index + i);
        const auto prefill_start = std::chrono::steady_clock::now();
        const prefilled_sample prepared = prefill_sample(model, asked, when, agnostic_window_tokens);
        sums.prefill_seconds += seconds_since(prefill_start);

        const auto cut_start = std::chrono::steady_clock::now();
        for (std::size_t e = 0; e < experiments.size(); ++e) {
            const cut_result result =
                cut_and_answer(model, prepared, experiments[e].compress, experiments[e].kept_ratio);
            sums.accuracy[e] += result.correct ? 1 : 0;
            sums.mean_cache_bytes[e] += static_cast<double>(result.cache_bytes);
        }
        sums.cut_seconds += seconds_since(cut_start);
    }

    const double samples = static_cast<double>(std::max<index_t>(range.samples, 1));
    sums.prefill_seconds /= samples;
    sums.cut_seconds /= samples * static_cast<double>(std::max<std::size_t>(experiments.size(), 1));
    for (double& sum : sums.accuracy) { sum /= samples; }
    for (double& sum : sums.mean_cache_bytes) { sum /= samples; }
    return sums;
}

} // namespace needle
