// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Exact-match accuracy after the cache has been cut, for any policy.
//
// A sample is prefilled once and cut many times. After the cut, the rest of the sequence runs over
// what is left with the right answers as input (teacher forcing); a sample counts as correct when
// every answer token is the arg max, which is also when greedy decoding would be correct.

#include "cache.hpp"
#include "model.hpp"
#include "samples.hpp"

#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace needle {

enum class setting {
    question_aware,    // cut after haystack and first question; the window is that question
    question_agnostic, // cut after the haystack; the window is its last tokens
};

// ---- What a policy sees, and what it answers ----

struct cut_request {
    std::span<const attention_inputs> layers; // of the prefilled tokens
    index_t window_tokens = 0;                // the last tokens: the observation window
    index_t kept_tokens = 0;                  // budget per layer and KV head, window included
};

// Returns one list per layer. Free to move budget between heads and layers.
using compression = std::function<std::vector<keep_list>(const cut_request&)>;

struct layer_cut_request {
    index_t layer = 0;
    const head_tensor& queries; // [q_heads, tokens, head_dim]
    const head_tensor& keys;    // [kv_heads, tokens, head_dim]
    const head_tensor& values;  // [kv_heads, tokens, head_dim]
    index_t window_tokens = 0;
    index_t kept_tokens = 0;
};

using layer_compression = std::function<keep_list(const layer_cut_request&)>;

// A policy that looks at one layer at a time.
[[nodiscard]] compression layer_by_layer(layer_compression compress);

// ---- One sample ----

struct prefilled_sample {
    std::vector<attention_inputs> layers;
    index_t prefilled_tokens = 0;
    index_t window_tokens = 0;
    matrix last_logits;               // [1, vocabulary], of the last prefilled token
    std::vector<token_id> rest;       // decoded after the cut, at prefilled_tokens ..
    std::vector<token_id> answers;    // every answer token of the sample
    std::vector<index_t> answer_rows; // the row of [last_logits; decoded logits] that predicts it
};

[[nodiscard]] prefilled_sample prefill_sample(const recall_model& model, const sample& from, setting when,
                                              index_t agnostic_window_tokens = 32);

struct cut_result {
    bool correct = false;
    std::size_t cache_bytes = 0; // of all layers, after the cut
};

[[nodiscard]] cut_result cut_and_answer(const recall_model& model, const prefilled_sample& prepared,
                                        const compression& compress, double kept_ratio);

// ---- Many samples ----

struct experiment {
    std::string policy;
    double kept_ratio = 1; // of the prefilled tokens
    compression compress;
};

struct sample_range {
    task_kind task = task_kind::single;
    index_t haystack_tokens = 1024;
    index_t first_index = 0;
    index_t samples = 64;
};

struct evaluation {
    double prefill_seconds = 0;           // mean of a sample
    double cut_seconds = 0;               // mean of a sample and experiment: cut and decode
    std::vector<double> accuracy;         // [experiments], share of correct samples
    std::vector<double> mean_cache_bytes; // [experiments]
};

[[nodiscard]] evaluation evaluate(const recall_model& model, const sample_range& range, setting when,
                                  std::span<const experiment> experiments,
                                  index_t agnostic_window_tokens = 32);

} // namespace needle
