// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Questions about a text, answered from a cache that kvtrim cuts, or from the whole one: as turns of one conversation, or dealt
// to several sequences, which have the cells of the text in common.

#include "engine.hpp"
#include "words.hpp"

#include <string>
#include <vector>

namespace llama_example {

struct options {
    std::string model, text_file, policy = "criticalkv", type_k = "f16", type_v = "f16", fold = "squares",
                                  positions = "keep";
    std::vector<std::string> questions;
    double keep = 0.5; // of all tokens that a sequence has seen
    index_t window = 32, sinks = 4, chunk = 0, cells = 4096, max_tokens = 64;
    index_t sequences = 0; // that share the text; 0: one conversation
    std::vector<int> layers;
    bool flash_attention = false, moves_cells = true, compares = false, unseen = false, unified = true;
};

// What an answer was made from, and how fast.
struct answer {
    std::vector<llama_token> tokens;
    std::vector<std::vector<float>> log_probabilities; // of each token, by what came before it
    index_t seen = 0;  // tokens that its sequence had for itself before it, in the cache or evicted
    index_t cells = 0; // of them in the cache
    double tokens_per_second = 0;
    double divergence = 0; // KL(full || cut) per token of the full cache's answer, where that was given
};

// Each turn: reads, cuts, answers; with sequences each reads a question, and they answer together. The answers to all questions, in
// their order. full: those of the whole cache, which take the place of one's own, so that both caches hold the same conversation.
std::vector<answer> converse(const language_model& words, const options& chosen,
                             const std::vector<answer>* full);

} // namespace llama_example
