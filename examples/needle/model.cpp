// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "model.hpp"

#include "safetensors.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>

namespace needle {
namespace {

// Queries whose scores against all earlier keys are held at a time.
constexpr index_t tile_queries = 64;

// ---- Loading ----

index_t read_count(const safetensors& file, const std::string& name) {
    const double number = file.metadata_number(name);
    if (!(number >= 1 && number <= 1 << 20) || number != std::floor(number)) {
        file.fail("metadata " + name + " is not a count");
    }
    return static_cast<index_t>(number);
}

matrix read_matrix(const safetensors& file, const std::string& name, index_t rows, index_t cols) {
    const std::vector<float> values = file.tensor(name, {rows, cols});
    return const_matrix_map(values.data(), rows, cols);
}

row_vector read_vector(const safetensors& file, const std::string& name, index_t elements) {
    const std::vector<float> values = file.tensor(name, {elements});
    return Eigen::Map<const row_vector>(values.data(), elements);
}

// ---- Arithmetic ----

// Each row divided by its root mean square, times weight [d_model].
matrix rms_norm(const matrix& x, const row_vector& weight, float eps) {
    const Eigen::ArrayXf scale = (x.array().square().rowwise().mean() + eps).rsqrt();
    return (x.array().colwise() * scale).rowwise() * weight.array();
}

// Radians by which pair i turns from one position to the next.
double turn_per_position(const model_config& config, index_t pair) {
    const double exponent = -static_cast<double>(2 * pair) / static_cast<double>(config.head_dim);
    return std::pow(config.rope_base, exponent);
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
head_tensor project_heads(const matrix& x, const matrix& weights, index_t heads) {
    const index_t head_dim = weights.rows() / heads;
    head_tensor projected(heads, x.rows(), head_dim);
    for (index_t h = 0; h < heads; ++h) {
        projected.head(h).noalias() = x * weights.middleRows(h * head_dim, head_dim).transpose();
    }
    return projected;
}

} // namespace

recall_model load_model(const std::filesystem::path& safetensors_file) {
    const safetensors file(safetensors_file);
    recall_model model;
    model_config& config = model.config;
    config.vocabulary = read_count(file, "vocab_size");
    config.layers = read_count(file, "n_layers");
    config.d_model = read_count(file, "d_model");
    config.q_heads = read_count(file, "n_heads");
    config.kv_heads = read_count(file, "n_kv_heads");
    config.head_dim = read_count(file, "head_dim");
    config.d_ff = read_count(file, "d_ff");
    config.rope_base = file.metadata_number("rope_base");
    config.norm_eps = static_cast<float>(file.metadata_number("norm_eps"));
    if (config.q_heads % config.kv_heads != 0 || config.head_dim % 2 != 0) {
        file.fail("heads do not form groups, or head_dim is odd");
    }

    const index_t d_model = config.d_model;
    const index_t q_dim = config.q_heads * config.head_dim;
    const index_t kv_dim = config.kv_heads * config.head_dim;
    model.embedding = read_matrix(file, "embed", config.vocabulary, d_model);
    for (index_t layer = 0; layer < config.layers; ++layer) {
        const std::string prefix = "layers." + std::to_string(layer) + ".";
        model.layers.push_back({
            .attn_norm = read_vector(file, prefix + "attn_norm", d_model),
            .wq = read_matrix(file, prefix + "wq", q_dim, d_model),
            .wk = read_matrix(file, prefix + "wk", kv_dim, d_model),
            .wv = read_matrix(file, prefix + "wv", kv_dim, d_model),
            .wo = read_matrix(file, prefix + "wo", d_model, q_dim),
            .ffn_norm = read_vector(file, prefix + "ffn_norm", d_model),
            .w_gate = read_matrix(file, prefix + "w_gate", config.d_ff, d_model),
            .w_up = read_matrix(file, prefix + "w_up", config.d_ff, d_model),
            .w_down = read_matrix(file, prefix + "w_down", d_model, config.d_ff),
        });
    }
    model.final_norm = read_vector(file, "final_norm", d_model);
    model.head = read_matrix(file, "head", config.vocabulary, d_model);
    return model;
}

rope_table make_rope_table(const model_config& config, index_t first_position, index_t tokens) {
    const index_t pairs = config.head_dim / 2;
    rope_table rope{matrix(tokens, pairs), matrix(tokens, pairs)};
    for (index_t i = 0; i < pairs; ++i) {
        const double turn = turn_per_position(config, i);
        for (index_t t = 0; t < tokens; ++t) {
            const double angle = static_cast<double>(first_position + t) * turn;
            rope.cosines(t, i) = static_cast<float>(std::cos(angle));
            rope.sines(t, i) = static_cast<float>(std::sin(angle));
        }
    }
    return rope;
}

std::vector<float> rope_frequencies(const model_config& config) {
    std::vector<float> frequencies(static_cast<std::size_t>(config.head_dim / 2));
    for (std::size_t i = 0; i < frequencies.size(); ++i) {
        frequencies[i] = static_cast<float>(turn_per_position(config, static_cast<index_t>(i)));
    }
    return frequencies;
}

head_tensor before_rotation(const head_tensor& queries, const rope_table& rope) {
    const rope_table backwards{rope.cosines, -rope.sines};
    head_tensor turned = queries;
    for (index_t h = 0; h < turned.heads(); ++h) { rotate(turned.head(h), backwards); }
    return turned;
}

matrix embed(const recall_model& model, std::span<const token_id> tokens) {
    matrix hidden(static_cast<index_t>(tokens.size()), model.config.d_model);
    for (index_t t = 0; t < hidden.rows(); ++t) {
        const token_id token = tokens[static_cast<std::size_t>(t)];
        if (token < 0 || token >= model.config.vocabulary) {
            throw std::out_of_range("token " + std::to_string(token) + " is not in the vocabulary");
        }
        hidden.row(t) = model.embedding.row(token);
    }
    return hidden;
}

attention_inputs project(const model_config& config, const layer_weights& weights, const matrix& hidden,
                         const rope_table& rope) {
    const matrix normed = rms_norm(hidden, weights.attn_norm, config.norm_eps);
    attention_inputs inputs{.queries = project_heads(normed, weights.wq, config.q_heads),
                            .keys = project_heads(normed, weights.wk, config.kv_heads),
                            .values = project_heads(normed, weights.wv, config.kv_heads)};
    for (index_t h = 0; h < config.q_heads; ++h) { rotate(inputs.queries.head(h), rope); }
    for (index_t h = 0; h < config.kv_heads; ++h) { rotate(inputs.keys.head(h), rope); }
    return inputs;
}

matrix causal_attention(const attention_inputs& inputs) {
    const index_t q_heads = inputs.queries.heads();
    const index_t group_heads = q_heads / inputs.keys.heads();
    const index_t tokens = inputs.queries.tokens();
    const index_t head_dim = inputs.queries.head_dim();
    const float scale = 1.0F / std::sqrt(static_cast<float>(head_dim));

    matrix attended(tokens, q_heads * head_dim);
    matrix buffer(std::min(tile_queries, tokens), tokens);
    for (index_t h = 0; h < q_heads; ++h) {
        const auto queries = std::as_const(inputs.queries).head(h);
        const auto keys = inputs.keys.head(h / group_heads);
        const auto values = inputs.values.head(h / group_heads);
        for (index_t begin = 0; begin < tokens; begin += tile_queries) {
            const index_t end = std::min(begin + tile_queries, tokens);
            auto scores = buffer.topLeftCorner(end - begin, end);
            scores.noalias() = scale * queries.middleRows(begin, end - begin) * keys.topRows(end).transpose();
            for (index_t t = begin; t < end; ++t) { softmax_prefix(scores.row(t - begin), t + 1); }
            attended.block(begin, h * head_dim, end - begin, head_dim).noalias() =
                scores * values.topRows(end);
        }
    }
    return attended;
}

void finish_layer(const model_config& config, const layer_weights& weights, const matrix& attended,
                  matrix& hidden) {
    hidden.noalias() += attended * weights.wo.transpose();
    const matrix normed = rms_norm(hidden, weights.ffn_norm, config.norm_eps);
    const matrix gate = normed * weights.w_gate.transpose();
    matrix inner = normed * weights.w_up.transpose();
    inner.array() *= gate.array() / (1.0F + (-gate.array()).exp()); // up * silu(gate)
    hidden.noalias() += inner * weights.w_down.transpose();
}

matrix output_logits(const recall_model& model, const matrix& hidden) {
    return rms_norm(hidden, model.final_norm, model.config.norm_eps) * model.head.transpose();
}

matrix prefill(const recall_model& model, std::span<const token_id> tokens, const after_attention& consume,
               logit_rows rows, const attention_step& attend) {
    if (tokens.empty()) { throw std::invalid_argument("prefill needs a token"); }
    const model_config& config = model.config;
    matrix hidden = embed(model, tokens);
    const rope_table rope = make_rope_table(config, 0, hidden.rows());
    for (index_t layer = 0; layer < config.layers; ++layer) {
        const layer_weights& weights = model.layers[static_cast<std::size_t>(layer)];
        attention_inputs inputs = project(config, weights, hidden, rope);
        const matrix attended = attend(layer, inputs);
        consume(layer, std::move(inputs));
        finish_layer(config, weights, attended, hidden);
    }
    return output_logits(model, rows == logit_rows::all ? hidden : hidden.bottomRows(1));
}

matrix prefill(const recall_model& model, std::span<const token_id> tokens, const after_attention& consume,
               logit_rows rows) {
    return prefill(model, tokens, consume, rows,
                   [](index_t, const attention_inputs& inputs) { return causal_attention(inputs); });
}

prefill_result prefill(const recall_model& model, std::span<const token_id> tokens, logit_rows rows) {
    prefill_result result;
    result.logits = prefill(
        model, tokens, [&](index_t, attention_inputs inputs) { result.layers.push_back(std::move(inputs)); },
        rows);
    return result;
}

} // namespace needle
