// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Projected value norms: exact L1, the Gram form, and a naive loop.
// flops counts the product with W_O (L1) or with the Gram matrix (L2); bytes counts the values once.
// The exact form takes seconds from 32768 tokens on; it runs at 8192 unless asked for more.

#include "layer.hpp"

#include <cmath>

namespace {

using namespace bench;

template <class T, class Projection>
void norms(benchmark::State& state, const layer<T>& data, const Projection& projection, double flops) {
    const auto in = kvtrim::layer(data.keys(), data.values()).with_output_projection(projection);
    std::vector<index_t> offsets;
    for (index_t g = 0; g <= kv_heads; ++g) { offsets.push_back(g * data.tokens); }
    std::vector<float> out(static_cast<std::size_t>(kv_heads * data.tokens));
    kvtrim::growing_workspace memory;
    kvtrim::serial_executor ex;
    const index_t bytes = kvtrim::projected_value_norms_bytes(in);
    for (auto _ : state) {
        kvtrim::workspace scratch = memory.of_bytes(bytes);
        check(state, kvtrim::projected_value_norms(in, {}, kvtrim::score_rows{offsets, out}, scratch, ex));
        benchmark::DoNotOptimize(out.data());
    }
    rates(state, flops, static_cast<double>(data.v.size() * sizeof(T)));
    state.counters["workspace"] = static_cast<double>(bytes);
}

double products(index_t tokens, index_t columns) {
    return 2.0 * static_cast<double>(q_heads * tokens) * static_cast<double>(head_dim * columns);
}

template <class T>
void exact_l1(benchmark::State& state) {
    const layer<T> data(state.range(0));
    norms(state, data, data.output_projection(), products(data.tokens, hidden));
}

template <class T>
void gram_l2(benchmark::State& state) {
    const layer<T> data(state.range(0));
    const kvtrim::gram_projection gram(data.output_projection());
    norms(state, data, gram.view(), products(data.tokens, head_dim));
}

// The textbook loop over 64 tokens of each head; the rate is what compares.
void naive_l1(benchmark::State& state) {
    constexpr index_t tokens = 64;
    const layer<float> data(tokens);
    std::vector<float> out(static_cast<std::size_t>(kv_heads * tokens));
    for (auto _ : state) {
        std::fill(out.begin(), out.end(), 0.0f);
        for (index_t h = 0; h < q_heads; ++h) {
            const index_t g = h / (q_heads / kv_heads);
            for (index_t t = 0; t < tokens; ++t) {
                std::vector<float> projected(hidden, 0.0f);
                for (index_t d = 0; d < head_dim; ++d) {
                    const float v = data.v[static_cast<std::size_t>((g * tokens + t) * head_dim + d)];
                    const float* w = &data.w_o[static_cast<std::size_t>((h * head_dim + d) * hidden)];
                    for (std::size_t c = 0; c < projected.size(); ++c) { projected[c] += v * w[c]; }
                }
                for (const float x : projected) {
                    out[static_cast<std::size_t>(g * tokens + t)] += std::abs(x);
                }
            }
        }
        benchmark::DoNotOptimize(out.data());
    }
    rates(state, products(tokens, hidden), 0);
}

BENCHMARK(exact_l1<float>)->Name("norm/exact_l1_f32")->Apply(shortest);
BENCHMARK(exact_l1<kvtrim::bf16>)->Name("norm/exact_l1_bf16")->Apply(shortest);
BENCHMARK(gram_l2<float>)->Name("norm/gram_l2_f32")->Apply(token_counts);
BENCHMARK(gram_l2<kvtrim::bf16>)->Name("norm/gram_l2_bf16")->Apply(token_counts);
BENCHMARK(naive_l1)->Name("norm/naive_l1_f32/tokens:64")->Unit(benchmark::kMillisecond)->UseRealTime();

} // namespace
