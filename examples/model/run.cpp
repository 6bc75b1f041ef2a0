// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// A real model answers a question about a text, from its full cache and from what a policy leaves of it.

#include "calibrate.hpp"
#include "load_model.hpp"
#include "policy_check.hpp"
#include "read_file.hpp"
#include "seconds_since.hpp"
#include "session.hpp"
#include "tokenizer.hpp"

#include <CLI/CLI.hpp>
#include <fmt/core.h>

#include <unistd.h>

#include <chrono>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using namespace lm;

struct options {
    std::string question;
    std::string text_file;
    std::string system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";
    std::string model_file;
    std::string policy = "replay_afar";
    std::string cache = "f16";
    aid_files files;
    cut_request cut;
    index_t prefill_budget = 0;
    index_t max_tokens = 64;
    bool unseen = false; // the cut happens before the question
    bool plain = false;  // the words alone, without a chat's turns
};

using clock = std::chrono::steady_clock;

double megabytes(std::size_t bytes) {
    return static_cast<double>(bytes) * 1e-6;
}

// What comes before the cut, and what after it.
struct prompt {
    std::vector<token_id> cached;
    std::vector<token_id> rest;
};

// A turn of ChatML where the model has its control tokens, else, or if asked for, the words alone. A text without a question is continued.
prompt make_prompt(const tokenizer& words, const options& chosen) {
    prompt made;
    std::vector<token_id>* to = &made.cached;
    const auto add = [&](std::string_view text) {
        const std::vector<token_id> tokens = words.encode(text);
        to->insert(to->end(), tokens.begin(), tokens.end());
    };
    const token_id begin = words.control("<|im_start|>"), end = words.control("<|im_end|>");
    const std::string text = chosen.text_file.empty() ? "" : read_file(chosen.text_file);
    const bool is_chat = !chosen.plain && !chosen.question.empty() && begin >= 0 && end >= 0;
    if (is_chat) {
        if (!chosen.system.empty()) {
            to->push_back(begin);
            add("system\n" + chosen.system);
            to->push_back(end);
            add("\n");
        }
        to->push_back(begin);
        add("user\n");
    }
    add(text.empty() || chosen.question.empty() ? text : text + "\n\n");
    if (chosen.unseen) { to = &made.rest; }
    add(chosen.question);
    if (is_chat) {
        to->push_back(end);
        add("\n");
        to->push_back(begin);
        add("assistant\n");
    }
    return made;
}

// Greedy, printed as it comes.
void answer(session& sequence, const tokenizer& words, const prompt& asked, matrix logits,
            index_t max_tokens) {
    if (!asked.rest.empty()) { logits = sequence.step(asked.rest); }
    const auto start = clock::now();
    index_t steps = 0;
    for (index_t i = 0; i < max_tokens; ++i) {
        const token_id next = likeliest(logits);
        if (words.is_end(next)) { break; }
        fmt::print("{}", words.decode(std::span(&next, 1)));
        std::fflush(stdout);
        if (i + 1 == max_tokens) { break; }
        logits = sequence.step(std::span(&next, 1));
        ++steps;
    }
    const double seconds = seconds_since(start);
    fmt::print("\n[{} decode steps", steps);
    if (steps > 0) { fmt::print(", {:.1f} tokens per second", static_cast<double>(steps) / seconds); }
    fmt::print("]\n");
}

