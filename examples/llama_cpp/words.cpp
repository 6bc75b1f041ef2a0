// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "words.hpp"

#ifdef __linux__
#include <sched.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <thread>

namespace llama_example {
namespace {

llama_model* load(const std::string& file) {
    llama_log_set(
        [](ggml_log_level level, const char* text, void*) {
            if (level == GGML_LOG_LEVEL_ERROR) { std::fputs(text, stderr); }
        },
        nullptr);
    llama_backend_init();
    llama_model_params params = llama_model_default_params();
    params.n_gpu_layers = 0;
    params.use_extra_bufts = false;
    llama_model* model = llama_model_load_from_file(file.c_str(), params);
    if (model == nullptr) { throw std::runtime_error(file + ": not a model that llama.cpp loads"); }
    return model;
}

// Threads of llama.cpp wait for each other on the processor, so there must not be more of them than cores.
int usable_cores() {
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) { return std::max(1, CPU_COUNT(&set)); }
#endif
    return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

ggml_type type_named(const std::string& name) {
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const auto type = static_cast<ggml_type>(i);
        const char* known = ggml_type_name(type);
        if (known != nullptr && name == known) { return type; }
    }
    throw std::runtime_error("ggml has no type " + name);
}

} // namespace

language_model::language_model(const std::string& file)
    : model(load(file), llama_model_free), vocabulary(llama_model_get_vocab(model.get())) {}

std::vector<llama_token> language_model::tokens(std::string_view text, bool at_start) const {
    std::vector<llama_token> made(text.size() + 8);
    const auto n = llama_tokenize(vocabulary, text.data(), static_cast<std::int32_t>(text.size()),
                                  made.data(), static_cast<std::int32_t>(made.size()), at_start, true);
    if (n < 0) { throw std::runtime_error("the text cannot be tokenized"); }
    made.resize(static_cast<std::size_t>(n));
    return made;
}

std::string language_model::text(llama_token token) const {
    char piece[256];
    const auto n = llama_token_to_piece(vocabulary, token, piece, sizeof piece, 0, false);
    return {piece, static_cast<std::size_t>(std::max(n, 0))};
}

std::string language_model::user_turn(const std::string& said, bool first) const {
    const char* form = llama_model_chat_template(model.get(), nullptr);
    if (form == nullptr) { return said; }
    const auto written = [&](std::span<const llama_chat_message> chat, bool with_answer) {
        std::string text(2 * said.size() + 1024, '\0');
        const auto n = llama_chat_apply_template(form, chat.data(), chat.size(), with_answer, text.data(),
                                                 static_cast<std::int32_t>(text.size()));
        text.resize(
            static_cast<std::size_t>(std::clamp<std::int32_t>(n, 0, static_cast<std::int32_t>(text.size()))));
        return text;
    };
    const llama_chat_message system{"system",
                                    "You are a helpful AI assistant named SmolLM, trained by Hugging Face"};
    const llama_chat_message chat[] = {system, {"user", said.c_str()}};
    const std::string whole = written(chat, true);
    if (whole.empty()) { return said; } // a template that llama.cpp does not know
    if (first) { return whole; }
    return "\n" + whole.substr(written(std::span(chat, 1), false).size()); // behind the end of an answer
}

llama_context_params context_params(std::uint32_t cells, const std::string& type_k, const std::string& type_v,
                                    bool flash_attention) {
    llama_context_params p = llama_context_default_params();
    p.n_ctx = cells;
    p.n_batch = cells;
    p.n_ubatch = 512;
    p.kv_unified = true;
    p.n_threads = p.n_threads_batch = usable_cores();
    p.type_k = type_named(type_k);
    p.type_v = type_named(type_v);
    p.flash_attn_type = flash_attention ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    if (!flash_attention && ggml_is_quantized(p.type_v)) {
        throw std::runtime_error("llama.cpp has quantised V with flash attention only: --fa on");
    }
    return p;
}

std::vector<float> log_probabilities(std::span<const float> logits) {
    const float top = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (const float x : logits) { sum += static_cast<double>(std::exp(x - top)); }
    const float all = top + static_cast<float>(std::log(sum));
    std::vector<float> made(logits.begin(), logits.end());
    for (float& x : made) { x -= all; }
    return made;
}

double divergence(std::span<const float> log_p, std::span<const float> log_q) {
    double sum = 0;
    for (std::size_t i = 0; i < log_p.size(); ++i) {
        sum += static_cast<double>(std::exp(log_p[i]) * (log_p[i] - log_q[i]));
    }
    return sum;
}

llama_token likeliest(std::span<const float> logits) {
    return static_cast<llama_token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

std::string read_text(const std::string& file) {
    std::ifstream in(file, std::ios::binary);
    std::string text((std::istreambuf_iterator<char>(in)), {});
    if (!in.is_open() || in.bad()) { throw std::runtime_error(file + ": cannot be read"); }
    return text;
}

} // namespace llama_example
