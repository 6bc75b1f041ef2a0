// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "small_models.hpp"

#include "../model/safetensors.hpp"

#include <ggml.h>
#include <gguf.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

namespace llama_example {
namespace {

class gguf_writer {
  public:
    gguf_writer(std::string architecture, std::size_t most_tensors)
        : architecture_(std::move(architecture)), file_(gguf_init_empty(), gguf_free),
          tensors_(ggml_init({most_tensors * ggml_tensor_overhead(), nullptr, true}), ggml_free) {
        gguf_set_val_str(file_.get(), "general.architecture", architecture_.c_str());
    }

    void number(const char* key, int x) {
        gguf_set_val_u32(file_.get(), own(key).c_str(), static_cast<std::uint32_t>(x));
    }
    void number(const char* key, float x) { gguf_set_val_f32(file_.get(), own(key).c_str(), x); }
    void flags(const char* key, const std::vector<std::uint8_t>& x) {
        gguf_set_arr_data(file_.get(), own(key).c_str(), GGUF_TYPE_BOOL, x.data(), x.size());
    }
    gguf_context* file() { return file_.get(); }

    // F32, ne[0] the innermost.
    void tensor(const std::string& name, std::vector<float> values, std::int64_t ne0, std::int64_t ne1 = 1,
                std::int64_t ne2 = 1) {
        const std::int64_t ne[] = {ne0, ne1, ne2};
        ggml_tensor* t = ggml_new_tensor(tensors_.get(), GGML_TYPE_F32, ne2 > 1 ? 3 : ne1 > 1 ? 2 : 1, ne);
        ggml_set_name(t, name.c_str());
        t->data = data_.emplace_back(std::make_unique<std::vector<float>>(std::move(values)))->data();
        gguf_add_tensor(file_.get(), t);
    }

    void write(const std::string& to) {
        if (!gguf_write_to_file(file_.get(), to.c_str(), false)) {
            throw std::runtime_error(to + ": cannot be written");
        }
    }

  private:
    [[nodiscard]] std::string own(const char* key) const { return architecture_ + "." + key; }

