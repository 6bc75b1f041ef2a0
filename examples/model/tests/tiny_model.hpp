// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A GGUF file of random weights, two layers, made in memory, and its forward pass as naive loops in double.

#include "gguf.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tiny {

using lm::index_t;
using lm::token_id;

// ---- Writing ----

class bytes_out {
  public:
    template <class T>
    bytes_out& number(T value) {
        data.append(reinterpret_cast<const char*>(&value), sizeof(T));
        return *this;
    }
    bytes_out& text(std::string_view value) {
        number<std::uint64_t>(value.size());
        data += value;
        return *this;
    }
    std::string data;
};

enum value_type : std::uint32_t { u32 = 4, i32 = 5, f32 = 6, string = 8, array = 9, u64 = 10 };

// A half float (1 + fraction / 16) * 2^exponent.
struct small_half {
    int exponent, fraction;
    bool negative;
    [[nodiscard]] std::uint16_t bits() const {
        return static_cast<std::uint16_t>((negative ? 0x8000 : 0) | (exponent + 15) << 10 | fraction << 6);
    }
    [[nodiscard]] double value() const {
        return (negative ? -1 : 1) * std::ldexp(1.0 + fraction / 16.0, exponent);
    }
};

// A tensor [rows, columns] in ggml's type 0 (F32), 1 (F16), 2 (Q4_0), 3 (Q4_1) or 8 (Q8_0): its bytes and what they mean.
struct tensor {
    std::uint32_t type = 0;
    index_t rows = 0, columns = 0;
    std::string data = {};
    std::vector<double> values = {};
};

inline tensor random_tensor(std::uint32_t type, index_t rows, index_t columns, std::mt19937& random) {
    tensor t{.type = type, .rows = rows, .columns = columns};
    t.values.resize(static_cast<std::size_t>(rows * columns));
    bytes_out out;
    const auto number = [&](int least, int most) {
        return least + static_cast<int>(random() % static_cast<unsigned>(most - least + 1));
    };
    const auto half = [&](int exponent) { return small_half{exponent, number(0, 15), number(0, 1) == 1}; };
    for (std::size_t i = 0; i < t.values.size();) {
        double* const v = &t.values[i];
        if (type == 0) {
            const auto x = static_cast<float>(number(-1000, 1000)) / 4000.0F;
            out.number(x);
            v[0] = static_cast<double>(x);
            ++i;
            continue;
        }
        const small_half scale = half(type == 8 ? -9 : type == 1 ? number(-6, -3) : -6);
        out.number(scale.bits());
        if (type == 1) {
            v[0] = scale.value();
            ++i;
            continue;
        }
        const small_half least = half(-4);
        if (type == 3) { out.number(least.bits()); }
        for (int b = 0; b < (type == 8 ? 32 : 16); ++b) {
            const int code = number(0, 255);
            out.number(static_cast<std::uint8_t>(code));
            if (type == 8) {
                v[b] = scale.value() * (code < 128 ? code : code - 256);
            } else {
                const double base = type == 3 ? least.value() : -8 * scale.value();
                v[b] = scale.value() * (code & 15) + base;
                v[b + 16] = scale.value() * (code >> 4) + base;
            }
        }
        i += 32;
    }
    t.data = std::move(out.data);
    return t;
}

// A file by its parts, so that a test can spoil one of them.
struct gguf_parts {
    std::uint32_t magic = 0x46554747U, version = 3;
    std::vector<std::pair<std::string, std::string>> values = {}; // name; type and value as bytes
    std::vector<std::pair<std::string, tensor>> tensors = {};

    template <class T>
    void set(const std::string& key, value_type type, T value) {
        put(key, bytes_out{}.number<std::uint32_t>(type).number(value).data);
    }
    void set(const std::string& key, std::string_view value) {
        put(key, bytes_out{}.number<std::uint32_t>(string).text(value).data);
    }
    void put(const std::string& key, std::string bytes) {
        remove(key);
        values.emplace_back(key, std::move(bytes));
    }
    void remove(const std::string& key) {
        std::erase_if(values, [&](const auto& v) { return v.first == key; });
    }
    [[nodiscard]] tensor& at(const std::string& name) {
        for (auto& [key, t] : tensors) {
            if (key == name) { return t; }
        }
        throw std::logic_error(name);
    }

