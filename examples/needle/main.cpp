// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// The demo: a small real model answers retrieval questions from a cache that each policy has cut.

#include "checks.hpp"
#include "evaluate.hpp"
#include "generation.hpp"
#include "load_model.hpp"
#include "report.hpp"
#include "seconds_since.hpp"
#include "sparse_prefill.hpp"

#include <CLI/CLI.hpp>
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <map>
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
    std::vector<std::string> policies;
    std::vector<std::string> tasks;
    std::vector<std::string> settings{"aware", "agnostic"};
    std::vector<index_t> tokens;
    std::vector<double> kept_ratios{1.0, 0.5, 0.2, 0.1};
    index_t samples = 0;
    index_t first_index = 0;
    index_t window_tokens = 32;
    std::string json_file;
    std::string plot_file;
    bool full = false;
    bool check_only = false;
    bool prefill = false; // measure pruned prefill instead of eviction
    prefill_options pruning{.budgets = {32, 64, 128, 256}};
    bool generate = false; // measure generation under a cap
    generation_options generation{.caps = {128, 256, 512}};
};

std::vector<std::string> policy_names() {
    std::vector<std::string> names;
    for (const named_policy& p : all_policies()) {
        if (is_plain(p)) { names.push_back(p.name); }
    }
    return names;
}

std::vector<std::string> live_policy_names() {
    std::vector<std::string> names;
    for (const live_policy& p : live_policies()) { names.push_back(p.name); }
    return names;
}

// The policies of both modes; each refuses those that it does not have.
std::vector<std::string> names_in_any_mode() {
    std::vector<std::string> names = policy_names();
    for (const std::string& name : live_policy_names()) {
        if (std::find(names.begin(), names.end(), name) == names.end()) { names.push_back(name); }
    }
    return names;
}

void fill_in_generation(options& chosen) {
    if (chosen.policies.empty()) {
        chosen.policies =
            chosen.full ? live_policy_names()
                        : std::vector<std::string>{"snapkv",      "ada_snapkv",     "criticalkv",
                                                   "defensivekv", "consensuskv",    "tova",
                                                   "h2o",         "h2o_normalised", "expected_attention",
                                                   "lagkv",       "streaming_llm",  "key_diff",
                                                   "random"};
    }
    generation_options& generation = chosen.generation;
    generation.policies = chosen.policies;
    generation.tasks = chosen.tasks.empty() ? std::vector<std::string>{"multiquery"} : chosen.tasks;
    generation.tokens = chosen.tokens.empty() ? std::vector<index_t>{1024} : chosen.tokens;
    generation.window_tokens = chosen.window_tokens;
    generation.samples = chosen.samples > 0 ? chosen.samples : chosen.full ? 16 : 2;
    generation.first_index = chosen.first_index;
    validate(generation);
}

// What was not chosen: a selection of under two minutes, or everything.
void fill_in(options& chosen) {
    const std::vector<std::string> every_task{task_names.begin(), task_names.end()};
    if (chosen.policies.empty()) {
        chosen.policies = chosen.full
                              ? policy_names()
                              : std::vector<std::string>{
                                    "snapkv",         "ada_snapkv",  "criticalkv",    "criticalkv_gram",
                                    "ada_criticalkv", "defensivekv", "consensuskv",   "layer_defensivekv",
                                    "tova",           "h2o",         "streaming_llm", "key_diff",
                                    "random"};
    }
    if (chosen.tasks.empty()) {
        chosen.tasks =
            chosen.full ? every_task : std::vector<std::string>{"multikey", "multiquery", "multivalue"};
    }
    if (chosen.tokens.empty()) { chosen.tokens = {chosen.full ? 1024 : 512}; }
    if (chosen.samples == 0) { chosen.samples = chosen.full ? 64 : 16; }
    for (const std::string& name : chosen.policies) { static_cast<void>(policy_named(name)); }
}

