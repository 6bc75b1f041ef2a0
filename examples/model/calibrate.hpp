// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What some policies need beside the prompt, made once for a model: the words before a replay, and a table of how many tokens
// its rows need (kvtrim::row_profile), from a replay of any text.

#include "session.hpp"
#include "tokenizer.hpp"

namespace lm {

// "Repeat the previous context" in the model's tokens.
[[nodiscard]] std::vector<token_id> replay_lead(const tokenizer& words);

// Runs the text once, replays it, and makes a table of what the output loses.
[[nodiscard]] kvtrim::row_profile calibrate(const llama_model& model, std::span<const token_id> text,
                                            const std::vector<token_id>& lead);

} // namespace lm
