// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The recall model: a small LLaMA-style transformer in fp32, and its prefill.
//
// Pre-norm RMSNorm, rotary embedding (half split), grouped-query attention, SwiGLU, no biases,
// untied output matrix. Weights are [out, in], activations [tokens, features]: y = x W^T.
// Query head h reads KV head h / (q_heads / kv_heads).

#include "tensor.hpp"

#include <filesystem>
#include <functional>
#include <span>
#include <vector>

namespace needle {

struct model_config {
    index_t vocabulary = 0;
    index_t layers = 0;
    index_t d_model = 0;
    index_t q_heads = 0;
    index_t kv_heads = 0;
    index_t head_dim = 0;
    index_t d_ff = 0;
    double rope_base = 0;
    float norm_eps = 0;

    [[nodiscard]] index_t group_heads() const { return q_heads / kv_heads; }
};

struct layer_weights {
    row_vector attn_norm; // [d_model]
    matrix wq;            // [q_heads * head_dim, d_model]
    matrix wk;            // [kv_heads * head_dim, d_model]
    matrix wv;            // [kv_heads * head_dim, d_model]
    matrix wo;            // [d_model, q_heads * head_dim]
    row_vector ffn_norm;  // [d_model]
    matrix w_gate;        // [d_ff, d_model]
    matrix w_up;          // [d_ff, d_model]
    matrix w_down;        // [d_model, d_ff]
};

struct recall_model {
    model_config config;
    matrix embedding; // [vocabulary, d_model]
    std::vector<layer_weights> layers;
    row_vector final_norm; // [d_model]
    matrix head;           // [vocabulary, d_model]
};

// Throws std::runtime_error if the file is missing, broken or not such a model.
[[nodiscard]] recall_model load_model(const std::filesystem::path& safetensors_file);

// ---- The steps of a forward pass, shared by prefill and decode ----

// What the attention of one layer works on; queries and keys are rotated to their positions.
struct attention_inputs {
    head_tensor queries; // [q_heads, tokens, head_dim]
    head_tensor keys;    // [kv_heads, tokens, head_dim]
    head_tensor values;  // [kv_heads, tokens, head_dim]
};

// Rotations of consecutive positions: pair i turns by position * rope_base^(-2i / head_dim).
struct rope_table {
    matrix cosines; // [tokens, head_dim / 2]
    matrix sines;   // [tokens, head_dim / 2]
};

[[nodiscard]] rope_table make_rope_table(const model_config& config, index_t first_position, index_t tokens);

// Radians per position of each pair [head_dim / 2].
[[nodiscard]] std::vector<float> rope_frequencies(const model_config& config);

// Queries as they were before their rotation by `rope`.
[[nodiscard]] head_tensor before_rotation(const head_tensor& queries, const rope_table& rope);

// Returns the hidden state [tokens, d_model]; throws std::out_of_range for an unknown token.
[[nodiscard]] matrix embed(const recall_model& model, std::span<const token_id> tokens);

// Norm, projections and rotation; hidden [tokens, d_model].
[[nodiscard]] attention_inputs project(const model_config& config, const layer_weights& weights,
                                       const matrix& hidden, const rope_table& rope);

// Causal attention over the layer's own keys, heads side by side: [tokens, q_heads * head_dim].
[[nodiscard]] matrix causal_attention(const attention_inputs& inputs);

// Output projection and feed-forward block, both added to hidden [tokens, d_model].
void finish_layer(const model_config& config, const layer_weights& weights, const matrix& attended,
                  matrix& hidden);

// Returns [tokens, vocabulary].
[[nodiscard]] matrix output_logits(const recall_model& model, const matrix& hidden);

// ---- Prefill ----

enum class logit_rows { last, all };

// Receives a layer's attention inputs as soon as that layer's attention is done.
using after_attention = std::function<void(index_t layer, attention_inputs inputs)>;

// Attention of a layer over its own tokens, heads side by side: [tokens, q_heads * head_dim].
using attention_step = std::function<matrix(index_t layer, const attention_inputs& inputs)>;

// Runs tokens at positions 0 .. and returns logits [1 or tokens, vocabulary]. No layer is held
// longer than `consume` holds it. Throws std::invalid_argument if there are no tokens.
matrix prefill(const recall_model& model, std::span<const token_id> tokens, const after_attention& consume,
               logit_rows rows, const attention_step& attend);

// The same with causal_attention.
matrix prefill(const recall_model& model, std::span<const token_id> tokens, const after_attention& consume,
               logit_rows rows = logit_rows::last);

struct prefill_result {
    std::vector<attention_inputs> layers;
    matrix logits; // [1 or tokens, vocabulary]
};

// The same, with every layer's attention inputs kept.
[[nodiscard]] prefill_result prefill(const recall_model& model, std::span<const token_id> tokens,
                                     logit_rows rows = logit_rows::last);

} // namespace needle
