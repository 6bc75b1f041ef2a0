// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Studies of kvtrim's own choices on the recall model, question unseen: many variants on the same scores.
//
//   consensus   how much of its layer's opinion a head should take (score/consensus.hpp), with which allocator and reranker
//   floor       how much of an even share every row should keep when all layers compete (policy/layers.hpp)
//
// A sample is prefilled and scored once; each variant then only allocates, selects, cuts the caches for real and answers.

#include "engine.hpp"
#include "load_model.hpp"
#include "report.hpp"
#include "require.hpp"
#include "samples.hpp"

#include <kvtrim/adapter/eigen.hpp>
#include <kvtrim/kvtrim.hpp>

#include <CLI/CLI.hpp>
#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <fstream>
#include <functional>
#include <map>
#include <stdexcept>

#ifndef NEEDLE_DATA_DIR
#define NEEDLE_DATA_DIR "data"
#endif

namespace {

using lm::require;

using namespace needle;
using view = kvtrim::strided<const float, 3>;

constexpr index_t sink_tokens = 4;
constexpr index_t window_tokens = 32;

// Scores of one layer's candidates, as a policy's scorer left them.
struct recorded_scores {
    std::vector<float> importance;
    std::vector<float> attention;
    std::vector<float> protected_mass;
};

// Gives recorded scores back.
struct replay {
    const recorded_scores* recorded = nullptr;

    static constexpr bool writes_attention = true;

