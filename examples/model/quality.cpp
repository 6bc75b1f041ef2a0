// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// What policies keep of a real model's abilities: needles, running text, output errors. ./dev quality

#include "calibrate.hpp"
#include "load_model.hpp"
#include "policy_check.hpp"
#include "quality_dump.hpp"
#include "quality_report.hpp"
#include "quality_speed.hpp"
#include "seconds_since.hpp"
#include "threads.hpp"

#include <CLI/CLI.hpp>
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <fstream>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using namespace lm;

struct options {
    quality_request request{
        .policies = {"snapkv", "ada_snapkv", "criticalkv", "ada_criticalkv", "defensivekv",
                     "layer_defensivekv", "expected_attention", "lagkv", "key_diff", "streaming_llm",
                     "profiled", "replay_output", "replay_afar"},
        .kept_ratios = {0.5, 0.2, 0.1},
        .tasks = {"single", "multikey", "multiquery", "multivalue", "text"},
        .values = {needle_values::numbers, needle_values::words},
        .question_seen = {false, true},
        .tokens = {1024},
    };
    std::vector<std::string> values{"numbers", "words"};
    std::vector<std::string> questions{"unseen", "seen"};
    std::string cache = "f32";
    std::string model_file;
    std::string text_file;
    aid_files files;
    std::string json_file;
    std::vector<std::string> results;
    std::string plot_data;
    std::string dump_folder;
    std::string sample_file;
    bool check = false;
    bool speed = false;
    std::vector<index_t> prefill_budgets{256, 512, 1024};
    std::vector<std::string> prefill_options{""};
    index_t decode_steps = 64;
    std::string llama_speed;
};

// One line for each sample on stderr.
quality_progress progress_lines() {
    const auto start = std::chrono::steady_clock::now();
    return [start](index_t done, index_t all, const std::string& what) {
        const double seconds = seconds_since(start);
        const double left =
            done == 0 ? 0 : seconds / static_cast<double>(done) * static_cast<double>(all - done);
        fmt::print(stderr, "[{}/{}] {:.0f} s, about {:.0f} left: {}\n", done, all, seconds, left, what);
    };
}

// The text of one sample to a file, and each of its questions and the answer to it on lines of their own.
void write_sample(const sample_source& source, const tokenizer& words, const quality_request& request,
                  const std::string& file) {
    const needle_sample sample = source.needles(request.tasks.front(), request.values.front(),
                                                request.tokens.front(), request.first_seed);
    std::ofstream out(file, std::ios::binary);
    out << words.decode(sample.context);
    out.close();
    if (!out) { throw std::runtime_error(file + ": cannot be written"); }
    const auto line = [&](const std::vector<token_id>& tokens) {
        const std::string text = words.decode(tokens);
        return text.substr(std::min(text.find_first_not_of(" \n"), text.size()));
    };
    for (const asked_question& q : sample.questions) {
        fmt::print("{}\n{}\n", line(q.question), line(q.answer));
    }
}

