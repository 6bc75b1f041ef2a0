// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "sparse_prefill.hpp"

#include "engine.hpp"
#include "require.hpp"
#include "seconds_since.hpp"

#include <kvtrim/policy/critiprefill.hpp>
#include <kvtrim/prefill/block_sparse_attention.hpp>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <map>
#include <stdexcept>

namespace needle {
namespace {

using lm::require;

using output_view = kvtrim::strided<float, 3>;

// Heads side by side: [q_heads, tokens, head_dim] inside the engine's own [tokens, q_heads * head_dim].
output_view heads_of(matrix& attended, index_t q_heads) {
    const index_t head_dim = attended.cols() / q_heads;
    return {attended.data(), {q_heads, attended.rows(), head_dim}, {head_dim, attended.cols(), 1}};
}

template <class Fn>
double seconds(Fn&& fn) {
    const auto start = std::chrono::steady_clock::now();
    fn();
    return lm::seconds_since(start);
}

// The model's attention through a prune plan; sums what it measures.
class pruned_attention {
  public:
    pruned_attention(const std::string& policy, const prefill_options& chosen, index_t budget_tokens)
        : policy_(policy), options_{.segment_tokens = chosen.segment_tokens,
                                    .block_tokens = chosen.block_tokens,
                                    .budget_tokens = budget_tokens,
                                    .dense_below_tokens = 0} {}

    matrix attend(index_t layer, const attention_inputs& inputs) {
        const index_t q_heads = inputs.queries.heads();
        const index_t kv_heads = inputs.keys.heads();
        const auto in =
            kvtrim::layer(rows_of(inputs.keys), rows_of(inputs.values)).with_queries(rows_of(inputs.queries));
        const kvtrim::segment_grid grid{options_.segment_tokens, options_.block_tokens, 0,
                                        inputs.queries.tokens()};
        kvtrim::prune_plan dense;
        require(kvtrim::plan_dense(grid, kv_heads, dense));

        matrix attended(inputs.queries.tokens(), q_heads * inputs.queries.head_dim());
        std::vector<float> mass(static_cast<std::size_t>(q_heads * inputs.queries.tokens()));
        const auto run = [&](const kvtrim::prune_plan& plan, matrix& out, std::vector<float>& log_sum_exp) {
            require(
                kvtrim::block_sparse_attention(in, plan, {}, heads_of(out, q_heads), log_sum_exp, memory_));
        };
        const bool is_pruned = policy_ != "dense" && layer >= options_.dense_layers;
        const bool counts = layer >= options_.dense_layers; // dense attention is timed on the same layers
        if (!is_pruned) {
            const double time = seconds([&] { run(dense, attended, mass); });
            if (counts) { add(time, 0, 1, 1, 0); }
            return attended;
        }
        const double plan_time = seconds([&] { plan_layer(layer, inputs, plan_); });
        const double time = seconds([&] { run(plan_, attended, mass); });
        matrix exact(attended.rows(), attended.cols());
        std::vector<float> exact_mass(mass.size());
        run(dense, exact, exact_mass);
        double kept = 0;
        for (std::size_t i = 0; i < mass.size(); ++i) {
            kept += std::exp(static_cast<double>(mass[i] - exact_mass[i]));
        }
        const double error = static_cast<double>((attended - exact).cwiseAbs().sum()) /
                             static_cast<double>(exact.cwiseAbs().sum());
        add(time, plan_time, plan_.planned_pairs() / plan_.dense_pairs(),
            kept / static_cast<double>(mass.size()), error);
        return attended;
    }

    void add_to(prefill_row& row, double share) const {
        const double layers = std::max(1.0, layers_);
        row.attention_seconds += share * attention_seconds_;
        row.plan_seconds += share * plan_seconds_;
        row.work_share += share * work_share_ / layers;
        row.kept_mass += share * kept_mass_ / layers;
        row.output_error += share * output_error_ / layers;
    }

