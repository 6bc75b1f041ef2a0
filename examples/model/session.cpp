// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "session.hpp"

#include <kvtrim/adapter/eigen.hpp>
#include <kvtrim/score/add_pass.hpp>
#include <kvtrim/score/projected_value_norms.hpp>

#include <algorithm>
#include <new>
#include <numeric>
#include <set>
#include <stdexcept>
#include <utility>

namespace lm {
namespace {

// A multiple of what a thread takes of dense attention, large enough that decoding the weights costs little.
constexpr index_t chunk_tokens = block_pruning::segment_tokens;

} // namespace

session::session(const llama_model& model, cache_format format, index_t expected_tokens, policy_aids aids)
    : model_(model), format_(format), aids_(std::move(aids)),
      stream_power_(static_cast<std::size_t>(model.config.layers)) {
    const model_config& c = model.config;
    for (index_t layer = 0; layer < c.layers; ++layer) {
        caches_.emplace_back(c.kv_heads, c.head_dim, format).reserve(expected_tokens);
    }
}

matrix session::prefill(std::span<const token_id> prompt, index_t observed_tokens,
                        const std::function<void(index_t)>& progress, block_pruning* pruning) {
    const model_config& c = model_.config;
    if (pruning != nullptr && tokens_ > 0) {
        throw std::invalid_argument("a pruned prefill must be the first");
    }
    bool ends_prompt = false;
    // Queries of what came before are observed too, unless tokens were run since then.
    const bool goes_on = !queries_.empty() && tokens_ == prompt_tokens_;
    const index_t had = goes_on ? queries_.front().tokens() : 0;
    const index_t observed = std::min(observed_tokens, had + std::ssize(prompt));
    const index_t older = std::max<index_t>(0, observed - std::ssize(prompt));
    queries_.resize(static_cast<std::size_t>(c.layers), head_tensor(0, 0, 0));
    for (head_tensor& kept : queries_) {
        head_tensor now(c.q_heads, observed, c.head_dim);
        for (index_t h = 0; h < c.q_heads && older > 0; ++h) {
            now.head(h).topRows(older) = kept.head(h).bottomRows(older);
        }
        kept = std::move(now);
    }
    const index_t first_observed = tokens_ + std::ssize(prompt) - observed;
    const auto attend = [&](index_t layer, const attention_inputs& inputs) {
        kv_cache& cache = caches_[static_cast<std::size_t>(layer)];
        cache.append(inputs.keys, inputs.values);
        stream_power_[static_cast<std::size_t>(layer)] +=
            static_cast<double>(inputs.stream.array().square().inverse().sum());
        // The chunk's queries from the first observed one on.
        const index_t skipped = std::clamp<index_t>(first_observed - tokens_, 0, inputs.queries.tokens());
        const index_t count = inputs.queries.tokens() - skipped;
        const index_t first = count > 0 ? tokens_ + skipped - first_observed : 0;
        head_tensor& kept = queries_[static_cast<std::size_t>(layer)];
        for (index_t h = 0; h < c.q_heads; ++h) {
            kept.head(h).middleRows(first, count) = inputs.queries.head(h).bottomRows(count);
        }
        return pruning == nullptr ? cache.attend(inputs.queries)
                                  : cache.attend(inputs.queries, layer, ends_prompt, *pruning);
    };
    prompt_.insert(prompt_.end(), prompt.begin(), prompt.end());
    scored_.clear();
    matrix logits;
    while (!prompt.empty()) {
        const auto count = std::min<std::size_t>(prompt.size(), chunk_tokens);
        ends_prompt = count == prompt.size();
        const logit_rows rows = ends_prompt ? logit_rows::last : logit_rows::none;
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

std::vector<kvtrim::keep_plan> session::plan(const named_policy& policy, const cut_request& chosen) {
    const model_config& c = model_.config;
    const index_t budget = std::max<index_t>(1, kvtrim::kept_tokens(prompt_tokens_, chosen.kept_ratio));
    kvtrim::eviction_request request{.budget = kvtrim::per_head(budget)};
    // A budget below the window protects the window's newest tokens.
    request.protect.window_tokens = std::min(chosen.window_tokens, budget);
    request.protect.sink_tokens = std::min(chosen.sink_tokens, budget - request.protect.window_tokens);

    if (policy.needs_profile && aids_.profile == nullptr) {
        throw std::runtime_error(policy.name + " needs a table of the model's rows");
    }
    if (policy.needs_shares && aids_.shares.empty()) {
        throw std::runtime_error(policy.name + " needs shares of the budget");
    }
    const named_policy* const asked = &policy;
    score_for({&asked, 1});
    std::vector<matrix> projections; // W_O as floats, for as long as it is needed
    std::vector<std::vector<float>> grams(caches_.size());
    for (std::size_t l = 0; l < caches_.size(); ++l) {
        projections.push_back(model_.layers[l].wo.decoded());
        if (policy.needs_gram) { grams[l] = gram(l, false); }
    }
    std::vector<layer_prompt> layers;
    for (std::size_t l = 0; l < caches_.size(); ++l) {
        const auto queries = rows_of(queries_[l]);
        layers.push_back(
            {.config = c,
             .keys = caches_[l].keys(prompt_tokens_),
             .values = caches_[l].values(prompt_tokens_),
             .queries = queries,
             .wo = {projections[l].data(), projections[l].rows(), projections[l].cols()},
             .gram = grams[l],
             .tokens = prompt_tokens_,
             .window_tokens = std::min(chosen.window_tokens, queries.extent(1)),
             .stream_power = static_cast<float>(stream_power_[l] / static_cast<double>(prompt_tokens_)),
             .scored = policy.pass == scoring_pass::none ? nullptr : &scored_[key_of(policy)][l],
             .profile = aids_.profile,
             .shares = aids_.shares});
    }
    std::vector<kvtrim::keep_plan> plans(caches_.size());
    kvtrim::growing_workspace memory;
    stage_seconds ignored;
    policy.plan(layers, request, memory, plans, ignored);
    return plans;
}

std::vector<float> session::gram(std::size_t layer, bool in_stream_units) const {
    const model_config& c = model_.config;
    const matrix wo = model_.layers[layer].wo.decoded();
    const kvtrim::gram_projection whole(kvtrim::output_projection(wo, c.q_heads));
    const float* const first = whole.view().data;
    std::vector<float> gram(first, first + c.q_heads * c.head_dim * c.head_dim);
    if (in_stream_units) {
        const double power = stream_power_[layer] / static_cast<double>(prompt_tokens_);
        for (float& x : gram) { x *= static_cast<float>(power); }
    }
    return gram;
}

session::scores_key session::key_of(const named_policy& policy) {
    return {policy.pass, policy.pass == scoring_pass::replay ? 0 : policy.nearest,
            policy.pass == scoring_pass::both ? policy.own_weight : 0, policy.softmax_over_part, policy.loss};
}

void session::score_for(std::span<const named_policy* const> policies) {
    std::map<std::tuple<scoring_pass, index_t, bool>, std::set<kvtrim::token_loss>> passes;
    const auto want = [&](scoring_pass pass, index_t nearest, bool over_part, kvtrim::token_loss loss) {
        if (!scored_.contains({pass, nearest, 0, over_part, loss})) {
            passes[{pass, nearest, over_part}].insert(loss);
        }
    };
    for (const named_policy* p : policies) {
        if (p->pass == scoring_pass::none || scored_.contains(key_of(*p))) { continue; }
        if (p->pass != scoring_pass::own) { want(scoring_pass::replay, 0, p->softmax_over_part, p->loss); }
        if (p->pass != scoring_pass::replay) { want(scoring_pass::own, p->nearest, false, p->loss); }
    }
    for (const auto& [wanted, of_losses] : passes) {
        const auto [pass, nearest, over_part] = wanted;
        const std::vector<kvtrim::token_loss> losses(of_losses.begin(), of_losses.end());
        std::vector<layer_scores> scores = score(pass, losses, nearest, over_part);
        for (std::size_t i = 0; i < losses.size(); ++i) {
            scored_[{pass, nearest, 0, over_part, losses[i]}] = std::move(scores[i]);
        }
    }
    for (const named_policy* p : policies) {
        if (p->pass != scoring_pass::both || scored_.contains(key_of(*p))) { continue; }
        layer_scores both = scored_[{scoring_pass::replay, 0, 0, p->softmax_over_part, p->loss}];
        const layer_scores& own = scored_[{scoring_pass::own, p->nearest, 0, false, p->loss}];
        for (std::size_t l = 0; l < both.size(); ++l) {
            const kvtrim::status added = kvtrim::add_pass(both[l], own[l], p->nearest, p->own_weight);
            if (!added.ok()) { throw std::runtime_error(added.what()); }
        }
        scored_[key_of(*p)] = std::move(both);
    }
}

std::vector<session::layer_scores> session::score(scoring_pass pass,
                                                  std::span<const kvtrim::token_loss> losses, index_t nearest,
                                                  bool softmax_over_part) const {
    constexpr std::size_t part_tokens = 512;
    constexpr index_t part_sinks = 4; // seen beside a part
    if (pass == scoring_pass::both || pass == scoring_pass::none) {
        throw std::invalid_argument("scores are those of one pass");
    }
    const model_config& c = model_.config;
    std::vector<layer_scores> scores(losses.size());
    std::vector<std::vector<float>> grams;
    const bool need_grams = std::any_of(losses.begin(), losses.end(), [](kvtrim::token_loss loss) {
        return loss != kvtrim::token_loss::attention_maximum;
    });
    for (std::size_t l = 0; l < caches_.size(); ++l) {
        for (std::size_t i = 0; i < losses.size(); ++i) {
            scores[i].emplace_back(c.kv_heads, prompt_tokens_, losses[i]);
        }
        grams.push_back(need_grams ? gram(l, true) : std::vector<float>{});
    }
    kvtrim::growing_workspace memory;
    const auto require = [](const kvtrim::status& done) {
        if (!done.ok()) { throw std::runtime_error(done.what()); }
    };
    // Adds the newest queries of a layer whose cache has their rows already.
    const auto add = [&](std::size_t l, const cache_rows& keys, const cache_rows& values,
                         const head_tensor& queries, const kvtrim::replay_part& part = {}) {
        const auto seen = kvtrim::layer(keys, values).with_queries(rows_of(queries));
        const auto feed = [&](kvtrim::replay_scores& to, const auto& in) {
            require(pass == scoring_pass::own ? to.add_own(in, {}, nearest, memory)
                                              : to.add(in, {}, memory, part));
        };
        for (layer_scores& of_loss : scores) {
            if (of_loss[l].loss() == kvtrim::token_loss::attention_maximum) {
                feed(of_loss[l], seen);
            } else {
                feed(of_loss[l],
                     seen.with_output_projection(kvtrim::gram_view{grams[l].data(), c.q_heads, c.head_dim}));
            }
        }
    };
    if (pass == scoring_pass::own) {
        for (std::size_t l = 0; l < caches_.size(); ++l) {
            if (queries_[l].tokens() != prompt_tokens_) {
                throw std::invalid_argument("a policy that was given too few queries");
            }
            add(l, caches_[l].keys(prompt_tokens_), caches_[l].values(prompt_tokens_), queries_[l]);
        }
        return scores;
    }
    for (std::size_t first = 0; first < prompt_.size(); first += part_tokens) {
        std::vector<token_id> fed = aids_.replay_lead;
        const auto part = std::span(prompt_).subspan(first, std::min(part_tokens, prompt_.size() - first));
        fed.insert(fed.end(), part.begin(), part.end());
        kvtrim::replay_part scored;
        if (softmax_over_part) {
            const auto begin = static_cast<index_t>(first);
            scored = {{begin, begin + std::ssize(part)}, part_sinks};
        }
        std::vector<kv_cache> caches = copy();
        const auto attend = [&](index_t layer, const attention_inputs& inputs) {
            const auto l = static_cast<std::size_t>(layer);
            caches[l].append(inputs.keys, inputs.values);
            add(l, caches[l].keys(), caches[l].values(), inputs.queries, scored);
            return caches[l].attend(inputs.queries);
        };
        forward(model_, fed, prompt_tokens_, attend, logit_rows::none);
    }
    return scores;
}

session session::fork(index_t room) const {
    session other(model_, format_, 0, aids_);
    other.caches_ = copy();
    for (kv_cache& cache : other.caches_) { cache.reserve(room); }
    other.prompt_ = prompt_;
    other.queries_ = queries_;
    other.stream_power_ = stream_power_;
    other.tokens_ = other.prompt_tokens_ = prompt_tokens_;
    return other;
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