    std::string architecture_;
    std::unique_ptr<gguf_context, void (*)(gguf_context*)> file_;
    std::unique_ptr<ggml_context, void (*)(ggml_context*)> tensors_;
    std::vector<std::unique_ptr<std::vector<float>>> data_;
};

// llama.cpp turns neighbours of a head (0, 1), (2, 3), ...; the demo's model turns (0, 16), (1, 17), ...
std::vector<float> neighbours_turn(const std::vector<float>& weight, std::size_t head_dim,
                                   std::size_t inputs) {
    std::vector<float> made(weight.size());
    for (std::size_t row = 0; row < weight.size() / inputs; ++row) {
        const std::size_t in_head = row % head_dim, half = head_dim / 2;
        const std::size_t to = row - in_head + (in_head < half ? 2 * in_head : 2 * (in_head - half) + 1);
        std::memcpy(&made[to * inputs], &weight[row * inputs], inputs * sizeof(float));
    }
    return made;
}

std::string recall_word(int token) {
    static const char* const first[] = {"[PAD]",  "[BOS]",   "[KEY]",  "[REF]", "[ASK]",
                                        "[FREQ]", "[FIRST]", "[LAST]", "[SAY]"};
    const auto numbered = [&](char letter, int begin) {
        const int i = token - begin;
        return std::string{letter, static_cast<char>('0' + i / 10), static_cast<char>('0' + i % 10)};
    };
    return token < 9     ? first[token]
           : token < 16  ? numbered('u', 9)
           : token < 48  ? numbered('a', 16)
           : token < 80  ? numbered('b', 48)
           : token < 112 ? numbered('v', 80)
           : token < 128 ? numbered('w', 112)
                         : numbered('f', 128);
}

} // namespace

void write_recall_model(const std::string& safetensors, const std::string& gguf) {
    const lm::safetensors from(safetensors);
    constexpr int layers = 4, d = 128, q_heads = 8, kv_heads = 4, head_dim = 32, hidden = 256, tokens = 192;
    gguf_writer to("llama", 64);
    to.number("context_length", 16384);
    to.number("block_count", layers);
    to.number("embedding_length", d);
    to.number("feed_forward_length", hidden);
    to.number("attention.head_count", q_heads);
    to.number("attention.head_count_kv", kv_heads);
    to.number("attention.key_length", head_dim);
    to.number("attention.value_length", head_dim);
    to.number("rope.dimension_count", head_dim);
    to.number("rope.freq_base", 1e6f);
    to.number("attention.layer_norm_rms_epsilon", 1e-5f);
    to.number("vocab_size", tokens);

    // All words are matched as they stand, and what is between them is dropped: a byte-pair encoding without pairs.
    std::vector<std::string> words;
    std::vector<const char*> pieces;
    for (int t = 0; t < tokens; ++t) { words.push_back(recall_word(t)); }
    for (const std::string& w : words) { pieces.push_back(w.c_str()); }
    std::vector<std::int32_t> kinds(tokens, 4); // user-defined
    kinds[0] = kinds[1] = 3;                    // control
    gguf_set_val_str(to.file(), "tokenizer.ggml.model", "gpt2");
    gguf_set_val_str(to.file(), "tokenizer.ggml.pre", "gpt-2");
    gguf_set_arr_str(to.file(), "tokenizer.ggml.tokens", pieces.data(), pieces.size());
    gguf_set_arr_data(to.file(), "tokenizer.ggml.token_type", GGUF_TYPE_INT32, kinds.data(), kinds.size());
    gguf_set_arr_str(to.file(), "tokenizer.ggml.merges", pieces.data(), 0);
    gguf_set_val_u32(to.file(), "tokenizer.ggml.bos_token_id", 1);
    gguf_set_val_u32(to.file(), "tokenizer.ggml.eos_token_id", 0);
    gguf_set_val_bool(to.file(), "tokenizer.ggml.add_bos_token", true);

    const auto matrix = [&](const std::string& name, const std::string& as, int rows, int columns) {
        to.tensor(as, from.tensor(name, {rows, columns}), columns, rows);
    };
    matrix("embed", "token_embd.weight", tokens, d);
    matrix("head", "output.weight", tokens, d);
    to.tensor("output_norm.weight", from.tensor("final_norm", {d}), d);
    for (int l = 0; l < layers; ++l) {
        const std::string in = "layers." + std::to_string(l) + ".", as = "blk." + std::to_string(l) + ".";
        to.tensor(as + "attn_norm.weight", from.tensor(in + "attn_norm", {d}), d);
        to.tensor(as + "ffn_norm.weight", from.tensor(in + "ffn_norm", {d}), d);
        to.tensor(as + "attn_q.weight",
                  neighbours_turn(from.tensor(in + "wq", {q_heads * head_dim, d}), head_dim, d), d,
                  q_heads * head_dim);
        to.tensor(as + "attn_k.weight",
                  neighbours_turn(from.tensor(in + "wk", {kv_heads * head_dim, d}), head_dim, d), d,
                  kv_heads * head_dim);
        matrix(in + "wv", as + "attn_v.weight", kv_heads * head_dim, d);
        matrix(in + "wo", as + "attn_output.weight", d, q_heads * head_dim);
        matrix(in + "w_gate", as + "ffn_gate.weight", hidden, d);
        matrix(in + "w_up", as + "ffn_up.weight", hidden, d);
        matrix(in + "w_down", as + "ffn_down.weight", d, hidden);
    }
    to.write(gguf);
}

void write_latent_model(const std::string& gguf) {
    constexpr int layers = 2, d = 64, heads = 2, hidden = 64, tokens = 128, q_rank = 32, kv_rank = 64,
                  turned = 32, unturned = 32, value = 32;
    gguf_writer to("deepseek2", 64);
    to.number("context_length", 4096);
    to.number("block_count", layers);
    to.number("embedding_length", d);
    to.number("feed_forward_length", hidden);
    to.number("attention.head_count", heads);
    to.number("attention.head_count_kv", 1);
    to.number("attention.key_length", kv_rank + turned);
    to.number("attention.value_length", kv_rank);
    to.number("attention.key_length_mla", unturned + turned);
    to.number("attention.value_length_mla", value);
    to.number("attention.q_lora_rank", q_rank);
    to.number("attention.kv_lora_rank", kv_rank);
    to.number("attention.layer_norm_rms_epsilon", 1e-6f);
    to.number("rope.dimension_count", turned);
    to.number("leading_dense_block_count", layers);
    to.number("expert_feed_forward_length", hidden);
    to.number("expert_shared_count", 1);
    to.number("vocab_size", tokens);
    gguf_set_val_str(to.file(), "tokenizer.ggml.model", "none");
    std::mt19937 random(30);
    const auto matrix = [&](const std::string& name, int inputs, int outputs, int count = 1) {
        std::normal_distribution<float> normal(0, 1 / std::sqrt(static_cast<float>(inputs)));
        std::vector<float> values(static_cast<std::size_t>(inputs * outputs * count));
        for (float& x : values) { x = normal(random); }
        to.tensor(name, std::move(values), inputs, outputs, count);
    };
    const auto norm = [&](const std::string& name, int n) {
        to.tensor(name, std::vector<float>(static_cast<std::size_t>(n), 1), n);
    };
    matrix("token_embd.weight", d, tokens);
    norm("output_norm.weight", d);
    for (int l = 0; l < layers; ++l) {
        const std::string as = "blk." + std::to_string(l) + ".";
        norm(as + "attn_norm.weight", d);
        norm(as + "attn_q_a_norm.weight", q_rank);
        norm(as + "attn_kv_a_norm.weight", kv_rank);
        matrix(as + "attn_q_a.weight", d, q_rank);
        matrix(as + "attn_q_b.weight", q_rank, heads * (unturned + turned));
        matrix(as + "attn_kv_a_mqa.weight", d, kv_rank + turned);
        matrix(as + "attn_k_b.weight", unturned, kv_rank, heads);
        matrix(as + "attn_v_b.weight", kv_rank, value, heads);
        matrix(as + "attn_output.weight", heads * value, d);
        norm(as + "ffn_norm.weight", d);
        matrix(as + "ffn_gate.weight", d, hidden);
        matrix(as + "ffn_up.weight", d, hidden);
        matrix(as + "ffn_down.weight", hidden, d);
    }
    to.write(gguf);
}

void write_window_model(const window_model& shape, const std::string& gguf) {
    constexpr int d = 128, q_heads = 4, kv_heads = 2, hidden = 128, tokens = 128;
    const int q_dim = q_heads * shape.head_dim, kv_dim = kv_heads * shape.head_dim;
    gguf_writer to("gemma3", static_cast<std::size_t>(shape.layers) * 16 + 4);
    to.number("context_length", 16384);
    to.number("block_count", shape.layers);
    to.number("embedding_length", d);
    to.number("feed_forward_length", hidden);
    to.number("attention.head_count", q_heads);
    to.number("attention.head_count_kv", kv_heads);
    to.number("attention.key_length", shape.head_dim);
    to.number("attention.value_length", shape.head_dim);
    to.number("attention.layer_norm_rms_epsilon", 1e-6f);
    to.number("rope.freq_base", 1e4f);
    to.number("vocab_size", tokens);
    to.number("attention.sliding_window", shape.sliding_window);
    std::vector<std::uint8_t> has_window;
    for (int l = 0; l < shape.layers; ++l) { has_window.push_back(l % 2 == 0); }
    to.flags("attention.sliding_window_pattern", has_window);
    gguf_set_val_str(to.file(), "tokenizer.ggml.model", "none");

    std::mt19937 random(20);
    const auto matrix = [&](const std::string& name, int inputs, int outputs, float gain) {
        std::normal_distribution<float> normal(0, gain / std::sqrt(static_cast<float>(inputs)));
        std::vector<float> values(static_cast<std::size_t>(inputs) * static_cast<std::size_t>(outputs));
        for (float& x : values) { x = normal(random); }
        to.tensor(name, std::move(values), inputs, outputs);
    };
    const auto norm = [&](const std::string& name, int n, float gain) {
        to.tensor(name, std::vector<float>(static_cast<std::size_t>(n), gain), n);
    };
    matrix("token_embd.weight", d, tokens, 1);
    norm("output_norm.weight", d, 2);
    for (int l = 0; l < shape.layers; ++l) {
        const std::string as = "blk." + std::to_string(l) + ".";
        const float heard = l < shape.silent_below ? 0 : 2;
        norm(as + "attn_norm.weight", d, 1);
        norm(as + "ffn_norm.weight", d, 1);
        norm(as + "post_attention_norm.weight", d, heard);
        norm(as + "post_ffw_norm.weight", d, heard / 2);
        norm(as + "attn_q_norm.weight", shape.head_dim, 2);
        norm(as + "attn_k_norm.weight", shape.head_dim, 1);
        matrix(as + "attn_q.weight", d, q_dim, 1);
        matrix(as + "attn_k.weight", d, kv_dim, 1);
        matrix(as + "attn_v.weight", d, kv_dim, 1);
        matrix(as + "attn_output.weight", q_dim, d, 1);
        matrix(as + "ffn_gate.weight", d, hidden, 1);
        matrix(as + "ffn_up.weight", d, hidden, 1);
        matrix(as + "ffn_down.weight", hidden, d, 1);
    }
    to.write(gguf);
}

} // namespace llama_example
