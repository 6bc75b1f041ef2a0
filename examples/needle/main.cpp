// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Answers retrieval questions with the recall model, with the full cache and with cut ones.

#include "checks.hpp"
#include "evaluate.hpp"

#include <CLI/CLI.hpp>
#include <fmt/core.h>

#include <algorithm>
#include <exception>
#include <string>
#include <vector>

#ifndef NEEDLE_DATA_DIR
#define NEEDLE_DATA_DIR "data"
#endif

namespace {

using namespace needle;

struct options {
    std::string model_file = NEEDLE_DATA_DIR "/recall.safetensors";
    std::string reference_file = NEEDLE_DATA_DIR "/reference.json";
    std::vector<std::string> tasks{task_names.begin(), task_names.end()};
    std::vector<double> kept_ratios{0.1, 0.2, 0.5};
    sample_range range{.samples = 16};
    std::string setting_name = "aware";
    index_t window_tokens = 32;
    bool check_only = false;
};

// The first 4 tokens and the most recent ones.
keep_list keep_streaming(const layer_cut_request& request) {
    const index_t tokens = request.keys.tokens();
    const index_t first_tokens = std::min<index_t>(4, tokens);
    const index_t recent_tokens = std::max(request.kept_tokens - first_tokens, request.window_tokens);
    std::vector<std::int32_t> positions;
    for (index_t t = 0; t < tokens; ++t) {
        if (t < first_tokens || t >= tokens - recent_tokens) {
            positions.push_back(static_cast<std::int32_t>(t));
        }
    }
    return keep_same(request.keys.heads(), positions);
}

keep_list keep_everything(const layer_cut_request& request) {
    return keep_all(request.keys.heads(), request.keys.tokens());
}

std::vector<experiment> make_experiments(const std::vector<double>& kept_ratios) {
    std::vector<experiment> experiments{{"full", 1.0, layer_by_layer(keep_everything)}};
    for (const double ratio : kept_ratios) {
        experiments.push_back({"streaming", ratio, layer_by_layer(keep_streaming)});
    }
    return experiments;
}

bool check(const options& chosen, const recall_model& model) {
    const check_result result = check_against(chosen.reference_file, model);
    fmt::print("generator: {} of {} samples as recorded\n", result.samples - result.differing_samples,
               result.samples);
    fmt::print("model: {} of {} arg max as recorded, largest logit error {:.1e}\n",
               result.positions - result.differing_argmax, result.positions, result.max_logit_error);
    return result.ok();
}

void print_accuracy(const options& chosen, const recall_model& model) {
    const setting when =
        chosen.setting_name == "aware" ? setting::question_aware : setting::question_agnostic;
    const std::vector<experiment> experiments = make_experiments(chosen.kept_ratios);
    fmt::print("\n{} tokens, question-{}, {} samples from {}\n\n{:12}", chosen.range.haystack_tokens,
               chosen.setting_name, chosen.range.samples, chosen.range.first_index, "task");
    for (const experiment& e : experiments) {
        fmt::print("{:>18}", fmt::format("{} {:g} %", e.policy, 100 * e.kept_ratio));
    }
    fmt::print("{:>13}{:>18}\n", "prefill", "cut and decode");
    for (const std::string& task : chosen.tasks) {
        sample_range range = chosen.range;
        range.task = parse_task(task);
        const evaluation found = evaluate(model, range, when, experiments, chosen.window_tokens);
        fmt::print("{:12}", task);
        for (const double accuracy : found.accuracy) { fmt::print("{:>18.3f}", accuracy); }
        fmt::print("{:>10.1f} ms{:>15.2f} ms\n", 1e3 * found.prefill_seconds, 1e3 * found.cut_seconds);
    }
}

int run(const options& chosen) {
    const recall_model model = load_model(chosen.model_file);
    if (!check(chosen, model)) {
        fmt::print(stderr, "needle: results differ from the recorded ones\n");
        return 1;
    }
    if (!chosen.check_only) { print_accuracy(chosen, model); }
    return 0;
}

} // namespace

int main(int argc, char** argv) {
    options chosen;
    CLI::App app{"Retrieval accuracy of a small model with a full and a cut KV cache"};
    app.option_defaults()->always_capture_default();
    app.add_option("--model", chosen.model_file, "weights");
    app.add_option("--reference", chosen.reference_file, "recorded results");
    app.add_option("--tasks", chosen.tasks, "tasks to run")
        ->delimiter(',')
        ->check(CLI::IsMember(chosen.tasks));
    app.add_option("--tokens", chosen.range.haystack_tokens,
                   "tokens of a haystack; the model is good up to 4096")
        ->check(CLI::Range(min_haystack_tokens, max_haystack_tokens));
    app.add_option("--samples", chosen.range.samples, "samples per task")->check(CLI::PositiveNumber);
    app.add_option("--first-index", chosen.range.first_index, "first sample")->check(CLI::NonNegativeNumber);
    app.add_option("--setting", chosen.setting_name, "is the question known at the cut?")
        ->check(CLI::IsMember({"aware", "agnostic"}));
    app.add_option("--window", chosen.window_tokens, "observation window, question-agnostic")
        ->check(CLI::PositiveNumber);
    app.add_option("--keep", chosen.kept_ratios, "shares of the cache to keep")
        ->delimiter(',')
        ->check(CLI::Range(0.0, 1.0));
    app.add_flag("--check-only", chosen.check_only, "stop after the comparison with the records");
    CLI11_PARSE(app, argc, argv);
    try {
        return run(chosen);
    } catch (const std::exception& error) {
        fmt::print(stderr, "needle: {}\n", error.what());
        return 1;
    }
}
