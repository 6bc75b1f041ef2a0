// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// libllama alone, without kvtrim: time to the first token and tokens per second after it, as `./dev quality --speed --llama` measures them
// beside the engine of examples/model on the same tokens. One line of JSON. Weights are not repacked, as for kvtrim-llama: version
// 0.3.36 of the package crashes in its AMX products of repacked Q4_1.

#include "../model/mapped_memory.hpp"
#include "words.hpp"

#include <CLI/CLI.hpp>
#include <fmt/core.h>

#include <chrono>
#include <exception>
#include <fstream>
#include <iterator>

namespace {

using namespace llama_example;

struct options {
    std::string model, tokens_file, cache = "f16";
    int prompt = 0, steps = 0, threads = 1;
    bool flash_attention = false;
};

struct speed {
    double first_token_seconds, tokens_per_second;
};

void decode(llama_context* context, std::vector<llama_token> tokens) {
    if (llama_decode(context, llama_batch_get_one(tokens.data(), static_cast<std::int32_t>(tokens.size()))) !=
        0) {
        throw std::runtime_error("llama_decode failed");
    }
}

speed measure(llama_context* context, std::span<const llama_token> tokens, const options& chosen) {
    const auto prompt = tokens.first(static_cast<std::size_t>(chosen.prompt));
    const auto next = tokens.subspan(prompt.size());
    const auto step = [&](int i) { decode(context, {next[static_cast<std::size_t>(i) % next.size()]}); };
    using clock = std::chrono::steady_clock;
    const auto since = [](clock::time_point start) {
        return std::chrono::duration<double>(clock::now() - start).count();
    };
    speed s{};
    const auto start = clock::now();
    decode(context, {prompt.begin(), prompt.end()});
    s.first_token_seconds = since(start);
    step(0); // memory of this size is touched for the first time
    const auto second = clock::now();
    for (int i = 1; i <= chosen.steps; ++i) { step(i); }
    s.tokens_per_second = chosen.steps / since(second);
    return s;
}

void run(const options& chosen) {
    std::ifstream file(chosen.tokens_file);
    const std::vector<llama_token> tokens{std::istream_iterator<llama_token>(file), {}};
    if (chosen.prompt >= std::ssize(tokens)) {
        throw std::runtime_error(chosen.tokens_file + ": too few tokens");
    }
    const language_model model(chosen.model);
    llama_context_params params = context_params(static_cast<std::uint32_t>(chosen.prompt + chosen.steps + 1),
                                                 chosen.cache, chosen.cache, chosen.flash_attention);
    params.n_threads = params.n_threads_batch = chosen.threads;
    const std::unique_ptr<llama_context, decltype(&llama_free)> context(
        llama_init_from_model(model.model.get(), params), llama_free);
    if (context == nullptr) { throw std::runtime_error("llama.cpp makes no context of these parameters"); }
    const speed s = measure(context.get(), tokens, chosen);
    fmt::print("{{\"first_token_seconds\": {}, \"tokens_per_second\": {}, \"resident_bytes\": {}}}\n",
               s.first_token_seconds, s.tokens_per_second, lm::resident_bytes());
}

} // namespace

int main(int argc, char** argv) {
    options chosen;
    CLI::App app{"Time to the first token, tokens per second and memory of libllama"};
    app.add_option("-m,--model", chosen.model, "a GGUF file")->required()->check(CLI::ExistingFile);
    app.add_option("--tokens", chosen.tokens_file, "numbers of the prompt's tokens, and of those that follow")
        ->required()
        ->check(CLI::ExistingFile);
    app.add_option("--prompt", chosen.prompt, "how many of them are the prompt")
        ->required()
        ->check(CLI::PositiveNumber);
    app.add_option("--steps", chosen.steps, "tokens, one after the other")->check(CLI::NonNegativeNumber);
    app.add_option("--threads", chosen.threads)->check(CLI::PositiveNumber);
    app.add_option("--cache", chosen.cache, "type of K and V")->check(CLI::IsMember({"f32", "f16", "q8_0"}));
    app.add_flag("--flash-attention", chosen.flash_attention);
    CLI11_PARSE(app, argc, argv);
    try {
        run(chosen);
        return 0;
    } catch (const std::exception& error) {
        fmt::print(stderr, "kvtrim-llama-speed: {}\n", error.what());
        return 1;
    }
}