int measure(options& chosen) {
    quality_request& request = chosen.request;
    std::optional<gguf> file;
    std::optional<tokenizer> words;
    std::unique_ptr<sample_source> source;
    llama_model model;
    quality_setting setting{chosen.model_file.substr(chosen.model_file.find_last_of('/') + 1), ""};
    if (chosen.model_file.ends_with(".safetensors")) { // the demo's, which has no words
        model = load_safetensors(chosen.model_file);
        source = recall_source();
    } else {
        file.emplace(chosen.model_file);
        model = load_model(*file);
        words.emplace(*file);
        if (words->size() > model.config.vocabulary) {
            file->fail("has more tokens than rows of its embedding");
        }
        const std::string data = MODEL_DATA_DIR;
        source = text_source(*words, chosen.text_file.empty() ? data + "/holmes.txt" : chosen.text_file,
                             chosen.text_file.empty() ? data + "/beagle.txt" : chosen.text_file);
    }
    setting.text = chosen.text_file.empty() ? source->description() : chosen.text_file;
    request.format = chosen.cache == "f32"   ? cache_format::f32
                     : chosen.cache == "f16" ? cache_format::f16
                                             : cache_format::q8_0;
    request.values.clear();
    for (const needle_values has : source->values()) {
        const std::string name = has == needle_values::numbers ? "numbers" : "words";
        if (std::find(chosen.values.begin(), chosen.values.end(), name) != chosen.values.end()) {
            request.values.push_back(has);
        }
    }
    request.question_seen.clear();
    for (const std::string& q : chosen.questions) { request.question_seen.push_back(q == "seen"); }
    for (const index_t tokens : request.tokens) {
        if (model.config.context > 0 && tokens + request.next_tokens > model.config.context) {
            throw std::runtime_error(fmt::format("{} tokens and what follows, but the model's context is {}",
                                                 tokens, model.config.context));
        }
    }
    if (!chosen.sample_file.empty()) {
        if (!words) { throw std::runtime_error("this model has no words"); }
        write_sample(*source, *words, request, chosen.sample_file);
        return 0;
    }
    if (words) { request.aids.replay_lead = replay_lead(*words); }
    if (!chosen.dump_folder.empty()) {
        const running_text text =
            source->text(request.tokens.front(), request.next_tokens, request.first_seed);
        dump_prompt(model, text.context, request, chosen.dump_folder);
        return 0;
    }
    model_table table;
    add_aids(request.aids, table, model, request.policies, chosen.files,
             [&] { return source->calibration(); });
    if (!table.origin.empty()) { fmt::print(stderr, "table of the model's rows: {}\n", table.origin); }
    std::ofstream out;
    if (!chosen.json_file.empty()) { // not after an hour
        out.open(chosen.json_file);
        if (!out.is_open()) { throw std::runtime_error(chosen.json_file + ": cannot be written"); }
    }
    const auto write = [&](const nlohmann::json& results) {
        if (!out.is_open()) { return; }
        out << results.dump(1) << '\n';
        out.close();
        if (!out) { throw std::runtime_error(chosen.json_file + ": cannot be written"); }
    };
    if (chosen.speed) {
        speed_request times{chosen.prefill_budgets, chosen.prefill_options, chosen.decode_steps, {}};
        for (const bool flash : {false, true}) {
            if (chosen.llama_speed.empty()) { break; }
            times.peers.push_back(
                {flash ? "libllama, flash attention" : "libllama",
                 fmt::format("'{}' -m '{}' --cache {} --threads {}{}", chosen.llama_speed, chosen.model_file,
                             chosen.cache, kvtrim::openmp_executor{}.workers(),
                             flash ? " --flash-attention" : "")});
        }
        const speed_results results = measure_speed(model, *source, request, times, progress_lines());
        nlohmann::json all = json_of(results);
        all["model"] = setting.model;
        all["cache"] = chosen.cache;
        all["threads"] = kvtrim::openmp_executor{}.workers();
        write(all);
        fmt::print("{}", tables_of(results));
        return 0;
    }
    const quality_results results = measure_quality(model, *source, request, progress_lines());
    write(json_of(results, setting, request));
    fmt::print("{}", tables_of(results));
    if (chosen.check) {
        const std::string wrong = check_whole_caches(results);
        if (!wrong.empty()) { throw std::runtime_error(wrong); }
    }
    return 0;
}

int show(const options& chosen) {
    quality_results results;
    for (const std::string& file : chosen.results) { read_results(file, results); }
    if (!chosen.plot_data.empty()) { write_plot_data(results, chosen.plot_data); }
    fmt::print("{}", tables_of(results));
    return 0;
}

} // namespace