bool check(const options& chosen, const llama_model& model) {
    const check_result result = check_against(chosen.reference_file, model);
    fmt::print("generator: {} of {} samples as recorded\n", result.samples - result.differing_samples,
               result.samples);
    fmt::print("model: {} of {} arg max as recorded, largest logit error {:.1e}\n",
               result.positions - result.differing_argmax, result.positions, result.max_logit_error);
    return result.ok();
}

// Sums of comparisons between policies on the same sample and ratio.
struct comparison_sums {
    double lower = 0, equal = 0, heads = 0;
    double common = 0, kept = 0;

    void add_errors(const cut_result& critical, const cut_result& snap) {
        for (std::size_t h = 0; h < critical.head_error_projected.size(); ++h) {
            lower += critical.head_error_projected[h] < snap.head_error_projected[h] ? 1 : 0;
            equal += critical.head_error_projected[h] == snap.head_error_projected[h] ? 1 : 0;
            ++heads;
        }
    }
    void add_overlap(const cut_result& exact, const cut_result& gram) {
        for (std::size_t layer = 0; layer < exact.plans.size(); ++layer) {
            for (kvtrim::index_t r = 0; r < exact.plans[layer].rows(); ++r) {
                const auto a = exact.plans[layer].row(r);
                const auto b = gram.plans[layer].row(r);
                std::vector<std::int32_t> both;
                std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(both));
                common += static_cast<double>(both.size());
                kept += static_cast<double>(a.size());
            }
        }
    }
};

void add_sample(result_row& row, const cut_result& result, double share) {
    row.accuracy += share * (result.correct ? 1 : 0);
    row.kept_mass += share * result.kept_mass;
    row.output_error += share * result.output_error;
    row.output_error_projected += share * result.output_error_projected;
    row.cache_bytes += share * result.cache_bytes;
    row.one_shot_peak_bytes += share * result.one_shot_peak_bytes;
    row.cascade_peak_bytes += share * result.cascade_peak_bytes;
    row.plan_seconds.score += share * result.plan_seconds.score;
    row.plan_seconds.allocate += share * result.plan_seconds.allocate;
    row.plan_seconds.select += share * result.plan_seconds.select;
    row.compact_seconds += share * result.compact_seconds;
    row.decode_seconds += share * result.decode_seconds;
}

// All policies and ratios on the samples of one task, setting and length.
class task_run {
  public:
    task_run(const options& chosen, cutter& cuts, std::map<std::pair<setting, double>, comparison_sums>& sums,
             progress_bar& progress)
        : chosen_(chosen), cuts_(cuts), sums_(sums), progress_(progress) {}

    std::vector<result_row> run(const llama_model& model, const std::string& task, index_t tokens,
                                setting when) {
        std::vector<result_row> rows;
        for (const double ratio : chosen_.kept_ratios) {
            for (const std::string& policy : chosen_.policies) {
                rows.push_back({.policy = policy,
                                .task = task,
                                .when = when,
                                .tokens = tokens,
                                .kept_ratio = ratio,
                                .samples = chosen_.samples});
            }
        }
        for (index_t i = 0; i < chosen_.samples; ++i) {
            const sample asked = make_sample(parse_task(task), tokens, chosen_.first_index + i);
            cut_all(prefill_sample(model, asked, when, chosen_.window_tokens), rows);
            progress_.step();
        }
        return rows;
    }

  private:
    void cut_all(const prefilled_sample& prepared, std::vector<result_row>& rows) {
        std::map<std::pair<std::string, double>, cut_result> results;
        for (result_row& row : rows) {
            cut_result result = cuts_.cut(prepared, policy_named(row.policy), row.kept_ratio);
            add_sample(row, result, 1.0 / static_cast<double>(row.samples));
            results[{row.policy, row.kept_ratio}] = std::move(result);
        }
        for (const double ratio : chosen_.kept_ratios) {
            const auto critical = results.find({"criticalkv", ratio});
            const auto snap = results.find({"snapkv", ratio});
            const auto gram = results.find({"criticalkv_gram", ratio});
            if (ratio == 1.0 || critical == results.end()) { continue; }
            comparison_sums& sums = sums_[{rows.front().when, ratio}];
            if (snap != results.end()) { sums.add_errors(critical->second, snap->second); }
            if (gram != results.end()) { sums.add_overlap(critical->second, gram->second); }
        }
    }

