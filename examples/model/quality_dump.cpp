// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "quality_dump.hpp"

#include "parity_plans.hpp"

#include <kvtrim/adapter/eigen.hpp>
#include <kvtrim/score/projected_value_norms.hpp>

#include <nlohmann/json.hpp>

#include <fstream>
#include <stdexcept>
#include <utility>

namespace lm {
namespace {

void put(std::ofstream& out, const float* data, index_t count) {
    out.write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(count) * 4);
}
void put(std::ofstream& out, const head_tensor& t) {
    put(out, t.data(), t.heads() * t.tokens() * t.head_dim());
}

void close(std::ofstream& out, const std::string& name) {
    out.close();
    if (!out) { throw std::runtime_error(name + ": cannot be written"); }
}

// Policies by name, and whether the method itself has sinks.
constexpr std::pair<const char*, bool> compared_policies[] = {
    {"snapkv", false},     {"snapkv:pool=none", false}, {"ada_snapkv", false},
    {"criticalkv", false}, {"ada_criticalkv", false},   {"tova", false},
    {"key_diff", false},   {"key_norm", false},         {"lagkv", false},
    {"pyramidkv", false},  {"streaming_llm", true},     {"expected_attention", true},
};

} // namespace

void dump_prompt(const llama_model& model, const std::vector<token_id>& prompt,
                 const quality_request& request, const std::string& folder) {
    const model_config& c = model.config;
    const index_t tokens = std::ssize(prompt);
    const prefill_result whole = prefill(model, prompt);
    const rope_table rope = make_rope_table(c, 0, tokens);

    std::vector<matrix> projections;
    std::vector<kvtrim::gram_projection> grams;
    std::vector<layer_prompt> layers;
    for (std::size_t l = 0; l < whole.layers.size(); ++l) {
        projections.push_back(model.layers[l].wo.decoded());
        grams.emplace_back(kvtrim::output_projection(projections[l], c.q_heads));
        const attention_inputs& in = whole.layers[l];
        const std::string name = folder + "/layer_" + std::to_string(l) + ".f32";
        std::ofstream out(name, std::ios::binary);
        put(out, before_rotation(in.queries, rope));
        put(out, in.keys);
        put(out, in.values);
        put(out, projections[l].data(), projections[l].size());
        close(out, name);
    }
    const std::vector<replayed_part> replays =
        replay_prompt(model, prompt, whole.layers, request.aids.replay_lead);
    nlohmann::json parts = nlohmann::json::array();
    for (std::size_t i = 0; i < replays.size(); ++i) {
        const std::string name = folder + "/replay_" + std::to_string(i) + ".f32";
        const index_t fed = replays[i].layers.front().keys.tokens();
        const rope_table behind = make_rope_table(c, tokens, fed);
        std::ofstream out(name, std::ios::binary);
        for (const attention_inputs& in : replays[i].layers) {
            put(out, before_rotation(in.queries, behind));
            put(out, in.keys);
        }
        close(out, name);
        parts.push_back({replays[i].first, replays[i].count, fed});
    }
    for (std::size_t l = 0; l < whole.layers.size(); ++l) {
        const attention_inputs& in = whole.layers[l];
        const auto gram_floats = static_cast<std::size_t>(c.q_heads * c.head_dim * c.head_dim);
        layers.push_back({.config = c,
                          .keys = {in.keys, 0, tokens},
                          .values = {in.values, 0, tokens},
                          .queries = rows_of(in.queries),
                          .wo = {projections[l].data(), projections[l].rows(), projections[l].cols()},
                          .gram = {grams[l].view().data, gram_floats},
                          .tokens = tokens,
                          .window_tokens = std::min(request.window_tokens, tokens),
                          .stream_power = static_cast<float>(in.stream.array().square().inverse().mean())});
    }

    nlohmann::json plans = nlohmann::json::array();
    for (parity_plan& plan : parity_plans(c, whole.layers, replays, request)) {
        plans.push_back({{"policy", plan.policy},
                         {"kept_ratio", plan.kept_ratio},
                         {"sink_tokens", plan.sink_tokens},
                         {"window_tokens", plan.window_tokens},
                         {"threshold", plan.threshold},
                         {"shares", plan.shares},
                         {"kept", std::move(plan.kept)}});
    }
    kvtrim::growing_workspace memory;
    for (const auto& [name, has_sinks] : compared_policies) {
        const named_policy& policy = policy_named(name);
        for (const double share : request.kept_ratios) {
            const kvtrim::eviction_request cut{.budget = kvtrim::per_head(kvtrim::kept_tokens(tokens, share)),
                                               .protect = {.sink_tokens = has_sinks ? request.sink_tokens : 0,
                                                           .window_tokens = request.window_tokens}};
            std::vector<kvtrim::keep_plan> kept(layers.size());
            stage_seconds ignored;
            policy.plan(layers, cut, memory, kept, ignored);
            nlohmann::json rows = nlohmann::json::array();
            for (const kvtrim::keep_plan& plan : kept) {
                for (index_t h = 0; h < plan.rows(); ++h) { rows.push_back(plan.row(h)); }
            }
            plans.push_back({{"policy", name},
                             {"kept_ratio", share},
                             {"sink_tokens", cut.protect.sink_tokens},
                             {"window_tokens", cut.protect.window_tokens},
                             {"kept", std::move(rows)}});
        }
    }
    const nlohmann::json all{{"layers", c.layers},           {"q_heads", c.q_heads},
                             {"kv_heads", c.kv_heads},       {"head_dim", c.head_dim},
                             {"d_model", c.d_model},         {"tokens", tokens},
                             {"frequencies", c.frequencies}, {"replay_parts", std::move(parts)},
                             {"plans", std::move(plans)}};
    const std::string name = folder + "/plans.json";
    std::ofstream out(name);
    out << all << '\n';
    close(out, name);
}

} // namespace lm
