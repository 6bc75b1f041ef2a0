// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What kvtrim keeps of a prompt where kvpress has the same, but `./dev quality` has no policy of that name (kvpress_parity.py).
//
//   observed_attention          all queries' attention, divided by how many saw a token
//   chunked                     SnapKV's scores, whole chunks of 20 tokens
//   key_diff_in_blocks          a full cache takes blocks of 128 tokens, and is cut after each
//   key_diff_in_chunks          chunks of 1024 tokens, each for itself
//   snapkv_by_shares            every (layer, KV head) has a budget of its own
//   snapkv_above_threshold      every token whose score is above a number stays
//   replay, layer_replay        a second pass over the prompt; a layer's rows compete, or all
//   ..._in_parts                the same in parts of 512 tokens, each over the whole prompt
//   ..._of_parts                the same, each over its own rows and the first tokens alone

#include "model.hpp"
#include "quality_measure.hpp"

#include <span>
#include <string>
#include <vector>

namespace lm {

// A part of the prompt that is fed again behind all of it.
struct replayed_part {
    index_t first;                        // token of the prompt
    index_t count;                        // tokens of the prompt
    std::vector<attention_inputs> layers; // of what is fed, at the positions behind the prompt
};

// Once in one part, then in parts of 512 tokens, each behind `lead`.
[[nodiscard]] std::vector<replayed_part> replay_prompt(const llama_model& model,
                                                       const std::vector<token_id>& prompt,
                                                       std::span<const attention_inputs> layers,
                                                       const std::vector<token_id>& lead);

struct parity_plan {
    std::string policy;
    double kept_ratio;
    index_t sink_tokens;
    index_t window_tokens;
    std::vector<std::vector<index_t>> kept; // tokens of each (layer, KV head)
    double threshold = 0;                   // of snapkv_above_threshold
    std::vector<double> shares = {};        // of snapkv_by_shares
};

// For each of the request's kept ratios, with its window; its sink_tokens only where the method has some. `replays` are those of
// replay_prompt(). Throws std::runtime_error if kvtrim refuses.
[[nodiscard]] std::vector<parity_plan> parity_plans(const model_config& config,
                                                    std::span<const attention_inputs> layers,
                                                    std::span<const replayed_part> replays,
                                                    const quality_request& request);

} // namespace lm