    const options& chosen_;
    cutter& cuts_;
    std::map<std::pair<setting, double>, comparison_sums>& sums_;
    progress_bar& progress_;
};

report evaluate_all(const options& chosen, const llama_model& model) {
    const auto start = std::chrono::steady_clock::now();
    cutter cuts(model);
    std::map<std::pair<setting, double>, comparison_sums> sums;
    report results{.first_index = chosen.first_index};
    progress_bar progress(std::ssize(chosen.settings) * std::ssize(chosen.tokens) * std::ssize(chosen.tasks) *
                          chosen.samples);
    for (const std::string& setting_name : chosen.settings) {
        const setting when = setting_name == "aware" ? setting::question_aware : setting::question_agnostic;
        for (const index_t tokens : chosen.tokens) {
            for (const std::string& task : chosen.tasks) {
                progress.begin(fmt::format("{} {} {}", setting_name, task, tokens));
                const auto rows = task_run(chosen, cuts, sums, progress).run(model, task, tokens, when);
                results.rows.insert(results.rows.end(), rows.begin(), rows.end());
            }
        }
    }
    progress.done();
    for (const auto& [key, s] : sums) {
        results.comparisons.push_back({.when = key.first,
                                       .kept_ratio = key.second,
                                       .lower_error = s.heads > 0 ? s.lower / s.heads : 0,
                                       .equal_error = s.heads > 0 ? s.equal / s.heads : 0,
                                       .gram_overlap = s.kept > 0 ? s.common / s.kept : 0,
                                       .has_errors = s.heads > 0,
                                       .has_overlap = s.kept > 0});
    }
    results.seconds = lm::seconds_since(start);
    return results;
}

int run(options chosen) {
    if (chosen.generate) {
        fill_in_generation(chosen);
    } else {
        fill_in(chosen);
    }
    if (!chosen.json_file.empty()) { expect_json_can_be_written(chosen.json_file); }
    if (!chosen.plot_file.empty()) { expect_plot_can_be_drawn(chosen.plot_file); }
    const llama_model model = load_safetensors(chosen.model_file);
    if (!check(chosen, model)) {
        fmt::print(stderr, "needle: results differ from the recorded ones\n");
        return 1;
    }
    if (chosen.check_only) { return 0; }
    if (chosen.prefill) {
        prefill_options pruning = chosen.pruning;
        pruning.tasks = chosen.tasks;
        pruning.tokens = chosen.tokens;
        pruning.samples = chosen.samples;
        pruning.first_index = chosen.first_index;
        const std::vector<prefill_row> rows = evaluate_prefill(model, pruning);
        print_prefill_tables(rows);
        if (!chosen.json_file.empty()) { write_prefill_json(rows, pruning, chosen.json_file); }
        return 0;
    }
    if (chosen.generate) {
        const std::vector<generation_row> rows = evaluate_generation(model, chosen.generation);
        print_generation_tables(rows, chosen.generation);
        if (!chosen.json_file.empty()) { write_generation_json(rows, chosen.generation, chosen.json_file); }
        return 0;
    }
    const report results = evaluate_all(chosen, model);
    print_tables(results);
    if (!chosen.json_file.empty()) { write_json(results, chosen.json_file); }
    if (!chosen.plot_file.empty()) { write_plot(results, chosen.plot_file); }
    return 0;
}

