// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A prompt's attention layers and what policies keep of them, as files for programs in other languages (kvpress_parity.py).
//
//   layer_L.f32   floats of layer L: queries before their rotation [q_heads, tokens, head_dim], keys and values as they are cached
//                 [kv_heads, tokens, head_dim], W_O [d_model, q_heads * head_dim]
//   plans.json    the shapes, the rotation's frequencies, and for each policy and share the kept tokens of each (layer, KV head)

#include "quality_measure.hpp"

#include <string>
#include <vector>

namespace lm {

// With the request's policies, kept ratios, sink_tokens and window_tokens, into a folder that is there. Policies that need a pass over
// the prompt or a table of the model are refused with std::invalid_argument. Throws std::runtime_error for what cannot be written.
void dump_prompt(const llama_model& model, const std::vector<token_id>& prompt,
                 const quality_request& request, const std::string& folder);

} // namespace lm
