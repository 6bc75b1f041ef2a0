// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What a policy keeps of the model's abilities: exact-match accuracy after its cut, and what the cut did to attention.
//
// A sample is prefilled once and cut many times. After the cut, the rest of the sequence runs over what is left with
// the right answers as input (teacher forcing); a sample counts as correct when every answer token is the arg
// max, which is also when greedy decoding would be correct. Kept mass and output error are measured with the
// queries of that rest as the full cache sees them: the queries that the cut was made for, not those it was made
// from. Where nothing is decoded (freqword, question-aware) the observation window's queries stand in.

#include "engine.hpp"
#include "samples.hpp"

#include <cstddef>
#include <string>
#include <vector>

namespace needle {

enum class setting {
    question_aware,    // cut after haystack and first question; the window is that question
    question_agnostic, // cut after the haystack; the window is its last tokens
};

[[nodiscard]] std::string name_of(setting when);

struct prefilled_sample {
    std::vector<attention_inputs> layers; // of all tokens, those after the cut included
    index_t cached_tokens = 0;            // prefilled before the cut
    index_t window_tokens = 0;
    matrix last_logits;               // [1, vocabulary], of the last token before the cut
    std::vector<token_id> rest;       // decoded after the cut, at cached_tokens ..
    std::vector<token_id> answers;    // every answer token of the sample
    std::vector<index_t> answer_rows; // the row of [last_logits; decoded logits] that predicts it
};

[[nodiscard]] prefilled_sample prefill_sample(const llama_model& model, const sample& from, setting when,
                                              index_t agnostic_window_tokens);

struct cut_result {
    bool correct = false;
    double cache_bytes = 0;                   // keys and values of all layers after the cut
    double one_shot_peak_bytes = 0;           // most held during prefill; 0 for policies over one layer
    double cascade_peak_bytes = 0;            // the same with eviction after each layer
    double kept_mass = 0;                     // mean over layers and query heads
    double output_error = 0;                  // L1 before W_O: mean over layers and query heads
    double output_error_projected = 0;        // L1 after W_O: mean over layers
    std::vector<double> head_error_projected; // [layers * q_heads]
    std::vector<kvtrim::keep_plan> plans;     // [layers]
    stage_seconds plan_seconds;               // summed over layers
    double compact_seconds = 0;
    double decode_seconds = 0;
};

// Cuts samples of one model; holds what is prepared once: Gram matrices and a workspace.
class cutter {
  public:
    explicit cutter(const llama_model& model);

    // Keeps `kept_ratio` of each layer's tokens: the first 4, the observation window, and what the policy chooses.
    [[nodiscard]] cut_result cut(const prefilled_sample& prepared, const named_policy& policy,
                                 double kept_ratio);

  private:
    void plan_layers(const prefilled_sample& prepared, const named_policy& policy, double kept_ratio,
                     cut_result& result);
    void measure(const prefilled_sample& prepared, cut_result& result) const;
    void compact_and_answer(const prefilled_sample& prepared, cut_result& result) const;

    const llama_model& model_;
    std::vector<std::vector<float>> grams_; // [layers] of [q_heads, head_dim, head_dim]
    kvtrim::growing_workspace memory_;
};

} // namespace needle
