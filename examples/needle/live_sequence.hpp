// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// One sequence of the model over caches with a cap: before tokens come, every layer without room for them is cut.

#include "live_policies.hpp"

#include <kvtrim/decode/interval_policy.hpp>

#include <cstddef>
#include <span>
#include <vector>

namespace needle {

// In tokens per KV head of every layer. A cut leaves cap - chunk.
struct cache_limit {
    index_t cap_tokens = 0;
    index_t chunk_tokens = 0;  // the most that come at a time
    index_t window_tokens = 0; // newest queries that a policy sees; their tokens stay
};

class live_sequence {
  public:
    static constexpr index_t sink_tokens = 4; // first tokens that stay

    // Model and policy must outlive this. prompt_room: slots for a prompt that forward() takes, if there is one.
    live_sequence(const llama_model& model, const live_policy& policy, const cache_limit& limit,
                  index_t prompt_room = 0);

    // Runs tokens at the next positions, after the cuts that are due; returns logits, the last one's [1, vocabulary] if not asked
    // for others. Throws std::runtime_error if a layer is above the cap afterwards.
    matrix step(std::span<const token_id> tokens, logit_rows rows = logit_rows::last);

    // The same without cuts and without the cap.
    matrix forward(std::span<const token_id> tokens, logit_rows rows = logit_rows::last);

    // Keys and values of all layers, as they are now.
    [[nodiscard]] std::size_t bytes() const;
    // The most after any forward() or step() since the last call of this.
    [[nodiscard]] std::size_t take_most_bytes();
    [[nodiscard]] index_t cuts() const { return cuts_; } // of all layers together

  private:
    void cut_where_due(index_t incoming);

    const llama_model& model_;
    kvtrim::interval_policy<live_policy> decode_;
    std::size_t cap_bytes_;
    std::vector<live_layer> layers_;
    kvtrim::keep_plan plan_;
    kvtrim::growing_workspace memory_;
    std::size_t most_bytes_ = 0;
    index_t cuts_ = 0;
};

} // namespace needle