int run(const options& chosen) {
    const named_policy& policy = policy_named(chosen.policy);
    const gguf file(chosen.model_file);
    const llama_model model = load_model(file);
    const tokenizer words(file);
    const model_config& c = model.config;
    if (words.size() > c.vocabulary) { file.fail("has more tokens than rows of its embedding"); }
    const prompt asked = make_prompt(words, chosen);
    const index_t tokens = std::ssize(asked.cached);
    const index_t after = std::ssize(asked.rest) + chosen.max_tokens;
    if (tokens == 0) { throw std::runtime_error("nothing to answer: give -p or -f"); }
    if (c.context > 0 && tokens + after > c.context) {
        throw std::runtime_error(fmt::format("{} tokens of prompt and answer, but the model's context is {}",
                                             tokens + after, c.context));
    }
    const cache_format format = chosen.cache == "f32"   ? cache_format::f32
                                : chosen.cache == "f16" ? cache_format::f16
                                                        : cache_format::q8_0;
    fmt::print("{}: {} layers, {} query heads, {} KV heads of {}\n", file.text("general.name", "model"),
               c.layers, c.q_heads, c.kv_heads, c.head_dim);

    policy_aids aids{replay_lead(words)};
    model_table table;
    add_aids(aids, table, model, {&policy.name, 1}, chosen.files, [&] {
        std::vector<token_id> text = words.encode(read_file(MODEL_DATA_DIR "/holmes.txt").substr(0, 8192));
        text.resize(std::min<std::size_t>(text.size(), 1024));
        return text;
    });
    if (policy.needs_profile) { fmt::print("table of the model's rows: {}\n", table.origin); }
    session sequence(model, format, tokens + after, aids);
    const index_t observed_tokens =
        policy.queries == observed::whole_prompt ? tokens : std::min(tokens, chosen.cut.window_tokens);
    const bool terminal = isatty(STDERR_FILENO) != 0;
    const auto prefill_start = clock::now();
    block_pruning pruning(chosen.prefill_budget);
    const matrix logits = sequence.prefill(
        asked.cached, observed_tokens,
        [&](index_t done) {
            fmt::print(stderr, "{}prefill: {} of {} tokens{}", terminal ? "\r" : "", done, tokens,
                       terminal && done < tokens ? "" : "\n");
        },
        chosen.prefill_budget > 0 ? &pruning : nullptr);
    const double prefill_seconds = seconds_since(prefill_start);
    fmt::print("prefill: {} tokens in {:.2f} s, {:.0f} tokens per second\n", tokens, prefill_seconds,
               static_cast<double>(tokens) / prefill_seconds);
    if (chosen.prefill_budget > 0) {
        fmt::print("prefill: {:.1f} % of attention's pairs of queries and keys\n",
                   100 * pruning.pairs / pruning.dense_pairs);
    }

    fmt::print("\n== full cache: {:.2f} MB of {}, process {:.1f} MB\n", megabytes(sequence.cache_bytes()),
               chosen.cache, megabytes(resident_bytes()));
    answer(sequence, words, asked, logits, chosen.max_tokens);

    const auto plan_start = clock::now();
    {
        const std::vector<kvtrim::keep_plan> plans = sequence.plan(policy, chosen.cut);
        sequence.cut(plans, after);
    }
    const double cut_seconds = seconds_since(plan_start);
    fmt::print("\n== {}, {:g} % kept: {:.2f} MB of {}, process {:.1f} MB, planned and cut in {:.3f} s\n",
               policy.name, 100 * chosen.cut.kept_ratio, megabytes(sequence.cache_bytes()), chosen.cache,
               megabytes(resident_bytes()), cut_seconds);
    answer(sequence, words, asked, logits, chosen.max_tokens);
    return 0;
}

} // namespace

int main(int argc, char** argv) {
    options chosen;
    CLI::App app{"A real model answers from its full KV cache, and from a part of it that a policy chose"};
    app.add_option("-p,--prompt", chosen.question, "a question; without one the text is continued");
    app.add_option("-f,--file", chosen.text_file, "a text that the question is about")
        ->check(CLI::ExistingFile);
    app.add_option("--model", chosen.model_file, "a GGUF file of the LLaMA architecture")
        ->required()
        ->check(CLI::ExistingFile);
    app.add_option(
           "--policy", chosen.policy,
           "what chooses the part; replay_afar runs the prompt a second time, and from a fifth of the cache "
           "gives most answers of the full one, known questions or not (docs/quality.md); profiled needs one "
           "pass and a table of the model, but loses more; policies that look at a window lose most of what "
           "is asked later")
        ->check(is_policy())
        ->capture_default_str();
    add_aid_files(app, chosen.files);
    app.add_option("--keep", chosen.cut.kept_ratio, "share of the cache that stays")
        ->check(CLI::Range(1e-6, 1.0))
        ->capture_default_str();
    app.add_option("--cache", chosen.cache, "format of keys and values")
        ->check(CLI::IsMember({"f32", "f16", "q8_0"}))
        ->capture_default_str();
    app.add_option("--window", chosen.cut.window_tokens, "newest tokens that stay and are observed")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_option("--sinks", chosen.cut.sink_tokens, "first tokens that stay")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    app.add_option("--prefill-budget", chosen.prefill_budget,
                   "cached tokens that 512 tokens of the prompt attend, chosen by CritiPrefill; 0: all")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    app.add_option("--max-tokens", chosen.max_tokens, "length of an answer")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_option("--system", chosen.system, "what the model is told first");
    app.add_flag("--plain", chosen.plain, "no turns of a chat: the model continues the question itself");
    app.add_flag("--unseen", chosen.unseen, "cut before the question is known, not after it");
    CLI11_PARSE(app, argc, argv);
    try {
        return run(chosen);
    } catch (const std::exception& error) {
        fmt::print(stderr, "run: {}\n", error.what());
        return 1;
    }
}