    // edit(offsets) may change where tensors are said to lie.
    [[nodiscard]] std::string bytes(const std::function<void(std::vector<std::uint64_t>&)>& edit = {}) const {
        constexpr std::size_t alignment = 32;
        bytes_out out;
        out.number(magic).number(version).number<std::uint64_t>(tensors.size());
        out.number<std::uint64_t>(values.size());
        for (const auto& [key, value] : values) {
            out.text(key);
            out.data += value;
        }
        std::vector<std::uint64_t> offsets;
        std::string data;
        for (const auto& [key, t] : tensors) {
            data.resize((data.size() + alignment - 1) / alignment * alignment);
            offsets.push_back(data.size());
            data += t.data;
        }
        if (edit) { edit(offsets); }
        for (std::size_t i = 0; i < tensors.size(); ++i) {
            const tensor& t = tensors[i].second;
            out.text(tensors[i].first).number<std::uint32_t>(t.rows == 1 ? 1 : 2);
            out.number(static_cast<std::uint64_t>(t.columns));
            if (t.rows != 1) { out.number(static_cast<std::uint64_t>(t.rows)); }
            out.number(t.type).number(offsets[i]);
        }
        out.data.resize((out.data.size() + alignment - 1) / alignment * alignment);
        return out.data + data;
    }
};

// In memory that is aligned as a mapped file is, and no longer than the file, so that a sanitizer sees what is read behind it.
inline lm::gguf read(const std::string& bytes) {
    constexpr std::align_val_t alignment{64};
    const std::shared_ptr<std::byte> own(
        static_cast<std::byte*>(operator new(std::max<std::size_t>(1, bytes.size()), alignment)),
        [](std::byte* p) { operator delete(p, alignment); });
    std::memcpy(own.get(), bytes.data(), bytes.size());
    return {"tiny.gguf", std::span(own.get(), bytes.size()), own};
}

// ---- The model ----

struct sizes {
    index_t layers = 2, d_model = 64, q_heads = 4, kv_heads = 2, head_dim = 32, d_ff = 96;
    double rope_base = 10000;
    std::vector<float> slower = {}; // [head_dim / 2] what divides a pair's turn, where there is such a table
    std::string head = "token_embd";
};

// The character of a byte in a vocabulary of byte-level pairs.
inline std::string spelled(std::uint8_t byte) {
    std::uint32_t next = 256, code = 0;
    for (std::uint32_t b = 0; b <= byte; ++b) {
        const bool prints = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
        code = prints ? b : next++;
    }
    if (code < 0x80) { return {static_cast<char>(code)}; }
    return {static_cast<char>(0xC0U | code >> 6), static_cast<char>(0x80U | (code & 0x3FU))};
}

// Tokens 0 to 2 are control tokens, then come the bytes, then what these merges make.
inline const std::vector<std::string> merges{"h e", "l l", "he ll", "hell o", "Ġ hello", "Ġ w", "o r", "1 2"};
inline constexpr token_id first_byte = 3, first_merged = 3 + 256;

inline void put_texts(gguf_parts& parts, const std::string& key, const std::vector<std::string>& list) {
    bytes_out out;
    out.number<std::uint32_t>(array).number<std::uint32_t>(string).number<std::uint64_t>(list.size());
    for (const std::string& t : list) { out.text(t); }
    parts.put(key, out.data);
}

