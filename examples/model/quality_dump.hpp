// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A prompt's attention layers and what those policies keep of them that kvpress has too, as files for kvpress_parity.py.
//
//   layer_L.f32   floats of layer L: queries before their rotation [q_heads, tokens, head_dim], keys and values as they are
//                 cached [kv_heads, tokens, head_dim], W_O [d_model, q_heads * head_dim]
//   replay_P.f32  what is fed behind the prompt for its part P, layer after layer: queries before their rotation, keys as cached
//   plans.json    the shapes, the rotation's frequencies, of each replayed part its first token, its tokens and how many are
//                 fed, and for each policy and share the kept tokens of each (layer, KV head)

#include "quality_measure.hpp"

#include <string>
#include <vector>

namespace lm {

// With the request's kept ratios and window_tokens, its sink_tokens where the method has sinks, and its replay_lead, into a
// folder that is there. Throws std::runtime_error for what cannot be written, or if kvtrim refuses.
void dump_prompt(const llama_model& model, const std::vector<token_id>& prompt,
                 const quality_request& request, const std::string& folder);

} // namespace lm
