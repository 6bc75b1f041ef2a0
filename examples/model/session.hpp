// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// One sequence of a model: a prompt in chunks, a cut of all layers' caches by a policy, and tokens one after the other.

#include "cache.hpp"
#include "policies.hpp"

#include <functional>
#include <map>
#include <span>
#include <tuple>
#include <vector>

namespace lm {

struct cut_request {
    double kept_ratio = 0.2;    // of each layer's rows, on average
    index_t sink_tokens = 4;    // the prompt's first, which stay
    index_t window_tokens = 32; // its newest, which stay and are observed
};

// What some policies need beside the prompt.
struct policy_aids {
    std::vector<token_id> replay_lead;            // said before the prompt is fed again
    const kvtrim::row_profile* profile = nullptr; // of the model; must outlive the session
    std::vector<double> shares = {};              // [layers] or [layers * kv_heads] of the budget
};

class session {
  public:
    // The model must outlive it. expected_tokens: room made at once.
    session(const llama_model& model, cache_format format, index_t expected_tokens, policy_aids aids = {});

    // Positions so far.
    [[nodiscard]] index_t tokens() const { return tokens_; }

    // Runs a prompt, or what goes on from one, at the next positions and returns its last token's logits [1, vocabulary]. Keeps
    // the newest `observed_tokens` queries of each layer for plan(), of what was kept before too. progress(tokens) is called
    // after each chunk. With a pruning, chunks attend the blocks that it chooses; then the prompt must be the sequence's first.
    matrix prefill(std::span<const token_id> prompt, index_t observed_tokens,
                   const std::function<void(index_t)>& progress = {}, block_pruning* pruning = nullptr);

    // Runs tokens at the next positions and returns the last one's logits.
    matrix step(std::span<const token_id> tokens);

    // What the policy keeps of the prompt. Throws std::runtime_error if kvtrim refuses.
    [[nodiscard]] std::vector<kvtrim::keep_plan> plan(const named_policy& policy, const cut_request& request);

    // What a pass over the prompt makes of its rows: for each loss, per layer. The own pass asks for all of the prompt's queries,
    // and leaves out rows nearer than `nearest`; the replay feeds the prompt again, a part at a time behind replay_lead, each part
    // over the whole prompt, or in the scores over itself and the sinks alone. Throws std::invalid_argument for scoring_pass::both.
    using layer_scores = std::vector<kvtrim::replay_scores>;
    [[nodiscard]] std::vector<layer_scores> score(scoring_pass pass,
                                                  std::span<const kvtrim::token_loss> losses,
                                                  index_t nearest = afar_tokens,
                                                  bool softmax_over_part = false) const;

    // Runs the passes that these policies want, each once for all of them. plan() does so for a policy that was not named here.
    void score_for(std::span<const named_policy* const> policies);

    // Another sequence that goes on from the end of the prompt, with room for so many more tokens. This one stays as it is.
    [[nodiscard]] session fork(index_t room) const;

    // Goes back to the end of the prompt with the rows that the plans keep. Tokens that were run since then are gone.
    void cut(std::span<const kvtrim::keep_plan> plans, index_t room = 0);

    // The prompt's caches as a cut would leave them; this sequence stays as it is. Without plans every row stays.
    [[nodiscard]] std::vector<kv_cache> copy(std::span<const kvtrim::keep_plan> plans = {}) const;

    // Keys and values of all layers.
    [[nodiscard]] std::size_t cache_bytes() const;

  private:
    // Pass, nearest, the own pass's weight where there are both, whether over parts, and loss.
    using scores_key = std::tuple<scoring_pass, index_t, float, bool, kvtrim::token_loss>;
    static scores_key key_of(const named_policy& policy);

    // Gram matrices of W_O [q_heads, head_dim, head_dim], as they are or in units of the layer's stream.
    [[nodiscard]] std::vector<float> gram(std::size_t layer, bool in_stream_units) const;

    const llama_model& model_;
    cache_format format_;
    std::vector<kv_cache> caches_;
    policy_aids aids_;
    std::vector<token_id> prompt_;
    std::vector<head_tensor> queries_; // the prompt's newest
    std::vector<double>
        stream_power_; // per layer, sum over the prompt of 1 / x^2, x the length of the stream
    std::map<scores_key, layer_scores> scored_;
    index_t tokens_ = 0;
    index_t prompt_tokens_ = 0;
};

// The most likely token of the last row of logits.
[[nodiscard]] token_id likeliest(const matrix& logits);

} // namespace lm