inline gguf_parts make_parts(const sizes& s = {}, unsigned seed = 1) {
    gguf_parts parts;
    parts.set("general.architecture", "llama");
    const auto count = [&](const char* key, index_t value) {
        parts.set(std::string("llama.") + key, u32, static_cast<std::uint32_t>(value));
    };
    count("block_count", s.layers);
    count("embedding_length", s.d_model);
    count("attention.head_count", s.q_heads);
    count("attention.head_count_kv", s.kv_heads);
    count("attention.key_length", s.head_dim);
    count("attention.value_length", s.head_dim);
    count("feed_forward_length", s.d_ff);
    count("context_length", 4096);
    parts.set("llama.rope.freq_base", f32, static_cast<float>(s.rope_base));
    parts.set("llama.attention.layer_norm_rms_epsilon", f32, 1e-5F);
    parts.set("tokenizer.ggml.model", "gpt2");
    parts.set("tokenizer.ggml.pre", "smollm");
    std::vector<std::string> tokens{"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
    for (unsigned b = 0; b < 256; ++b) { tokens.push_back(spelled(static_cast<std::uint8_t>(b))); }
    for (std::string m : merges) {
        m.erase(m.find(' '), 1);
        tokens.push_back(m);
    }
    put_texts(parts, "tokenizer.ggml.tokens", tokens);
    put_texts(parts, "tokenizer.ggml.merges", merges);
    bytes_out types;
    types.number<std::uint32_t>(array).number<std::uint32_t>(i32).number<std::uint64_t>(tokens.size());
    for (std::size_t t = 0; t < tokens.size(); ++t) { types.number<std::int32_t>(t < 3 ? 3 : 1); }
    parts.put("tokenizer.ggml.token_type", types.data);
    parts.set("tokenizer.ggml.eos_token_id", u32, std::uint32_t{2});

    std::mt19937 random(seed);
    const auto add = [&](const std::string& name, std::uint32_t type, index_t rows, index_t columns) {
        parts.tensors.emplace_back(name + ".weight", random_tensor(type, rows, columns, random));
    };
    add("token_embd", 8, std::ssize(tokens), s.d_model);
    for (index_t l = 0; l < s.layers; ++l) {
        const std::string p = "blk." + std::to_string(l) + ".";
        add(p + "attn_norm", 0, 1, s.d_model);
        add(p + "attn_q", 3, s.q_heads * s.head_dim, s.d_model);
        add(p + "attn_k", 1, s.kv_heads * s.head_dim, s.d_model);
        add(p + "attn_v", 2, s.kv_heads * s.head_dim, s.d_model);
        add(p + "attn_output", 0, s.d_model, s.q_heads * s.head_dim);
        add(p + "ffn_norm", 0, 1, s.d_model);
        add(p + "ffn_gate", 3, s.d_ff, s.d_model);
        add(p + "ffn_up", 8, s.d_ff, s.d_model);
        add(p + "ffn_down", 2, s.d_model, s.d_ff);
    }
    add("output_norm", 0, 1, s.d_model);
    if (s.head != "token_embd") { add(s.head, 1, std::ssize(tokens), s.d_model); }
    if (!s.slower.empty()) {
        tensor t{.rows = 1, .columns = std::ssize(s.slower)};
        t.data.assign(reinterpret_cast<const char*>(s.slower.data()), s.slower.size() * sizeof(float));
        parts.tensors.emplace_back("rope_freqs.weight", t);
    }
    return parts;
}

// Whether the token at `query` sees the one at `key`, which is not after it.
using mask = std::function<bool(index_t layer, index_t kv_head, index_t query, index_t key)>;

using rows = std::vector<std::vector<double>>;

// Logits [tokens, vocabulary], as naive loops over the file's own order of rows.
inline rows naive_logits(gguf_parts& parts, const sizes& s, const std::vector<token_id>& tokens,
                         const mask& sees = {}) {
    const auto times = [&](const rows& x, const std::string& name) {
        const tensor& w = parts.at(name + ".weight");
        rows y(x.size(), std::vector<double>(static_cast<std::size_t>(w.rows)));
        for (std::size_t t = 0; t < x.size(); ++t) {
            for (std::size_t r = 0; r < y[t].size(); ++r) {
                for (std::size_t k = 0; k < x[t].size(); ++k) {
                    y[t][r] += x[t][k] * w.values[r * x[t].size() + k];
                }
            }
        }
        return y;
    };
    const auto norm = [&](rows x, const std::string& name) {
        const tensor& w = parts.at(name + ".weight");
        for (auto& row : x) {
            double squares = 0;
            for (const double v : row) { squares += v * v; }
            const double scale = 1 / std::sqrt(squares / static_cast<double>(row.size()) + 1e-5);
            for (std::size_t k = 0; k < row.size(); ++k) { row[k] *= scale * w.values[k]; }
        }
        return x;
    };
    const auto rotate = [&](rows& x) {
        const auto pairs = static_cast<std::size_t>(s.head_dim / 2);
        for (std::size_t t = 0; t < x.size(); ++t) {
            for (std::size_t k = 0; k < x[t].size(); k += 2) {
                const std::size_t pair = k / 2 % pairs;
                double angle = static_cast<double>(t) *
                               std::pow(s.rope_base, -static_cast<double>(pair) / static_cast<double>(pairs));
                if (!s.slower.empty()) { angle /= static_cast<double>(s.slower[pair]); }
                const double a = x[t][k], b = x[t][k + 1];
                x[t][k] = a * std::cos(angle) - b * std::sin(angle);
                x[t][k + 1] = b * std::cos(angle) + a * std::sin(angle);
            }
        }
    };
    const auto add = [](rows& x, const rows& y) {
        for (std::size_t t = 0; t < x.size(); ++t) {
            for (std::size_t k = 0; k < x[t].size(); ++k) { x[t][k] += y[t][k]; }
        }
    };
    const auto head_dim = static_cast<std::size_t>(s.head_dim);
    const auto attend = [&](index_t layer, const rows& q, const rows& k, const rows& v) {
        rows out(q.size(), std::vector<double>(static_cast<std::size_t>(s.q_heads) * head_dim));
        for (index_t head = 0; head < s.q_heads; ++head) {
            const index_t g = head / (s.q_heads / s.kv_heads);
            const std::size_t of_q = static_cast<std::size_t>(head) * head_dim;
            const std::size_t of_kv = static_cast<std::size_t>(g) * head_dim;
            for (std::size_t t = 0; t < q.size(); ++t) {
                std::vector<double> weights(t + 1);
                double sum = 0;
                for (std::size_t u = 0; u <= t; ++u) {
                    if (sees && !sees(layer, g, static_cast<index_t>(t), static_cast<index_t>(u))) {
                        continue;
                    }
                    double product = 0;
                    for (std::size_t d = 0; d < head_dim; ++d) {
                        product += q[t][of_q + d] * k[u][of_kv + d];
                    }
                    weights[u] = std::exp(product / std::sqrt(static_cast<double>(head_dim)));
                    sum += weights[u];
                }
                for (std::size_t u = 0; u <= t; ++u) {
                    for (std::size_t d = 0; d < head_dim; ++d) {
                        out[t][of_q + d] += weights[u] / sum * v[u][of_kv + d];
                    }
                }
            }
        }
        return out;
    };

    const tensor& embedding = parts.at("token_embd.weight");
    rows x;
    for (const token_id token : tokens) {
        const auto first = embedding.values.begin() + token * s.d_model;
        x.emplace_back(first, first + s.d_model);
    }
    for (index_t l = 0; l < s.layers; ++l) {
        const std::string p = "blk." + std::to_string(l) + ".";
        const rows h = norm(x, p + "attn_norm");
        rows q = times(h, p + "attn_q"), k = times(h, p + "attn_k");
        rotate(q);
        rotate(k);
        add(x, times(attend(l, q, k, times(h, p + "attn_v")), p + "attn_output"));
        const rows f = norm(x, p + "ffn_norm");
        const rows gate = times(f, p + "ffn_gate");
        rows up = times(f, p + "ffn_up");
        for (std::size_t t = 0; t < up.size(); ++t) {
            for (std::size_t i = 0; i < up[t].size(); ++i) {
                up[t][i] *= gate[t][i] / (1 + std::exp(-gate[t][i]));
            }
        }
        add(x, times(up, p + "ffn_down"));
    }
    return times(norm(x, "output_norm"), s.head);
}

inline std::vector<token_id> random_tokens(std::size_t count) {
    std::mt19937 random(7);
    std::vector<token_id> tokens(count);
    for (token_id& t : tokens) { t = static_cast<token_id>(random() % 260U); }
    return tokens;
}

} // namespace tiny
