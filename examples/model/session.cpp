// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "session.hpp"

#include <kvtrim/adapter/eigen.hpp>
#include <kvtrim/score/projected_value_norm.hpp>

#include <algorithm>
#include <new>
#include <numeric>
#include <stdexcept>

namespace lm {
namespace {

// A multiple of what a thread takes of dense attention, large enough that decoding the weights costs little.
constexpr index_t chunk_tokens = 512;

} // namespace

session::session(const llama_model& model, cache_format format, index_t expected_tokens)
    : model_(model), format_(format) {
    const model_config& c = model.config;
    for (index_t layer = 0; layer < c.layers; ++layer) {
        caches_.emplace_back(c.kv_heads, c.head_dim, format).reserve(expected_tokens);
    }
}

matrix session::prefill(std::span<const token_id> prompt, index_t observed_tokens,
                        const std::function<void(index_t)>& progress) {
    const model_config& c = model_.config;
    queries_.clear();
    for (index_t layer = 0; layer < c.layers; ++layer) {
        queries_.emplace_back(c.q_heads, std::min(observed_tokens, std::ssize(prompt)), c.head_dim);
    }
    const index_t first_observed = tokens_ + std::ssize(prompt) - queries_.front().tokens();
    const auto attend = [&](index_t layer, const attention_inputs& inputs) {
        kv_cache& cache = caches_[static_cast<std::size_t>(layer)];
        cache.append(inputs.keys, inputs.values);
        // The chunk's queries from the first observed one on.
        const index_t skipped = std::clamp<index_t>(first_observed - tokens_, 0, inputs.queries.tokens());
        const index_t count = inputs.queries.tokens() - skipped;
        const index_t first = count > 0 ? tokens_ + skipped - first_observed : 0;
        head_tensor& kept = queries_[static_cast<std::size_t>(layer)];
        for (index_t h = 0; h < c.q_heads; ++h) {
            kept.head(h).middleRows(first, count) = inputs.queries.head(h).bottomRows(count);
        }
        return cache.attend(inputs.queries);
    };
    matrix logits;
    while (!prompt.empty()) {
        const auto count = std::min<std::size_t>(prompt.size(), chunk_tokens);
        const logit_rows rows = count == prompt.size() ? logit_rows::last : logit_rows::none;
        logits = forward(model_, prompt.first(count), tokens_, attend, rows);
        tokens_ += static_cast<index_t>(count);
        prompt = prompt.subspan(count);
        if (progress) { progress(tokens_); }
    }
    prompt_tokens_ = tokens_;
    return logits;
}

matrix session::step(std::span<const token_id> tokens) {
    matrix logits = decode(model_, caches_, tokens, tokens_, logit_rows::last);
    tokens_ += std::ssize(tokens);
    return logits;
}

std::vector<kvtrim::keep_plan> session::plan(const named_policy& policy, const cut_request& chosen) const {
    const model_config& c = model_.config;
    const index_t budget = std::max<index_t>(1, kvtrim::kept_tokens(prompt_tokens_, chosen.kept_ratio));
    kvtrim::eviction_request request{.budget = kvtrim::per_head(budget)};
    // A budget below the window protects the window's newest tokens.
    request.protect.window_tokens = std::min(chosen.window_tokens, budget);
    request.protect.sink_tokens = std::min(chosen.sink_tokens, budget - request.protect.window_tokens);

    std::vector<matrix> projections; // W_O as floats, for as long as it is needed
    std::vector<std::vector<float>> grams(caches_.size());
    for (std::size_t l = 0; l < caches_.size(); ++l) {
        projections.push_back(model_.layers[l].wo.decoded());
        if (!policy.needs_gram) { continue; }
        const kvtrim::gram_projection gram(kvtrim::output_projection(projections[l], c.q_heads));
        const auto floats = static_cast<std::size_t>(c.q_heads * c.head_dim * c.head_dim);
        grams[l].assign(gram.view().data, gram.view().data + floats);
    }
    std::vector<layer_prompt> layers;
    for (std::size_t l = 0; l < caches_.size(); ++l) {
        const auto queries = rows_of(queries_[l]);
        layers.push_back({.config = c,
                          .keys = caches_[l].keys(prompt_tokens_),
                          .values = caches_[l].values(prompt_tokens_),
                          .queries = queries,
                          .wo = {projections[l].data(), projections[l].rows(), projections[l].cols()},
                          .gram = grams[l],
                          .tokens = prompt_tokens_,
                          .window_tokens = std::min(chosen.window_tokens, queries.extent(1))});
    }
    std::vector<kvtrim::keep_plan> plans(caches_.size());
    kvtrim::growing_workspace memory;
    stage_seconds ignored;
    policy.plan(layers, request, memory, plans, ignored);
    return plans;
}

void session::cut(std::span<const kvtrim::keep_plan> plans, index_t room) {
    if (plans.size() != caches_.size()) { throw std::invalid_argument("a cut needs a plan per layer"); }
    for (std::size_t l = 0; l < caches_.size(); ++l) { caches_[l].cut(plans[l], room); }
    queries_.clear();
    tokens_ = prompt_tokens_;
}

std::vector<kv_cache> session::copy(std::span<const kvtrim::keep_plan> plans) const {
    const model_config& c = model_.config;
    kvtrim::keep_plan everything;
    if (plans.empty()) {
        const std::vector<kvtrim::index_t> counts(static_cast<std::size_t>(c.kv_heads), prompt_tokens_);
        if (!everything.reset(counts).ok()) { throw std::bad_alloc(); }
        for (index_t h = 0; h < c.kv_heads; ++h) {
            const auto row = everything.writable_row(h);
            std::iota(row.begin(), row.end(), 0);
        }
    } else if (plans.size() != caches_.size()) {
        throw std::invalid_argument("a cut needs a plan per layer");
    }
    std::vector<kv_cache> copies;
    for (std::size_t l = 0; l < caches_.size(); ++l) {
        copies.emplace_back(caches_[l].keys(prompt_tokens_), caches_[l].values(prompt_tokens_),
                            plans.empty() ? everything : plans[l], format_);
    }
    return copies;
}

std::size_t session::cache_bytes() const {
    std::size_t bytes = 0;
    for (const kv_cache& cache : caches_) { bytes += cache.bytes(); }
    return bytes;
}

token_id likeliest(const matrix& logits) {
    index_t best = 0;
    logits.bottomRows(1).row(0).maxCoeff(&best);
    return static_cast<token_id>(best);
}

} // namespace lm