int main(int argc, char** argv) {
    options chosen;
    quality_request& request = chosen.request;
    std::vector<std::string> tasks(all_needle_tasks.begin(), all_needle_tasks.end());
    tasks.insert(tasks.end(), {"text", "live"});

    CLI::App app{"What eviction policies keep of a model's abilities, against its full cache"};
    app.add_option("--model", chosen.model_file,
                   "a GGUF file of the LLaMA architecture, or the demo's .safetensors")
        ->check(CLI::ExistingFile);
    app.add_option("--policies", request.policies, "or all, those by shares with --shares")
        ->delimiter(',')
        ->check(is_policy() | CLI::IsMember({"all"}))
        ->capture_default_str();
    add_aid_files(app, chosen.files);
    app.add_option("--keep", request.kept_ratios, "shares of the cache that stay")
        ->delimiter(',')
        ->check(CLI::Range(1e-6, 1.0))
        ->capture_default_str();
    app.add_option("--tasks", request.tasks,
                   "text: running text behind the context; live: one that is longer than its cache, with "
                   "policies that cut while it grows (docs/quality.md names them); the others are needles")
        ->delimiter(',')
        ->check(CLI::IsMember(tasks))
        ->capture_default_str();
    app.add_option("--values", chosen.values, "of the needles")
        ->delimiter(',')
        ->check(CLI::IsMember({"numbers", "words"}))
        ->capture_default_str();
    app.add_option("--question", chosen.questions, "unseen: the cut comes before it")
        ->delimiter(',')
        ->check(CLI::IsMember({"unseen", "seen"}))
        ->capture_default_str();
    app.add_option("--tokens", request.tokens, "lengths of the context")
        ->delimiter(',')
        ->check(CLI::Range(index_t{128}, index_t{1} << 20))
        ->capture_default_str();
    app.add_option("--samples", request.samples, "of each task")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_option("--seed", request.first_seed,
                   "of the first sample; below 1000: for choosing, from there: for judging")
        ->capture_default_str();
    app.add_option("--next", request.next_tokens, "tokens of running text that are predicted")
        ->check(CLI::Range(index_t{2}, index_t{1} << 16))
        ->capture_default_str();
    app.add_option("--text", chosen.text_file, "a text of your own, a paragraph a line")
        ->check(CLI::ExistingFile);
    app.add_option("--cache", chosen.cache, "format of keys and values")
        ->check(CLI::IsMember({"f32", "f16", "q8_0"}))
        ->capture_default_str();
    app.add_option("--window", request.window_tokens, "newest tokens that stay and are observed")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_option("--sinks", request.sink_tokens, "first tokens that stay")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    app.add_option("--json", chosen.json_file, "writes the results there");
    app.add_flag("--speed", chosen.speed,
                 "measures time and memory instead: prefill by --prefill-budget, decoding by --keep");
    app.add_option("--prefill-budget", chosen.prefill_budgets, "of --speed, beside the dense prefill")
        ->delimiter(',')
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_option("--prefill-options", chosen.prefill_options,
                   "of --speed: CritiPrefill's, as OPTION=VALUE:..., each list at every budget; sink_blocks, "
                   "local_blocks, block_tokens, scale")
        ->delimiter(',');
    app.add_option("--decode-steps", chosen.decode_steps, "of --speed, for each share; 0: none")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    app.add_option("--llama-speed", chosen.llama_speed,
                   "of --speed: examples/llama_cpp/speed.cpp as a program, to be asked by turns")
        ->check(CLI::ExistingFile);
    app.add_flag("--check", chosen.check, "fails unless a cache that keeps everything loses nothing");
    app.add_option("--dump", chosen.dump_folder,
                   "measures nothing: writes the layers of one running text, and what the policies that "
                   "kvpress has too keep, to this folder")
        ->check(CLI::ExistingDirectory);
    app.add_option(
        "--write-sample", chosen.sample_file,
        "measures nothing: writes the text of one sample of needles (--tasks --values --tokens --seed) "
        "to this file, and prints its questions, each with the answer on the next line");
    app.add_option("--results", chosen.results, "measures nothing: tables of these files of --json")
        ->check(CLI::ExistingFile);
    app.add_option("--plot-data", chosen.plot_data, "of --results: writes STEM.*.dat for quality.gnuplot");
    CLI11_PARSE(app, argc, argv);
    if (request.policies == std::vector<std::string>{"all"}) {
        request.policies.clear();
        for (const named_policy& p : all_policies()) {
            if (!p.needs_shares || !chosen.files.shares.empty()) { request.policies.push_back(p.name); }
        }
    }
    try {
        if (!chosen.results.empty()) { return show(chosen); }
        if (chosen.model_file.empty()) { throw std::runtime_error("--model is missing"); }
        return measure(chosen);
    } catch (const std::exception& error) {
        fmt::print(stderr, "quality: {}\n", error.what());
        return 1;
    }
}
