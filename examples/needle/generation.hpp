// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Generation under a cap: what a cache that never holds more than `cap` tokens per KV head keeps of the model's abilities.
//
//   between chunks   the prompt comes in chunks; a layer without room for the next one is cut to cap - chunk first
//   one shot         the whole prompt, then one cut: what the chunks' price is measured against
//
// Then all needles of the haystack are asked for, one after the other, in a seeded order and again in another one, until
// the model has generated enough: question tokens are given, answers are the model's own arg max and its next input, right
// or wrong, one token at a time. Before each token a full layer is cut again. An answer is right if all its tokens are.
// `full` is the model's prefill and decode without kvtrim's caches: nothing is evicted.

#include "live_policies.hpp"
#include "samples.hpp"

#include <string>
#include <vector>

namespace needle {

struct generation_options {
    std::vector<std::string> policies = {};
    std::vector<std::string> tasks = {};
    std::vector<index_t> tokens = {}; // haystack lengths
    std::vector<index_t> caps = {};   // tokens per KV head
    index_t chunk_tokens = 64;        // of the prompt; also how much is free after a cut
    index_t window_tokens = 32;
    index_t generated_tokens = 256; // at least, per sequence
    index_t samples = 2;
    index_t first_index = 0;
};

enum class prompt_arrival { in_chunks, in_one_shot };

// Means over the samples of one policy, task, length, cap and way of the prompt.
struct generation_row {
    std::string policy; // or "full"
    std::string task;
    index_t tokens = 0;
    index_t cap_tokens = 0; // per KV head; 0: everything
    prompt_arrival arrival = prompt_arrival::in_chunks;
    index_t samples = 0;
    double accuracy = 0;
    double accuracy_squares = 0;          // mean square over samples, for the standard error
    double first_accuracy = 0;            // of the questions asked for the first time
    double cap_bytes = 0;                 // keys and values of all layers
    double most_prompt_bytes = 0;         // at any step of any sample
    double most_generation_bytes = 0;     // at any step of any sample
    double cuts = 0;                      // per layer
    double decoded_tokens = 0;            // one at a time: questions and answers
    double seconds_per_decoded_token = 0; // with cuts
    double prompt_seconds = 0;

    // Of the accuracy, samples being independent; 0 for one sample.
    [[nodiscard]] double standard_error() const;
};

// Throws std::invalid_argument for an unknown policy, or a cap that does not hold a chunk beside the protected tokens.
void validate(const generation_options& chosen);

// Throws std::runtime_error if a cache is ever above its cap, or if answers differ from those of the full cache although
// nothing was evicted; std::invalid_argument as validate().
[[nodiscard]] std::vector<generation_row> evaluate_generation(const llama_model& model,
                                                              const generation_options& chosen);

void print_generation_tables(const std::vector<generation_row>& rows, const generation_options& chosen);

// Throws std::runtime_error if the file cannot be written.
void write_generation_json(const std::vector<generation_row>& rows, const generation_options& chosen,
                           const std::string& file);

} // namespace needle