  private:
    void plan_layer(index_t layer, const attention_inputs& inputs, kvtrim::prune_plan& plan) {
        const auto with = [&](auto policy) {
            policy.options = options_;
            require(policy.plan(rows_of(inputs.queries), rows_of(inputs.keys), {.layer = layer}, fusion_,
                                plan, memory_));
        };
        if (policy_ == "critiprefill_bound") {
            with(kvtrim::critiprefill_bound());
        } else if (policy_ == "ada_critiprefill") {
            with(kvtrim::ada_critiprefill());
        } else {
            with(kvtrim::critiprefill());
        }
    }

    void add(double time, double plan_time, double share, double mass, double error) {
        ++layers_;
        attention_seconds_ += time;
        plan_seconds_ += plan_time;
        work_share_ += share;
        kept_mass_ += mass;
        output_error_ += error;
    }

    std::string policy_;
    kvtrim::pruning_options options_;
    kvtrim::layer_fusion fusion_;
    kvtrim::prune_plan plan_;
    kvtrim::growing_workspace memory_;
    double layers_ = 0;
    double attention_seconds_ = 0, plan_seconds_ = 0, work_share_ = 0, kept_mass_ = 0, output_error_ = 0;
};

void evaluate_sample(const llama_model& model, const sample& asked, const prefill_options& chosen,
                     prefill_row& row) {
    const flat_sample flat = flatten(asked);
    const auto prompt_tokens = std::ssize(asked.haystack) + std::ssize(asked.turns.at(0).question);
    const std::span<const token_id> all(flat.tokens);
    pruned_attention attention(row.policy, chosen, row.budget_tokens);
    std::vector<kv_cache> caches;
    const matrix last = prefill(
        model, all.first(static_cast<std::size_t>(prompt_tokens)),
        [&](index_t, attention_inputs inputs) { caches.push_back(whole_cache(inputs)); }, logit_rows::last,
        [&](index_t layer, const attention_inputs& inputs) { return attention.attend(layer, inputs); });
    const auto decoded = std::ssize(flat.tokens) - 1 - prompt_tokens; // nothing is asked after the last token
    matrix logits(1 + decoded, model.config.vocabulary);
    logits.row(0) = last.row(0);
    if (decoded > 0) {
        logits.bottomRows(decoded) =
            decode(model, caches,
                   all.subspan(static_cast<std::size_t>(prompt_tokens), static_cast<std::size_t>(decoded)),
                   prompt_tokens);
    }
    bool correct = true;
    for (const index_t position : flat.answer_positions) {
        index_t best = 0;
        logits.row(position - prompt_tokens).maxCoeff(&best);
        correct = correct && best == flat.tokens[static_cast<std::size_t>(position)];
    }
    const double share = 1.0 / static_cast<double>(row.samples);
    row.accuracy += share * (correct ? 1 : 0);
    attention.add_to(row, share);
}

} // namespace

std::vector<std::string> prefill_policy_names() {
    return {"dense", "critiprefill", "critiprefill_bound", "ada_critiprefill"};
}

std::vector<prefill_row> evaluate_prefill(const llama_model& model, const prefill_options& chosen) {
    std::vector<prefill_row> rows;
    progress_bar progress(std::ssize(chosen.tokens) * std::ssize(chosen.tasks) * chosen.samples);
    for (const index_t tokens : chosen.tokens) {
        for (const std::string& task : chosen.tasks) {
            progress.begin(fmt::format("prefill {} {}", task, tokens));
            const auto first = rows.size();
            for (const std::string& policy : prefill_policy_names()) {
                for (const index_t budget : policy == "dense" ? std::vector<index_t>{0} : chosen.budgets) {
                    rows.push_back({.policy = policy,
                                    .task = task,
                                    .tokens = tokens,
                                    .budget_tokens = budget,
                                    .samples = chosen.samples});
                }
            }
            for (index_t i = 0; i < chosen.samples; ++i) {
                const sample asked = make_sample(parse_task(task), tokens, chosen.first_index + i);
                for (auto row = rows.begin() + static_cast<std::ptrdiff_t>(first); row != rows.end(); ++row) {
                    evaluate_sample(model, asked, chosen, *row);
                }
                progress.step();
            }
        }
    }
    progress.done();
    return rows;
}

void print_prefill_tables(const std::vector<prefill_row>& rows) {
    std::vector<std::string> tasks;
    std::vector<index_t> lengths;
    std::vector<std::pair<std::string, index_t>> lines;
    for (const prefill_row& r : rows) {
        const auto note = [](auto& list, const auto& value) {
            if (std::find(list.begin(), list.end(), value) == list.end()) { list.push_back(value); }
        };
        note(tasks, r.task);
        note(lengths, r.tokens);
        note(lines, std::pair(r.policy, r.budget_tokens));
    }
    fmt::print("\nPrefill of haystack and question through kvtrim's attention. work: share of the query-key "
               "pairs in "
               "pruned\nlayers; mass, error: attention kept and relative L1 error of a pruned layer's "
               "output; times in "
               "milliseconds\nper sample, pruned layers.\n");
    for (const index_t tokens : lengths) {
        fmt::print("\nprefill, {} tokens\n{:20}{:>8}", tokens, "policy", "budget");
        for (const std::string& task : tasks) { fmt::print("{:>11}", task); }
        fmt::print("{:>8}{:>8}{:>8}{:>8}{:>8}{:>11}\n", "mean", "work", "mass", "error", "plan", "attention");
        for (const auto& [policy, budget] : lines) {
            std::map<std::string, double> accuracy;
            prefill_row mean;
            double count = 0;
            for (const prefill_row& r : rows) {
                if (r.policy != policy || r.budget_tokens != budget || r.tokens != tokens) { continue; }
                accuracy[r.task] = r.accuracy;
                ++count;
                mean.accuracy += r.accuracy;
                mean.work_share += r.work_share;
                mean.kept_mass += r.kept_mass;
                mean.output_error += r.output_error;
                mean.plan_seconds += r.plan_seconds;
                mean.attention_seconds += r.attention_seconds;
            }
            fmt::print("{:20}{:>8}", policy, budget == 0 ? "all" : std::to_string(budget));
            for (const std::string& task : tasks) { fmt::print("{:>11.3f}", accuracy[task]); }
            fmt::print("{:>8.3f}{:>8.3f}{:>8.3f}{:>8.3f}{:>8.2f}{:>11.2f}\n", mean.accuracy / count,
                       mean.work_share / count, mean.kept_mass / count, mean.output_error / count,
                       1e3 * mean.plan_seconds / count, 1e3 * mean.attention_seconds / count);
        }
    }
}

void write_prefill_json(const std::vector<prefill_row>& rows, const prefill_options& chosen,
                        const std::string& file) {
    nlohmann::json list = nlohmann::json::array();
    for (const prefill_row& r : rows) {
        list.push_back({{"policy", r.policy},
                        {"task", r.task},
                        {"tokens", r.tokens},
                        {"budget_tokens", r.budget_tokens},
                        {"samples", r.samples},
                        {"accuracy", r.accuracy},
                        {"work_share", r.work_share},
                        {"kept_mass", r.kept_mass},
                        {"output_error", r.output_error},
                        {"plan_seconds", r.plan_seconds},
                        {"attention_seconds", r.attention_seconds}});
    }
    std::ofstream out(file);
    out << nlohmann::json{{"first_index", chosen.first_index},
                          {"segment_tokens", chosen.segment_tokens},
                          {"block_tokens", chosen.block_tokens},
                          {"prefill_rows", list}}
               .dump(2)
        << '\n';
    if (!out.flush()) { throw std::runtime_error("cannot write " + file); }
}

} // namespace needle
