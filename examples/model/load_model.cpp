// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "load_model.hpp"

#include "safetensors.hpp"

#include <cmath>
#include <string>
#include <utility>

namespace lm {
namespace {

// ---- GGUF ----

constexpr index_t most_layers = 1 << 12;
constexpr index_t most_features = 1 << 20;

row_vector read_vector(const gguf& file, const std::string& name, index_t elements) {
    const weight w = file.tensor(name, 1, elements);
    row_vector v(elements);
    w.decode_row(0, v.data());
    return v;
}

// Where each row of W_Q or W_K is in the file.
std::vector<index_t> half_split_rows(index_t heads, index_t head_dim) {
    std::vector<index_t> order;
    for (index_t h = 0; h < heads; ++h) {
        for (index_t half = 0; half < 2; ++half) {
            for (index_t i = 0; i < head_dim / 2; ++i) { order.push_back(h * head_dim + 2 * i + half); }
        }
    }
    return order;
}

model_config read_config(const gguf& file) {
    if (file.text("general.architecture") != "llama") {
        file.fail("is of the architecture " + std::string(file.text("general.architecture")) + ", not llama");
    }
    const auto count = [&](const char* key, index_t most, std::optional<std::int64_t> otherwise = {}) {
        return static_cast<index_t>(file.integer(std::string("llama.") + key, 1, most, otherwise));
    };
    model_config c;
    c.layers = count("block_count", most_layers);
    c.d_model = count("embedding_length", most_features);
    c.q_heads = count("attention.head_count", most_features);
    c.kv_heads = count("attention.head_count_kv", c.q_heads, c.q_heads);
    c.d_ff = count("feed_forward_length", most_features);
    c.context = count("context_length", index_t{1} << 31, 4096);
    if (c.q_heads % c.kv_heads != 0) { file.fail("has query heads that form no groups"); }
    if (!file.has("llama.attention.key_length") && c.d_model % c.q_heads != 0) {
        file.fail("has heads that do not divide the hidden state");
    }
    c.head_dim = count("attention.key_length", most_features, c.d_model / c.q_heads);
    if (count("attention.value_length", most_features, c.head_dim) != c.head_dim) {
        file.fail("has values of another length than keys, which this engine does not compute");
    }
    if (count("rope.dimension_count", most_features, c.head_dim) != c.head_dim || c.head_dim % 2 != 0) {
        file.fail("rotates a part of its heads only, which this engine does not compute");
    }
    if (file.text("llama.rope.scaling.type", "none") != "none" ||
        file.integer("llama.expert_count", 0, most_features, 0) != 0 ||
        file.has_tensor("blk.0.attn_q.bias")) {
        file.fail("has scaled rotations, experts or biases, which this engine does not compute");
    }
    c.norm_eps = static_cast<float>(file.number("llama.attention.layer_norm_rms_epsilon"));
    const double base = file.number("llama.rope.freq_base", 10000.0);
    if (!(base > 0) || !(c.norm_eps >= 0)) { file.fail("has a rotation or a norm of a negative number"); }
    c.frequencies = rope_frequencies(base, c.head_dim);
    if (file.has_tensor("rope_freqs.weight")) { // Llama 3: pairs that turn more slowly
        const row_vector factors = read_vector(file, "rope_freqs.weight", c.head_dim / 2);
        for (index_t i = 0; i < c.head_dim / 2; ++i) {
            const auto factor = static_cast<double>(factors(i));
            if (!(factor > 0) || !std::isfinite(factor)) {
                file.fail("has rope_freqs.weight of a number that is not above 0 or not finite");
            }
            c.frequencies[static_cast<std::size_t>(i)] /= factor;
        }
    }
    c.vocabulary = file.matrix_shape("token_embd.weight").first;
    if (c.vocabulary < 1) { file.fail("has no vocabulary"); }
    return c;
}

// ---- safetensors ----

index_t read_count(const safetensors& file, const std::string& name) {
    const double number = file.metadata_number(name);
    if (!(number >= 1 && number <= 1 << 20) || number != std::floor(number)) {
        file.fail("metadata " + name + " is not a count");
    }
    return static_cast<index_t>(number);
}

weight read_matrix(const safetensors& file, const std::string& name, index_t rows, index_t columns) {
    return {rows, columns, file.tensor(name, {rows, columns})};
}

row_vector read_vector(const safetensors& file, const std::string& name, index_t elements) {
    const std::vector<float> values = file.tensor(name, {elements});
    return Eigen::Map<const row_vector>(values.data(), elements);
}

} // namespace

llama_model load_model(const gguf& file) {
    llama_model model;
    const model_config& c = model.config = read_config(file);
    const index_t q_dim = c.q_heads * c.head_dim, kv_dim = c.kv_heads * c.head_dim;
    model.embedding = file.tensor("token_embd.weight", c.vocabulary, c.d_model);
    for (index_t layer = 0; layer < c.layers; ++layer) {
        const std::string prefix = "blk." + std::to_string(layer) + ".";
        const auto matrix_of = [&](const char* name, index_t rows, index_t columns) {
            return file.tensor(prefix + name + ".weight", rows, columns);
        };
        model.layers.push_back({
            .attn_norm = read_vector(file, prefix + "attn_norm.weight", c.d_model),
            .wq = matrix_of("attn_q", q_dim, c.d_model).with_rows(half_split_rows(c.q_heads, c.head_dim)),
            .wk = matrix_of("attn_k", kv_dim, c.d_model).with_rows(half_split_rows(c.kv_heads, c.head_dim)),
            .wv = matrix_of("attn_v", kv_dim, c.d_model),
            .wo = matrix_of("attn_output", c.d_model, q_dim),
            .ffn_norm = read_vector(file, prefix + "ffn_norm.weight", c.d_model),
            .w_gate = matrix_of("ffn_gate", c.d_ff, c.d_model),
            .w_up = matrix_of("ffn_up", c.d_ff, c.d_model),
            .w_down = matrix_of("ffn_down", c.d_model, c.d_ff),
        });
    }
    model.final_norm = read_vector(file, "output_norm.weight", c.d_model);
    model.head = file.has_tensor("output.weight") ? file.tensor("output.weight", c.vocabulary, c.d_model)
                                                  : model.embedding;
    return model;
}

llama_model load_safetensors(const std::filesystem::path& path) {
    const safetensors file(path);
    llama_model model;
    model_config& c = model.config;
    c.vocabulary = read_count(file, "vocab_size");
    c.layers = read_count(file, "n_layers");
    c.d_model = read_count(file, "d_model");
    c.q_heads = read_count(file, "n_heads");
    c.kv_heads = read_count(file, "n_kv_heads");
    c.head_dim = read_count(file, "head_dim");
    c.d_ff = read_count(file, "d_ff");
    c.frequencies = rope_frequencies(file.metadata_number("rope_base"), c.head_dim);
    c.norm_eps = static_cast<float>(file.metadata_number("norm_eps"));
    if (c.q_heads % c.kv_heads != 0 || c.head_dim % 2 != 0) {
        file.fail("heads do not form groups, or head_dim is odd");
    }

    const index_t q_dim = c.q_heads * c.head_dim, kv_dim = c.kv_heads * c.head_dim;
    model.embedding = read_matrix(file, "embed", c.vocabulary, c.d_model);
    for (index_t layer = 0; layer < c.layers; ++layer) {
        const std::string prefix = "layers." + std::to_string(layer) + ".";
        model.layers.push_back({
            .attn_norm = read_vector(file, prefix + "attn_norm", c.d_model),
            .wq = read_matrix(file, prefix + "wq", q_dim, c.d_model),
            .wk = read_matrix(file, prefix + "wk", kv_dim, c.d_model),
            .wv = read_matrix(file, prefix + "wv", kv_dim, c.d_model),
            .wo = read_matrix(file, prefix + "wo", c.d_model, q_dim),
            .ffn_norm = read_vector(file, prefix + "ffn_norm", c.d_model),
            .w_gate = read_matrix(file, prefix + "w_gate", c.d_ff, c.d_model),
            .w_up = read_matrix(file, prefix + "w_up", c.d_ff, c.d_model),
            .w_down = read_matrix(file, prefix + "w_down", c.d_model, c.d_ff),
        });
    }
    model.final_norm = read_vector(file, "final_norm", c.d_model);
    model.head = read_matrix(file, "head", c.vocabulary, c.d_model);
    return model;
}

} // namespace lm