    template <class Inputs, class Executor>
    [[nodiscard]] kvtrim::status score(const Inputs&, const kvtrim::eviction_request&,
                                       const kvtrim::token_scores& out, kvtrim::workspace&, Executor&) const {
        std::copy(recorded->importance.begin(), recorded->importance.end(), out.importance.begin());
        std::copy(recorded->attention.begin(), recorded->attention.end(), out.attention.begin());
        std::copy(recorded->protected_mass.begin(), recorded->protected_mass.end(),
                  out.protected_mass.begin());
        return {};
    }
};

struct scored_layer {
    view keys;
    recorded_scores defensive; // DefensiveKV: worst case times the head-normalised norm
    recorded_scores snap;      // SnapKV: mean attention
    recorded_scores critical;  // CriticalKV: mean attention times the norm
};

// Plans of all layers from their scores.
using variant = std::function<void(std::span<const scored_layer>, const kvtrim::eviction_request&,
                                   kvtrim::growing_workspace&, std::span<kvtrim::keep_plan>)>;
using scores_of = recorded_scores scored_layer::*;

template <class Allocator, class Reranker>
variant per_layer(scores_of which, float lambda, const Allocator& allocator, const Reranker& reranker) {
    return [=](std::span<const scored_layer> layers, const kvtrim::eviction_request& request,
               kvtrim::growing_workspace& memory, std::span<kvtrim::keep_plan> plans) {
        for (std::size_t l = 0; l < layers.size(); ++l) {
            const replay scores{&(layers[l].*which)};
            const auto in = kvtrim::layer(layers[l].keys);
            if (lambda < 0) { // scores as they are
                const kvtrim::eviction_policy policy{scores, allocator, reranker};
                require(policy.plan(in, request, plans[l], memory));
            } else {
                const kvtrim::eviction_policy policy{kvtrim::consensus<replay>{scores, lambda}, allocator,
                                                     reranker};
                require(policy.plan(in, request, plans[l], memory));
            }
        }
    };
}

// All (layer, KV head) rows compete, every row keeps its safeguard.
template <class Reranker>
variant over_layers(scores_of which, double safeguard_ratio, const Reranker& reranker) {
    return [=](std::span<const scored_layer> layers, const kvtrim::eviction_request& request,
               kvtrim::growing_workspace& memory, std::span<kvtrim::keep_plan> plans) {
        const auto count = static_cast<kvtrim::index_t>(layers.size());
        kvtrim::layer_cascade cascade(0, 0);
        for (std::size_t l = 0; l < layers.size(); ++l) {
            const kvtrim::layer_wise policy{kvtrim::eviction_policy{
                replay{&(layers[l].*which)}, kvtrim::adaptive{.safeguard_ratio = safeguard_ratio}, reranker}};
            const auto in = kvtrim::layer(layers[l].keys);
            if (l == 0) { cascade = policy.begin(in, request, count); }
            require(policy.push(in, request, count, cascade, memory));
        }
        const kvtrim::protection& protect = request.protect;
        for (std::size_t l = 0; l < layers.size(); ++l) {
            const auto layer = static_cast<kvtrim::index_t>(l);
            std::vector<kvtrim::index_t> counts;
            for (kvtrim::index_t r = 0; r < cascade.rows(layer); ++r) {
                counts.push_back(protect.prefix() + std::ssize(cascade.kept(layer, r)) + protect.suffix());
            }
            require(plans[l].reset(counts));
            const kvtrim::index_t tokens = layers[l].keys.extent(1);
            for (kvtrim::index_t r = 0; r < cascade.rows(layer); ++r) {
                auto next = plans[l].writable_row(r).begin();
                for (kvtrim::index_t t = 0; t < protect.prefix(); ++t) {
                    *next++ = static_cast<std::int32_t>(t);
                }
                for (const auto c : cascade.kept(layer, r)) {
                    *next++ = static_cast<std::int32_t>(protect.prefix()) + c;
                }
                for (kvtrim::index_t t = tokens - protect.suffix(); t < tokens; ++t) {
                    *next++ = static_cast<std::int32_t>(t);
                }
            }
        }
    };
}

// lambda < 0 leaves the scores as they are; 0 makes heads comparable, which matters where they compete.
std::vector<std::pair<std::string, variant>> consensus_variants(const std::vector<double>& lambdas) {
    const scores_of snap = &scored_layer::snap;
    const scores_of critical = &scored_layer::critical;
    const scores_of defensive = &scored_layer::defensive;
    const kvtrim::uniform even;
    const kvtrim::adaptive ada;
    const kvtrim::by_importance one;
    const kvtrim::two_stage two;
    const kvtrim::two_stage_by_mass by_mass{.first_at_most = 0.5};
    std::vector<std::pair<std::string, variant>> variants{
        {"snapkv", per_layer(snap, -1, even, one)},
        {"ada_snapkv", per_layer(snap, -1, ada, one)},
        {"criticalkv", per_layer(critical, -1, even, two)},
        {"defensivekv", per_layer(defensive, -1, kvtrim::adaptive{.safeguard_ratio = 0}, by_mass)},
        {"snapkv, one set for all heads", per_layer(snap, 0, even, kvtrim::shared{})},
        {"defensivekv, one set for all heads", per_layer(defensive, 0, even, kvtrim::shared{})}};
    for (const double l : lambdas) {
        const auto lambda = static_cast<float>(l);
        variants.emplace_back(fmt::format("snapkv, lambda {:g}", l), per_layer(snap, lambda, even, one));
        variants.emplace_back(fmt::format("ada_snapkv, lambda {:g}", l), per_layer(snap, lambda, ada, one));
        variants.emplace_back(fmt::format("criticalkv, lambda {:g}", l),
                              per_layer(critical, lambda, even, two));
        variants.emplace_back(fmt::format("defensivekv, lambda {:g}", l),
                              per_layer(defensive, lambda, even, one));
    }
    return variants;
}

std::vector<std::pair<std::string, variant>> floor_variants() {
    std::vector<std::pair<std::string, variant>> variants{
        {"ada_snapkv", per_layer(&scored_layer::snap, -1, kvtrim::adaptive{}, kvtrim::by_importance{})},
        {"defensivekv", per_layer(&scored_layer::defensive, -1, kvtrim::adaptive{.safeguard_ratio = 0},
                                  kvtrim::two_stage_by_mass{.first_at_most = 0.5})},
        {"defensivekv, floor 0.2",
         per_layer(&scored_layer::defensive, -1, kvtrim::adaptive{.safeguard_ratio = 0.2},
                   kvtrim::two_stage_by_mass{.first_at_most = 0.5})}};
    for (const double floor : {0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9}) {
        variants.emplace_back(fmt::format("layer_ada_snapkv, floor {:g}", floor),
                              over_layers(&scored_layer::snap, floor, kvtrim::by_importance{}));
        variants.emplace_back(
            fmt::format("layer_defensivekv, floor {:g}", floor),
            over_layers(&scored_layer::defensive, floor, kvtrim::two_stage_by_mass{.first_at_most = 0.5}));
    }
    return variants;
}

// ---- Samples ----

template <class Policy, class Inputs>
recorded_scores record(const Policy& policy, const Inputs& in, const kvtrim::eviction_request& request,
                       kvtrim::growing_workspace& memory) {
    recorded_scores scores;
    kvtrim::keep_plan ignored;
    require(policy.plan(
        in, request, ignored, memory, kvtrim::serial_executor{}, [&](const kvtrim::plan_progress& at) {
            if (at.stage != kvtrim::plan_stage::scored) { return; }
            const auto attention = at.scores.attention.empty() ? at.scores.importance : at.scores.attention;
            scores.importance.assign(at.scores.importance.begin(), at.scores.importance.end());
            scores.attention.assign(attention.begin(), attention.end());
            scores.protected_mass.assign(at.scores.protected_mass.begin(), at.scores.protected_mass.end());
        }));
    return scores;
}

class studied_sample {
  public:
    studied_sample(const llama_model& model, const sample& from, kvtrim::growing_workspace& memory)
        : model_(model), flat_(flatten(from)), cached_(std::ssize(from.haystack)) {
        prefill(model, std::span(flat_.tokens).first(static_cast<std::size_t>(cached_)),
                [&](index_t, attention_inputs inputs) { inputs_.push_back(std::move(inputs)); });
        kvtrim::eviction_request request = request_for(cached_ / 2);
        for (std::size_t l = 0; l < inputs_.size(); ++l) {
            const attention_inputs& x = inputs_[l];
            const auto in = kvtrim::layer(rows_of(x.keys, 0, cached_), rows_of(x.values, 0, cached_))
                                .with_queries(rows_of(x.queries, cached_ - window_tokens, window_tokens))
                                .with_output_projection(kvtrim::output_projection(model.layers[l].wo.floats(),
                                                                                  x.queries.heads()));
            scored_.push_back({in.keys, record(kvtrim::defensivekv(), in, request, memory),
                               record(kvtrim::snapkv(), in, request, memory),
                               record(kvtrim::criticalkv(), in, request, memory)});
        }
    }

