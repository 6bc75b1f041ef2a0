// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// A layer of 640 tokens and what kvtrim makes of it, each as one file of floats: the peers' formulas must agree, so
// that the suite compares like with like.

#include "../layer.hpp"
#include "peers.hpp"

#include <filesystem>
#include <fstream>
#include <stdexcept>

namespace bench {

namespace {

constexpr index_t tokens = 640;

void require(const kvtrim::status& s) {
    if (!s.ok()) { throw std::runtime_error(s.what()); }
}

template <class Aggregator>
std::vector<float> scores_of(const layer<float>& data) {
    const index_t columns = tokens - window;
    const kvtrim::window_attention<Aggregator> scorer{};
    const auto offsets = even_offsets(kv_heads, columns);
    std::vector<float> importance(static_cast<std::size_t>(kv_heads * columns)), attention(importance.size());
    std::vector<float> mass(kv_heads);
    kvtrim::growing_workspace memory;
    kvtrim::workspace scratch = memory.of_bytes(scorer.workspace_bytes(data.inputs(), data.request()));
    kvtrim::serial_executor ex;
    require(scorer.score(data.inputs(), data.request(), {offsets, importance, attention, mass}, scratch, ex));
    return importance;
}

std::vector<float> norms_of(const layer<float>& data) {
    const auto in = data.inputs().with_output_projection(data.output_projection());
    const auto offsets = even_offsets(kv_heads, tokens);
    std::vector<float> norms(static_cast<std::size_t>(kv_heads * tokens));
    kvtrim::growing_workspace memory;
    kvtrim::workspace scratch = memory.of_bytes(kvtrim::projected_value_norms_bytes(in));
    kvtrim::serial_executor ex;
    require(kvtrim::projected_value_norms(in, {}, kvtrim::score_rows{offsets, norms}, scratch, ex));
    return norms;
}

std::vector<float> budgets_of(std::vector<float> scores) {
    const auto offsets = even_offsets(kv_heads, tokens);
    std::vector<index_t> budgets(kv_heads);
    kvtrim::growing_workspace memory;
    kvtrim::workspace scratch = memory.of_bytes(4096);
    require(kvtrim::adaptive{}.allocate(kvtrim::score_rows{offsets, scores}, kv_heads * (tokens / 5), budgets,
                                        scratch));
    return {budgets.begin(), budgets.end()};
}

} // namespace

int write_reference_data(const std::string& folder) {
    std::filesystem::create_directories(folder);
    const auto write = [&](const std::string& name, const std::vector<float>& values) {
        std::ofstream out(std::filesystem::path(folder) / (name + ".bin"), std::ios::binary);
        out.write(reinterpret_cast<const char*>(values.data()),
                  static_cast<std::streamsize>(values.size() * sizeof(float)));
        if (!out.flush()) { throw std::runtime_error("cannot write " + name); }
    };
    layer<float> data(tokens);
    for (float& x : data.q) { x *= 8; } // attention with peaks
    write("k", data.k);
    write("v", data.v);
    write("q", data.q);
    write("w_o", output_weights<float>());
    write("snapkv", scores_of<kvtrim::mean_attention>(data));
    write("defensive", scores_of<kvtrim::worst_case_attention>(data));
    write("norms", norms_of(data));

    const std::vector<float> given = attention_like_scores(tokens);
    write("given", given);
    write("budgets", budgets_of(given));
    const kvtrim::eviction_policy policy{
        kvtrim::given_scores{kvtrim::strided(given.data(), {kv_heads, tokens})}, kvtrim::uniform{},
        kvtrim::by_importance{}};
    kvtrim::keep_plan plan;
    kvtrim::growing_workspace memory;
    require(policy.plan(kvtrim::layer(data.keys()), {.budget = kvtrim::per_head(tokens / 5)}, plan, memory));
    write("kept", {plan.kept().begin(), plan.kept().end()});
    std::vector<float> gathered(static_cast<std::size_t>(plan.total_tokens() * head_dim));
    require(kvtrim::gather(data.keys(), plan, std::span(gathered)));
    write("gathered", gathered);
    return 0;
}

} // namespace bench
