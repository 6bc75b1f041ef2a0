// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "live_sequence.hpp"

#include "require.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace needle {
namespace {

using lm::require;

kvtrim::interval_policy<live_policy> interval(const live_policy& policy, const cache_limit& limit) {
    kvtrim::eviction_request request{.budget = kvtrim::per_head(limit.cap_tokens - limit.chunk_tokens)};
    request.protect = {.sink_tokens = live_sequence::sink_tokens, .window_tokens = limit.window_tokens};
    return {policy, request, limit.chunk_tokens};
}

} // namespace

live_sequence::live_sequence(const llama_model& model, const live_policy& policy, const cache_limit& limit,
                             index_t prompt_room)
    : model_(model), decode_(interval(policy, limit)) {
    const model_config& config = model.config;
    require(decode_.validate(limit.chunk_tokens));
    cap_bytes_ =
        static_cast<std::size_t>(2 * config.layers * config.kv_heads * limit.cap_tokens * config.head_dim) *
        sizeof(float);
    const index_t longest = policy.heads_differ ? config.kv_heads * limit.cap_tokens : limit.cap_tokens;
    for (const layer_weights& weights : model.layers) {
        layers_.emplace_back(config, weights, std::max(longest, prompt_room), limit.window_tokens,
                             policy.state);
    }
}

matrix live_sequence::step(std::span<const token_id> tokens, logit_rows rows) {
    cut_where_due(std::ssize(tokens));
    matrix logits = forward(tokens, rows);
    if (bytes() > cap_bytes_) {
        throw std::runtime_error(fmt::format("{}: {} bytes cached at position {}, above the cap of {}",
                                             decode_.policy.name, bytes(),
                                             layers_.front().positions().next_position(), cap_bytes_));
    }
    return logits;
}

matrix live_sequence::forward(std::span<const token_id> tokens, logit_rows rows) {
    const index_t first_position = layers_.front().positions().next_position();
    const rope_table rope = make_rope_table(model_.config, first_position, std::ssize(tokens));
    const auto attend = [&](index_t layer, const attention_inputs& incoming) {
        return layers_[static_cast<std::size_t>(layer)].attend(incoming, rope);
    };
    matrix logits = lm::forward(model_, tokens, first_position, attend, rows);
    most_bytes_ = std::max(most_bytes_, bytes());
    return logits;
}

std::size_t live_sequence::bytes() const {
    std::size_t bytes = 0;
    for (const live_layer& layer : layers_) { bytes += layer.bytes(); }
    return bytes;
}

std::size_t live_sequence::take_most_bytes() {
    return std::exchange(most_bytes_, 0);
}

void live_sequence::cut_where_due(index_t incoming) {
    for (live_layer& layer : layers_) {
        if (!decode_.is_due(layer.positions(), incoming)) { continue; }
        require(decode_.plan(layer, plan_, memory_));
        layer.cut(plan_);
        ++cuts_;
    }
}

} // namespace needle