    [[nodiscard]] static kvtrim::eviction_request request_for(index_t budget) {
        return {.budget = kvtrim::per_head(budget),
                .protect = {.sink_tokens = sink_tokens,
                            .window_tokens = std::min(window_tokens, budget - sink_tokens)}};
    }

    // Whether every answer is right after the cut.
    [[nodiscard]] bool answers(const variant& make_plans, double kept_ratio,
                               kvtrim::growing_workspace& memory) const {
        std::vector<kvtrim::keep_plan> plans(inputs_.size());
        make_plans(scored_, request_for(kvtrim::kept_tokens(cached_, kept_ratio)), memory, plans);
        std::vector<kv_cache> caches;
        for (std::size_t l = 0; l < inputs_.size(); ++l) {
            caches.emplace_back(cache_rows(inputs_[l].keys, 0, cached_),
                                cache_rows(inputs_[l].values, 0, cached_), plans[l]);
        }
        const auto rest = std::span(flat_.tokens).subspan(static_cast<std::size_t>(cached_));
        const matrix logits = decode(model_, caches, rest.first(rest.size() - 1), cached_);
        for (const index_t position : flat_.answer_positions) {
            index_t best = 0;
            logits.row(position - cached_ - 1).maxCoeff(&best);
            if (best != flat_.tokens[static_cast<std::size_t>(position)]) { return false; }
        }
        return true;
    }

