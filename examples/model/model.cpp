// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "model.hpp"

#include "cache.hpp"
#include "threads.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>

namespace lm {
namespace {

// Each row divided by its root mean square, times weight [d_model].
matrix rms_norm(const matrix& x, const row_vector& weight, float eps) {
    const Eigen::ArrayXf scale = (x.array().square().rowwise().mean() + eps).rsqrt();
    return (x.array().colwise() * scale).rowwise() * weight.array();
}

// Element i of each row turns with element i + head_dim / 2.
void rotate(matrix_map x, const rope_table& rope) {
    const index_t pairs = x.cols() / 2;
    auto first = x.leftCols(pairs).array();
    auto second = x.rightCols(pairs).array();
    const matrix turned = first * rope.cosines.array() - second * rope.sines.array();
    second = second * rope.cosines.array() + first * rope.sines.array();
    x.leftCols(pairs) = turned;
}

// x W^T, head-major.
head_tensor project_heads(const matrix& x, const weight& weights, index_t heads) {
    const index_t head_dim = weights.rows() / heads;
    const matrix side_by_side = weights.multiply(x);
    head_tensor projected(heads, x.rows(), head_dim);
    for (index_t h = 0; h < heads; ++h) {
        projected.head(h) = side_by_side.middleCols(h * head_dim, head_dim);
    }
    return projected;
}

matrix embed(const llama_model& model, std::span<const token_id> tokens) {
    matrix hidden(std::ssize(tokens), model.config.d_model);
    for (index_t t = 0; t < hidden.rows(); ++t) {
        const token_id token = tokens[static_cast<std::size_t>(t)];
        if (token < 0 || token >= model.config.vocabulary) {
            throw std::out_of_range("token " + std::to_string(token) + " is not in the vocabulary");
        }
        model.embedding.decode_row(token, hidden.row(t).data());
    }
    return hidden;
}

// Norm, projections and rotation; hidden [tokens, d_model].
attention_inputs project(const model_config& config, const layer_weights& weights, const matrix& hidden,
                         const rope_table& rope) {
    const matrix normed = rms_norm(hidden, weights.attn_norm, config.norm_eps);
    attention_inputs inputs{.queries = project_heads(normed, weights.wq, config.q_heads),
                            .keys = project_heads(normed, weights.wk, config.kv_heads),
                            .values = project_heads(normed, weights.wv, config.kv_heads),
                            .stream = hidden.array().square().rowwise().mean().sqrt().transpose()};
    for (index_t h = 0; h < config.q_heads; ++h) { rotate(inputs.queries.head(h), rope); }
    for (index_t h = 0; h < config.kv_heads; ++h) { rotate(inputs.keys.head(h), rope); }
    return inputs;
}

// up * silu(gate), in place of up.
void swiglu(const matrix& gate, matrix& up) {
    constexpr index_t rows_at_a_time = 16;
    const auto threads = threads_for(16 * up.size()); // an exponential is so many
    threads((up.rows() + rows_at_a_time - 1) / rows_at_a_time, [&](index_t part) {
        const index_t first = part * rows_at_a_time;
        const index_t count = std::min(rows_at_a_time, up.rows() - first);
        const auto g = gate.middleRows(first, count).array();
        up.middleRows(first, count).array() *= g / (1.0F + (-g).exp());
    });
}

// Output projection and feed-forward block, both added to hidden [tokens, d_model].
void finish_layer(const model_config& config, const layer_weights& weights, const matrix& attended,
                  matrix& hidden) {
    hidden += weights.wo.multiply(attended);
    const matrix normed = rms_norm(hidden, weights.ffn_norm, config.norm_eps);
    matrix inner = weights.w_up.multiply(normed);
    swiglu(weights.w_gate.multiply(normed), inner);
    hidden += weights.w_down.multiply(inner);
}

} // namespace

std::vector<double> rope_frequencies(double base, index_t head_dim) {
    std::vector<double> frequencies;
    for (index_t i = 0; i < head_dim / 2; ++i) {
        frequencies.push_back(std::pow(base, -static_cast<double>(2 * i) / static_cast<double>(head_dim)));
    }
    return frequencies;
}

rope_table make_rope_table(const model_config& config, index_t first_position, index_t tokens) {
    const index_t pairs = config.head_dim / 2;
    rope_table rope{matrix(tokens, pairs), matrix(tokens, pairs)};
    for (index_t t = 0; t < tokens; ++t) {
        for (index_t i = 0; i < pairs; ++i) {
            const double angle =
                static_cast<double>(first_position + t) * config.frequencies[static_cast<std::size_t>(i)];
            rope.cosines(t, i) = static_cast<float>(std::cos(angle));
            rope.sines(t, i) = static_cast<float>(std::sin(angle));
        }
    }
    return rope;
}

head_tensor before_rotation(const head_tensor& queries, const rope_table& rope) {
    const rope_table backwards{rope.cosines, -rope.sines};
    head_tensor turned = queries;
    for (index_t h = 0; h < turned.heads(); ++h) { rotate(turned.head(h), backwards); }
    return turned;
}

matrix causal_attention(const attention_inputs& inputs) {
    return dense_attention(rows_of(inputs.queries), rows_of(inputs.keys), rows_of(inputs.values));
}

matrix forward(const llama_model& model, std::span<const token_id> tokens, index_t first_position,
               const attention_step& attend, logit_rows rows) {
    if (tokens.empty()) { throw std::invalid_argument("a forward pass needs a token"); }
    const model_config& config = model.config;
    matrix hidden = embed(model, tokens);
    const rope_table rope = make_rope_table(config, first_position, hidden.rows());
    for (index_t layer = 0; layer < config.layers; ++layer) {
        const layer_weights& weights = model.layers[static_cast<std::size_t>(layer)];
        finish_layer(config, weights, attend(layer, project(config, weights, hidden, rope)), hidden);
    }
    if (rows == logit_rows::none) { return matrix(0, config.vocabulary); }
    const index_t count = rows == logit_rows::all ? hidden.rows() : 1;
    return model.head.multiply(rms_norm(hidden.bottomRows(count), model.final_norm, config.norm_eps));
}

matrix prefill(const llama_model& model, std::span<const token_id> tokens, const after_attention& consume,
               logit_rows rows, const own_attention& attend) {
    const auto step = [&](index_t layer, attention_inputs inputs) {
        matrix attended = attend(layer, inputs);
        consume(layer, std::move(inputs));
        return attended;
    };
    return forward(model, tokens, 0, step, rows);
}

matrix prefill(const llama_model& model, std::span<const token_id> tokens, const after_attention& consume,
               logit_rows rows) {
    return prefill(model, tokens, consume, rows,
                   [](index_t, const attention_inputs& inputs) { return causal_attention(inputs); });
}

prefill_result prefill(const llama_model& model, std::span<const token_id> tokens, logit_rows rows) {
    prefill_result result;
    result.logits = prefill(
        model, tokens, [&](index_t, attention_inputs inputs) { result.layers.push_back(std::move(inputs)); },
        rows);
    return result;
}

} // namespace lm
