// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Small models as GGUF files that llama.cpp loads: the demo's, and random ones with sliding windows or latent attention.

#include <string>

namespace llama_example {

// The demo's model (examples/needle/data/recall.safetensors), whose tokens are words such as [KEY], a07, v31. All throw
// std::runtime_error where a file cannot be read or written.
void write_recall_model(const std::string& safetensors, const std::string& gguf);

struct window_model {
    int sliding_window = 32;
    int layers = 4;       // every second one attends to all tokens, from layer 1 on
    int silent_below = 0; // layers below this one add nothing to the residual stream
    int head_dim = 64;
};
// Gemma 3's architecture with random weights; tokens 0 to 127, and no text.
void write_window_model(const window_model& shape, const std::string& gguf);

// DeepSeek 2's with random weights: values are the first channels of keys, which all heads share.
void write_latent_model(const std::string& gguf);

} // namespace llama_example