  private:
    const llama_model& model_;
    flat_sample flat_;
    index_t cached_;
    std::vector<attention_inputs> inputs_;
    std::vector<scored_layer> scored_;
};

struct options {
    std::string study = "consensus";
    std::vector<double> lambdas{0.5};
    std::vector<std::string> tasks{"single", "multikey", "multiquery", "multivalue"};
    std::vector<index_t> tokens{1024};
    std::vector<double> kept_ratios{0.5, 0.3, 0.2, 0.1, 0.05};
    index_t samples = 64;
    index_t first_index = 1000;
    std::string json_file;
};

void run(const options& chosen) {
    const llama_model model = load_safetensors(NEEDLE_DATA_DIR "/recall.safetensors");
    const auto variants = chosen.study == "floor" ? floor_variants() : consensus_variants(chosen.lambdas);
    nlohmann::json rows = nlohmann::json::array();
    kvtrim::growing_workspace memory;
    progress_bar progress(std::ssize(chosen.tokens) * std::ssize(chosen.tasks) * chosen.samples);
    std::map<std::tuple<index_t, double, std::size_t, std::string>, double> accuracy;
    for (const index_t tokens : chosen.tokens) {
        for (const std::string& task : chosen.tasks) {
            progress.begin(fmt::format("{} {}", task, tokens));
            for (index_t i = 0; i < chosen.samples; ++i) {
                progress.step();
                const studied_sample prepared(
                    model, make_sample(parse_task(task), tokens, chosen.first_index + i), memory);
                for (const double ratio : chosen.kept_ratios) {
                    for (std::size_t v = 0; v < variants.size(); ++v) {
                        accuracy[{tokens, ratio, v, task}] +=
                            prepared.answers(variants[v].second, ratio, memory) ? 1 : 0;
                    }
                }
            }
        }
        for (const double ratio : chosen.kept_ratios) {
            fmt::print("\n{} tokens, {:g} % kept, {} samples a task from index {}\n\n| variant |", tokens,
                       100 * ratio, chosen.samples, chosen.first_index);
            for (const std::string& task : chosen.tasks) { fmt::print(" {} |", task); }
            fmt::print(" mean |\n|---|");
            for (std::size_t t = 0; t <= chosen.tasks.size(); ++t) { fmt::print("---|"); }
            for (std::size_t v = 0; v < variants.size(); ++v) {
                fmt::print("\n| {} |", variants[v].first);
                double sum = 0;
                for (const std::string& task : chosen.tasks) {
                    const double share =
                        accuracy[{tokens, ratio, v, task}] / static_cast<double>(chosen.samples);
                    sum += share;
                    fmt::print(" {:.2f} |", share);
                    rows.push_back({{"variant", variants[v].first},
                                    {"task", task},
                                    {"tokens", tokens},
                                    {"kept_ratio", ratio},
                                    {"samples", chosen.samples},
                                    {"first_index", chosen.first_index},
                                    {"accuracy", share}});
                }
                fmt::print(" {:.3f} |", sum / static_cast<double>(chosen.tasks.size()));
            }
            fmt::print("\n");
            std::fflush(stdout);
        }
    }
    progress.done();
    if (chosen.json_file.empty()) { return; }
    std::ofstream out(chosen.json_file);
    out << nlohmann::json{{"study", chosen.study}, {"rows", rows}}.dump(2) << '\n';
    if (!out.flush()) { throw std::runtime_error("cannot write " + chosen.json_file); }
}

} // namespace

int main(int argc, char** argv) {
    options chosen;
    CLI::App app{"Studies of kvtrim's own choices on the recall model, question unseen, as Markdown tables"};
    const std::vector<std::string> tasks{task_names.begin(), task_names.end()};
    app.add_option("study", chosen.study)
        ->check(CLI::IsMember({"consensus", "floor"}))
        ->capture_default_str();
    app.add_option("--lambdas", chosen.lambdas)->delimiter(',')->check(CLI::NonNegativeNumber);
    app.add_option("--tasks", chosen.tasks)->delimiter(',')->check(CLI::IsMember(tasks));
    app.add_option("--tokens", chosen.tokens)
        ->delimiter(',')
        ->check(CLI::Range(min_haystack_tokens, max_haystack_tokens));
    app.add_option("--ratios", chosen.kept_ratios)->delimiter(',')->check(CLI::Range(0.01, 1.0));
    app.add_option("--samples", chosen.samples)->check(CLI::PositiveNumber);
    app.add_option("--first-index", chosen.first_index)->check(CLI::NonNegativeNumber);
    app.add_option("--json", chosen.json_file);
    CLI11_PARSE(app, argc, argv);
    try {
        run(chosen);
    } catch (const std::exception& error) {
        fmt::print(stderr, "study: {}\n", error.what());
        return 1;
    }
    return 0;
}
