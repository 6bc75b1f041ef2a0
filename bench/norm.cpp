// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Projected value norms: exact L1, the Gram form, and a naive loop.
// flops counts the product with W_O (L1) or with the Gram matrix (L2); bytes counts the values once.
// The exact form takes a minute from 32768 tokens on, the naive loop always: those rows measure a part of the heads (and
// tokens), show its time times the whole over that part, and say so in their label. Both costs are linear in either.

#include "layer.hpp"

#include <cmath>

namespace {

using namespace bench;

std::string scaled_label(index_t heads, index_t tokens, index_t all_tokens) {
    std::string label =
        "scaled from " + std::to_string(heads) + " of " + std::to_string(q_heads) + " query heads";
    if (tokens < all_tokens) {
        label += " and " + std::to_string(tokens) + " of " + std::to_string(all_tokens) + " tokens";
    }
    return label;
}

// The norms of the first `heads` query heads, as a share of the whole layer's.
template <class T, class Projection>
void norms(benchmark::State& state, const layer<T>& data, const Projection& projection, double flops,
           index_t heads) {
    const index_t groups = std::max<index_t>(1, heads * kv_heads / q_heads);
    const kvtrim::strided keys(data.k.data(), {groups, data.tokens, head_dim});
    const kvtrim::strided values(data.v.data(), {groups, data.tokens, head_dim});
    const auto in = kvtrim::layer(keys, values).with_output_projection(projection);
    std::vector<index_t> offsets;
    for (index_t g = 0; g <= groups; ++g) { offsets.push_back(g * data.tokens); }
    std::vector<float> out(static_cast<std::size_t>(groups * data.tokens));
    kvtrim::growing_workspace memory;
    kvtrim::serial_executor ex;
    const index_t bytes = kvtrim::projected_value_norms_bytes(in);
    const double factor = static_cast<double>(q_heads) / static_cast<double>(heads);
    for (auto _ : state) {
        scaled_iteration(state, factor, [&] {
            kvtrim::workspace scratch = memory.of_bytes(bytes);
            check(state,
                  kvtrim::projected_value_norms(in, {}, kvtrim::score_rows{offsets, out}, scratch, ex));
            benchmark::DoNotOptimize(out.data());
        });
    }
    rates(state, flops, static_cast<double>(data.v.size() * sizeof(T)));
    state.counters["workspace"] = static_cast<double>(bytes);
    if (heads < q_heads) { state.SetLabel(scaled_label(heads, data.tokens, data.tokens)); }
}

double products(index_t tokens, index_t columns) {
    return 2.0 * static_cast<double>(q_heads * tokens) * static_cast<double>(head_dim * columns);
}

template <class T>
void exact_l1(benchmark::State& state) {
    const layer<T> data(state.range(0));
    const index_t heads = data.tokens > 8192 ? 1 : q_heads;
    const kvtrim::strided w_o(data.w_o.data(), {heads, head_dim, hidden});
    norms(state, data, w_o, products(data.tokens, hidden), heads);
}

template <class T>
void gram_l2(benchmark::State& state) {
    const layer<T> data(state.range(0));
    const kvtrim::gram_projection gram(data.output_projection());
    norms(state, data, gram.view(), products(data.tokens, head_dim), q_heads);
}

// The textbook loop, over one query head and at most 8192 tokens.
void naive_l1(benchmark::State& state) {
    const layer<float> data(state.range(0));
    const index_t tokens = std::min<index_t>(8192, data.tokens);
    std::vector<float> out(static_cast<std::size_t>(tokens));
    const double factor = static_cast<double>(q_heads * data.tokens) / static_cast<double>(tokens);
    for (auto _ : state) {
        scaled_iteration(state, factor, [&] {
            std::fill(out.begin(), out.end(), 0.0f);
            for (index_t t = 0; t < tokens; ++t) {
                std::vector<float> projected(hidden, 0.0f);
                for (index_t d = 0; d < head_dim; ++d) {
                    const float v = data.v[static_cast<std::size_t>(t * head_dim + d)];
                    const float* w = &data.w_o[static_cast<std::size_t>(d * hidden)];
                    for (std::size_t c = 0; c < projected.size(); ++c) { projected[c] += v * w[c]; }
                }
                for (const float x : projected) { out[static_cast<std::size_t>(t)] += std::abs(x); }
            }
            benchmark::DoNotOptimize(out.data());
        });
    }
    rates(state, products(data.tokens, hidden), 0);
    state.SetLabel(scaled_label(1, tokens, data.tokens));
}

BENCHMARK(exact_l1<float>)->Name("norm/exact_l1_f32")->Apply(scaled_token_counts);
BENCHMARK(exact_l1<kvtrim::bf16>)->Name("norm/exact_l1_bf16")->Apply(scaled_token_counts);
BENCHMARK(gram_l2<float>)->Name("norm/gram_l2_f32")->Apply(scaled_token_counts);
BENCHMARK(gram_l2<kvtrim::bf16>)->Name("norm/gram_l2_bf16")->Apply(scaled_token_counts);
BENCHMARK(naive_l1)->Name("norm/naive_l1_f32")->Apply(scaled_token_counts);

} // namespace
