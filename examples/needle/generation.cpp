// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "generation.hpp"

#include "engine.hpp"
#include "live_sequence.hpp"
#include "report.hpp"
#include "seconds_since.hpp"

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <set>
#include <stdexcept>
#include <utility>

namespace needle {
namespace {

using lm::seconds_since;

// ---- One sample ----

struct generated {
    std::vector<token_id> answers; // of all questions, one after the other
    double prompt_seconds = 0;
    double decode_seconds = 0;
    double most_prompt_bytes = 0;
    double most_generation_bytes = 0;
    index_t cuts = 0;
};

index_t decoded_tokens(const sample& asked) {
    index_t tokens = 0;
    for (const turn& t : asked.turns) { tokens += std::ssize(t.question) + std::ssize(t.answer); }
    return tokens;
}

// Asks one question after the other; step(token) returns logits [1, vocabulary].
template <class Step>
std::vector<token_id> answer_greedily(const sample& asked, Step&& step) {
    std::vector<token_id> answers;
    for (const turn& t : asked.turns) {
        matrix logits;
        for (const token_id given : t.question) { logits = step(given); }
        for (std::size_t i = 0; i < t.answer.size(); ++i) {
            index_t best = 0;
            logits.row(0).maxCoeff(&best);
            answers.push_back(static_cast<token_id>(best));
            logits = step(answers.back());
        }
    }
    return answers;
}

generated generate_full(const llama_model& model, const sample& asked) {
    generated result;
    const auto start = std::chrono::steady_clock::now();
    std::vector<kv_cache> caches;
    prefill(model, asked.haystack,
            [&](index_t, attention_inputs inputs) { caches.push_back(whole_cache(inputs)); });
    for (const kv_cache& cache : caches) { result.most_prompt_bytes += static_cast<double>(cache.bytes()); }
    result.prompt_seconds = seconds_since(start);

    const auto decode_start = std::chrono::steady_clock::now();
    index_t position = std::ssize(asked.haystack);
    result.answers = answer_greedily(
        asked, [&](token_id token) { return decode(model, caches, std::span(&token, 1), position++); });
    result.decode_seconds = seconds_since(decode_start);
    for (const kv_cache& cache : caches) {
        result.most_generation_bytes += static_cast<double>(cache.bytes());
    }
    return result;
}

generated generate_capped(const llama_model& model, const sample& asked, const generation_options& chosen,
                          const live_policy& policy, index_t cap_tokens, prompt_arrival arrival) {
    generated result;
    const auto start = std::chrono::steady_clock::now();
    const std::span<const token_id> prompt(asked.haystack);
    const bool in_chunks = arrival == prompt_arrival::in_chunks;
    const cache_limit limit{
        .cap_tokens = cap_tokens, .chunk_tokens = chosen.chunk_tokens, .window_tokens = chosen.window_tokens};
    live_sequence sequence(model, policy, limit, in_chunks ? 0 : std::ssize(prompt));
    if (in_chunks) {
        const auto chunk = static_cast<std::size_t>(chosen.chunk_tokens);
        for (std::size_t at = 0; at < prompt.size(); at += chunk) {
            sequence.step(prompt.subspan(at, std::min(chunk, prompt.size() - at)));
        }
    } else {
        sequence.forward(prompt);
    }
    result.prompt_seconds = seconds_since(start);
    result.most_prompt_bytes = static_cast<double>(sequence.take_most_bytes());

    const auto decode_start = std::chrono::steady_clock::now();
    result.answers =
        answer_greedily(asked, [&](token_id token) { return sequence.step(std::span(&token, 1)); });
    result.decode_seconds = seconds_since(decode_start);
    result.most_generation_bytes = static_cast<double>(sequence.take_most_bytes());
    result.cuts = sequence.cuts();
    return result;
}

// Adds the means over samples; row.samples is set.
void add_sample(generation_row& row, const sample& asked, const generated& result,
                const model_config& config) {
    double right = 0, first_right = 0;
    std::set<std::vector<token_id>> known;
    auto next = result.answers.begin();
    for (const turn& t : asked.turns) {
        const bool correct = std::equal(t.answer.begin(), t.answer.end(), next);
        next += std::ssize(t.answer);
        right += correct ? 1 : 0;
        if (known.insert(t.question).second) { first_right += correct ? 1 : 0; }
    }
    const double share = 1.0 / static_cast<double>(row.samples);
    const double accuracy = right / static_cast<double>(asked.turns.size());
    const auto decoded = static_cast<double>(decoded_tokens(asked));
    row.accuracy += share * accuracy;
    row.accuracy_squares += share * accuracy * accuracy;
    row.first_accuracy += share * first_right / static_cast<double>(known.size());
    row.most_prompt_bytes = std::max(row.most_prompt_bytes, result.most_prompt_bytes);
    row.most_generation_bytes = std::max(row.most_generation_bytes, result.most_generation_bytes);
    row.cuts += share * static_cast<double>(result.cuts) / static_cast<double>(config.layers);
    row.decoded_tokens += share * decoded;
    row.seconds_per_decoded_token += share * result.decode_seconds / decoded;
    row.prompt_seconds += share * result.prompt_seconds;
}

void expect_answers_of_full_cache(const generated& result, const generated& full, const generation_row& row) {
    if (result.cuts == 0 && result.answers != full.answers) {
        throw std::runtime_error(
            fmt::format("{} at a cap of {}: other answers than the full cache, though nothing was evicted",
                        row.policy, row.cap_tokens));
    }
}

// ---- All samples ----

std::vector<generation_row> rows_for(const generation_options& chosen, const model_config& config,
                                     const std::string& task, index_t tokens) {
    std::vector<generation_row> rows;
    rows.push_back({.policy = "full", .task = task, .tokens = tokens, .samples = chosen.samples});
    for (const index_t cap : chosen.caps) {
        for (const std::string& policy : chosen.policies) {
            for (const prompt_arrival arrival : {prompt_arrival::in_chunks, prompt_arrival::in_one_shot}) {
                const index_t floats = 2 * config.layers * config.kv_heads * cap * config.head_dim;
                rows.push_back({.policy = policy,
                                .task = task,
                                .tokens = tokens,
                                .cap_tokens = cap,
                                .arrival = arrival,
                                .samples = chosen.samples,
                                .cap_bytes = static_cast<double>(floats) * sizeof(float)});
            }
        }
    }
    return rows;
}

} // namespace

double generation_row::standard_error() const {
    if (samples < 2) { return 0; }
    const double variance = std::max(0.0, accuracy_squares - accuracy * accuracy);
    return std::sqrt(variance / static_cast<double>(samples - 1));
}

void validate(const generation_options& chosen) {
    for (const std::string& name : chosen.policies) { static_cast<void>(live_policy_named(name)); }
    const index_t least = chosen.chunk_tokens + chosen.window_tokens + live_sequence::sink_tokens + 1;
    for (const index_t cap : chosen.caps) {
        if (cap < least) {
            throw std::invalid_argument(fmt::format("--caps: {} tokens do not hold a chunk, the window, {} "
                                                    "sinks and one more: {} are needed",
                                                    cap, live_sequence::sink_tokens, least));
        }
    }
}

std::vector<generation_row> evaluate_generation(const llama_model& model, const generation_options& chosen) {
    validate(chosen);
    std::vector<generation_row> all;
    progress_bar progress(std::ssize(chosen.tokens) * std::ssize(chosen.tasks) * chosen.samples *
                          std::ssize(chosen.caps) * std::ssize(chosen.policies) * 2);
    for (const index_t tokens : chosen.tokens) {
        for (const std::string& task : chosen.tasks) {
            progress.begin(fmt::format("generation {} {}", task, tokens));
            std::vector<generation_row> rows = rows_for(chosen, model.config, task, tokens);
            for (index_t i = 0; i < chosen.samples; ++i) {
                const index_t index = chosen.first_index + i;
                sample asked = make_sample(parse_task(task), tokens, index);
                asked.turns =
                    ask_every_needle(asked, chosen.generated_tokens, static_cast<std::uint64_t>(index));
                const generated full = generate_full(model, asked);
                add_sample(rows.front(), asked, full, model.config);
                for (auto row = rows.begin() + 1; row != rows.end(); ++row) {
                    const generated result = generate_capped(
                        model, asked, chosen, live_policy_named(row->policy), row->cap_tokens, row->arrival);
                    expect_answers_of_full_cache(result, full, *row);
                    add_sample(*row, asked, result, model.config);
                    progress.step();
                }
            }
            all.insert(all.end(), rows.begin(), rows.end());
        }
    }
    progress.done();
    return all;
}

// ---- Reports ----

void print_generation_tables(const std::vector<generation_row>& rows, const generation_options& chosen) {
    fmt::print("\nThe model answers by itself, every needle of the prompt in turn. right: share of answers, "
               "with standard\nerror; first: of the questions asked for the first time. KiB: most keys and "
               "values held at any step, of\nthe prompt and of generation. cuts: per layer. ms: per decoded "
               "token, cuts included.\n");
    const std::string columns = fmt::format("{:>7}{:>7}{:>7}{:>7}{:>7}{:>6}{:>7}", "right", "+-", "first",
                                            "KiB", "KiB", "cuts", "ms");
    const auto print_row = [](const generation_row& r) {
        fmt::print("{:>7.3f}{:>7.3f}{:>7.3f}{:>7.0f}{:>7.0f}{:>6.1f}{:>7.2f}", r.accuracy, r.standard_error(),
                   r.first_accuracy, r.most_prompt_bytes / 1024, r.most_generation_bytes / 1024, r.cuts,
                   1e3 * r.seconds_per_decoded_token);
    };
    for (const generation_row& r : rows) {
        if (r.policy == "full") {
            fmt::print("\ngeneration, {}, prompt of {} tokens, {:.0f} tokens decoded\n{:20}{}\n{:20}", r.task,
                       r.tokens, r.decoded_tokens, "nothing evicted", columns, "full");
            print_row(r);
            fmt::print("\n");
        } else if (r.arrival == prompt_arrival::in_chunks) {
            if (r.policy == chosen.policies.front()) {
                fmt::print("\ncap {}: {} and chunks of {}, {:.0f} KiB\n{:20}{}  {}\n{:20}{:^48}  {:^48}\n",
                           r.cap_tokens, r.cap_tokens - chosen.chunk_tokens, chosen.chunk_tokens,
                           r.cap_bytes / 1024, "policy", columns, columns, "", "prompt in chunks",
                           "prompt in one shot");
            }
            fmt::print("{:20}", r.policy);
            print_row(r);
        } else {
            fmt::print("  ");
            print_row(r);
            fmt::print("\n");
        }
    }
}

void write_generation_json(const std::vector<generation_row>& rows, const generation_options& chosen,
                           const std::string& file) {
    nlohmann::json list = nlohmann::json::array();
    for (const generation_row& r : rows) {
        list.push_back({{"policy", r.policy},
                        {"task", r.task},
                        {"tokens", r.tokens},
                        {"cap_tokens", r.cap_tokens},
                        {"prompt", r.arrival == prompt_arrival::in_chunks ? "in_chunks" : "in_one_shot"},
                        {"samples", r.samples},
                        {"accuracy", r.accuracy},
                        {"standard_error", r.standard_error()},
                        {"first_accuracy", r.first_accuracy},
                        {"cap_bytes", r.cap_bytes},
                        {"most_prompt_bytes", r.most_prompt_bytes},
                        {"most_generation_bytes", r.most_generation_bytes},
                        {"cuts", r.cuts},
                        {"decoded_tokens", r.decoded_tokens},
                        {"seconds_per_decoded_token", r.seconds_per_decoded_token},
                        {"prompt_seconds", r.prompt_seconds}});
    }
    std::ofstream out(file);
    out << nlohmann::json{{"first_index", chosen.first_index},
                          {"chunk_tokens", chosen.chunk_tokens},
                          {"window_tokens", chosen.window_tokens},
                          {"generated_tokens", chosen.generated_tokens},
                          {"generation_rows", list}}
               .dump(2)
        << '\n';
    if (!out.flush()) { throw std::runtime_error("cannot write " + file); }
}

} // namespace needle
