// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A model of llama.cpp, its words, and how far apart two of its predictions are.

#include <llama.h>

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace llama_example {

// Throws std::runtime_error where the file cannot be read. The CPU alone; weights are not repacked, so that W_O can be read.
struct language_model {
    explicit language_model(const std::string& file);

    std::unique_ptr<llama_model, void (*)(llama_model*)> model;
    const llama_vocab* vocabulary;

    [[nodiscard]] std::vector<llama_token> tokens(std::string_view text, bool at_start) const;
    [[nodiscard]] std::string text(llama_token token) const;
    [[nodiscard]] bool is_end(llama_token token) const { return llama_vocab_is_eog(vocabulary, token); }
    // A turn of a chat as the model's template writes it, with what begins the answer; without a template `said` alone.
    [[nodiscard]] std::string user_turn(const std::string& said, bool first) const;
};

// type_k, type_v: f32, f16, q8_0, q4_0, ... Throws for an unknown one, and for quantised V without flash attention.
[[nodiscard]] llama_context_params context_params(std::uint32_t cells, const std::string& type_k,
                                                  const std::string& type_v, bool flash_attention);

// The natural logarithms of a softmax.
[[nodiscard]] std::vector<float> log_probabilities(std::span<const float> logits);
// Sum of p (log p - log q).
[[nodiscard]] double divergence(std::span<const float> log_p, std::span<const float> log_q);
[[nodiscard]] llama_token likeliest(std::span<const float> logits);

// Throws std::runtime_error.
[[nodiscard]] std::string read_text(const std::string& file);

} // namespace llama_example