void add_options(CLI::App& app, options& chosen) {
    const std::vector<std::string> tasks{task_names.begin(), task_names.end()};
    app.add_flag("--full", chosen.full, "all tasks, 1024 tokens and 64 samples where not chosen otherwise");
    app.add_option("--policies", chosen.policies, "policies to compare; default thirteen of them")
        ->delimiter(',')
        ->check(CLI::IsMember(names_in_any_mode()));
    app.add_option("--tasks", chosen.tasks,
                   "tasks; default multikey, multiquery, multivalue; of generation multiquery")
        ->delimiter(',')
        ->check(CLI::IsMember(tasks));
    app.add_option("--settings", chosen.settings, "is the question known at the cut? default both")
        ->delimiter(',')
        ->check(CLI::IsMember({"aware", "agnostic"}));
    app.add_option("--tokens", chosen.tokens,
                   "haystack lengths; default 512, of generation 1024; the model is good up to 4096")
        ->delimiter(',')
        ->check(CLI::Range(min_haystack_tokens, max_haystack_tokens));
    app.add_option("--ratios", chosen.kept_ratios, "shares of the cache to keep; default 1, 0.5, 0.2, 0.1")
        ->delimiter(',')
        ->check([](const std::string& text) {
            double ratio = 0;
            const bool valid = CLI::detail::lexical_cast(text, ratio) && kvtrim::valid_ratio(ratio).ok();
            return valid ? std::string{} : "a ratio must be above 0 and at most 1: " + text;
        });
    app.add_option("--samples", chosen.samples, "samples per task; default 16; of generation 2")
        ->check(CLI::PositiveNumber);
    app.add_option("--first-index", chosen.first_index, "first sample; default 0")
        ->check(CLI::NonNegativeNumber);
    app.add_option("--window", chosen.window_tokens, "observation window, question-agnostic; default 32")
        ->check(CLI::PositiveNumber);
    auto* const prefill =
        app.add_flag("--prefill", chosen.prefill, "measure prefill through pruned attention, not eviction");
    app.add_option("--budgets", chosen.pruning.budgets,
                   "cache tokens per KV head and segment; default 32, 64, 128, 256")
        ->delimiter(',')
        ->check(CLI::PositiveNumber)
        ->needs(prefill);
    app.add_option("--segment", chosen.pruning.segment_tokens, "queries that share a plan; default 64")
        ->check(CLI::PositiveNumber)
        ->needs(prefill);
    app.add_option("--block", chosen.pruning.block_tokens, "keys kept or skipped together; default 16")
        ->check(CLI::PositiveNumber)
        ->needs(prefill);
    auto* const generate = app.add_flag("--generate", chosen.generate,
                                        "measure generation, and prefill in chunks, with a cache under a cap")
                               ->excludes(prefill);
    app.add_option("--caps", chosen.generation.caps, "most cached tokens per KV head; default 128, 256, 512")
        ->delimiter(',')
        ->check(CLI::PositiveNumber)
        ->needs(generate);
    app.add_option("--chunk", chosen.generation.chunk_tokens,
                   "prompt tokens that come at a time, and room that a cut makes; default 64")
        ->check(CLI::PositiveNumber)
        ->needs(generate);
    app.add_option("--generated", chosen.generation.generated_tokens,
                   "answer tokens per sequence; default 256")
        ->check(CLI::PositiveNumber)
        ->needs(generate);
    app.add_option("--json", chosen.json_file, "write all results to this file");
    app.add_option("--plot", chosen.plot_file, "draw accuracy against cache size into this .svg or .png file")
        ->excludes(prefill)
        ->excludes(generate);
    app.add_option("--model", chosen.model_file, "weights, instead of the project's");
    app.add_option("--reference", chosen.reference_file, "recorded results, instead of the project's");
    app.add_flag("--check-only", chosen.check_only, "stop after the comparison with the recorded results");
}

} // namespace

int main(int argc, char** argv) {
    options chosen;
    CLI::App app{"Retrieval accuracy of a small real model whose KV cache kvtrim has cut"};
    add_options(app, chosen);
    CLI11_PARSE(app, argc, argv);
    try {
        return run(chosen);
    } catch (const std::exception& error) {
        fmt::print(stderr, "needle: {}\n", error.what());
        return 1;
    }
}
