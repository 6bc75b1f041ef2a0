// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A LLaMA-style transformer and its forward pass, of which attention is a parameter.
//
// Pre-norm RMSNorm, rotary embedding (half split), grouped-query attention, SwiGLU, no biases. Weights are [out, in],
// activations [tokens, features]: y = x W^T. Query head h reads KV head h / (q_heads / kv_heads).

#include "tensor.hpp"
#include "weight.hpp"

#include <functional>
#include <span>
#include <vector>

namespace lm {

struct model_config {
    index_t vocabulary = 0;
    index_t layers = 0;
    index_t d_model = 0;
    index_t q_heads = 0;
    index_t kv_heads = 0;
    index_t head_dim = 0;
    index_t d_ff = 0;
    index_t context = 0; // tokens the model was made for; 0 where the file does not say
    std::vector<double>
        frequencies; // [head_dim / 2] radians by which a pair turns from one position to the next
    float norm_eps = 0;

    [[nodiscard]] index_t group_heads() const { return q_heads / kv_heads; }
};

struct layer_weights {
    row_vector attn_norm; // [d_model]
    weight wq;            // [q_heads * head_dim, d_model]
    weight wk;            // [kv_heads * head_dim, d_model]
    weight wv;            // [kv_heads * head_dim, d_model]
    weight wo;            // [d_model, q_heads * head_dim]
    row_vector ffn_norm;  // [d_model]
    weight w_gate;        // [d_ff, d_model]
    weight w_up;          // [d_ff, d_model]
    weight w_down;        // [d_model, d_ff]
};

struct llama_model {
    model_config config;
    weight embedding; // [vocabulary, d_model]
    std::vector<layer_weights> layers;
    row_vector final_norm; // [d_model]
    weight head;           // [vocabulary, d_model]; the embedding itself where they are tied
};

// Of pair i of head_dim / 2: base^(-2i / head_dim).
[[nodiscard]] std::vector<double> rope_frequencies(double base, index_t head_dim);

// ---- The steps of a forward pass ----

// What the attention of one layer works on; queries and keys are rotated to their positions.
struct attention_inputs {
    head_tensor queries; // [q_heads, tokens, head_dim]
    head_tensor keys;    // [kv_heads, tokens, head_dim]
    head_tensor values;  // [kv_heads, tokens, head_dim]
    row_vector stream;   // [tokens] root mean square of the residual stream that attention adds to
};

// Rotations of consecutive positions.
struct rope_table {
    matrix cosines; // [tokens, head_dim / 2]
    matrix sines;   // [tokens, head_dim / 2]
};

[[nodiscard]] rope_table make_rope_table(const model_config& config, index_t first_position, index_t tokens);

// Queries as they were before their rotation by `rope`.
[[nodiscard]] head_tensor before_rotation(const head_tensor& queries, const rope_table& rope);

// Causal attention over the layer's own keys, heads side by side: [tokens, q_heads * head_dim].
[[nodiscard]] matrix causal_attention(const attention_inputs& inputs);

enum class logit_rows { none, last, all };

// Attention of a layer's new tokens, heads side by side: [tokens, q_heads * head_dim].
using attention_step = std::function<matrix(index_t layer, attention_inputs inputs)>;

// Runs tokens at consecutive positions and returns logits [0, 1 or tokens, vocabulary]. Throws std::invalid_argument if there
// are no tokens, std::out_of_range for an unknown one.
matrix forward(const llama_model& model, std::span<const token_id> tokens, index_t first_position,
               const attention_step& attend, logit_rows rows);

// ---- Prefill in one piece, each layer's inputs handed on ----

// Receives a layer's attention inputs as soon as that layer's attention is done.
using after_attention = std::function<void(index_t layer, attention_inputs inputs)>;

// Attention of a layer over its own tokens.
using own_attention = std::function<matrix(index_t layer, const attention_inputs& inputs)>;

// Runs tokens at positions 0 .. . No layer is held longer than `consume` holds it.
matrix prefill(const llama_model& model, std::span<const token_id> tokens, const after_attention& consume,
               logit_rows rows, const own_attention& attend);

// The same with causal_attention.
matrix prefill(const llama_model& model, std::span<const token_id> tokens, const after_attention& consume,
               logit_rows rows = logit_rows::last);

struct prefill_result {
    std::vector<attention_inputs> layers;
    matrix logits; // [1 or tokens, vocabulary]
};

// The same, with every layer's attention inputs kept.
[[nodiscard]] prefill_result prefill(const llama_model& model, std::span<const token_id> tokens,
                                     logit_rows rows = logit_rows::last);

} // namespace lm
