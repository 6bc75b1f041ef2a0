// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Scoring: window attention with each aggregator, scores without a window, and a naive loop beside them.
// flops counts one product of window queries and keys, where there are any; bytes counts the keys once. No two keys
// are similar, so that redundancy searches all it may.

#include "layer.hpp"

#include <cmath>

namespace {

using namespace bench;

double key_flops(index_t tokens) {
    return 2.0 * static_cast<double>(q_heads * window) * static_cast<double>(tokens * head_dim);
}

template <class T>
double key_bytes(index_t tokens) {
    return static_cast<double>(kv_heads * tokens * head_dim) * static_cast<double>(sizeof(T));
}

template <class T, class Scorer>
void score(benchmark::State& state, const Scorer& scorer) {
    const layer<T> data(state.range(0));
    const auto in = data.inputs();
    const auto request = data.request();
    const index_t columns = kvtrim::candidates(request.protect, data.tokens).size();
    std::vector<index_t> offsets;
    for (index_t g = 0; g <= kv_heads; ++g) { offsets.push_back(g * columns); }
    std::vector<float> importance(static_cast<std::size_t>(kv_heads * columns)), attention(importance.size());
    std::vector<float> mass(kv_heads);
    kvtrim::growing_workspace memory;
    kvtrim::serial_executor ex;
    const index_t bytes = scorer.workspace_bytes(in, request);
    for (auto _ : state) {
        kvtrim::workspace scratch = memory.of_bytes(bytes);
        check(state, scorer.score(in, request, {offsets, importance, attention, mass}, scratch, ex));
        benchmark::DoNotOptimize(importance.data());
    }
    constexpr bool reads_queries = requires {
        scorer.aggregator;
    };
    rates(state, reads_queries ? key_flops(data.tokens) : 0, key_bytes<T>(data.tokens));
    state.counters["workspace"] = static_cast<double>(bytes);
}

// The textbook loop: all logits of a query row in an array, softmax, mean; no pooling.
void naive_snapkv(benchmark::State& state) {
    const layer<float> data(state.range(0));
    std::vector<float> importance(static_cast<std::size_t>(kv_heads * data.tokens));
    std::vector<float> row(static_cast<std::size_t>(data.tokens));
    for (auto _ : state) {
        std::fill(importance.begin(), importance.end(), 0.0f);
        for (index_t h = 0; h < q_heads; ++h) {
            const index_t g = h / (q_heads / kv_heads);
            for (index_t i = 0; i < window; ++i) {
                const float* q = &data.q[static_cast<std::size_t>((h * window + i) * head_dim)];
                const index_t visible = data.tokens - window + i + 1;
                float largest = -INFINITY;
                for (index_t t = 0; t < visible; ++t) {
                    const float* k = &data.k[static_cast<std::size_t>((g * data.tokens + t) * head_dim)];
                    float dot = 0;
                    for (index_t d = 0; d < head_dim; ++d) { dot += q[d] * k[d]; }
                    row[static_cast<std::size_t>(t)] = dot / std::sqrt(static_cast<float>(head_dim));
                    largest = std::max(largest, row[static_cast<std::size_t>(t)]);
                }
                float sum = 0;
                for (index_t t = 0; t < visible; ++t) {
                    float& x = row[static_cast<std::size_t>(t)];
                    x = std::exp(x - largest);
                    sum += x;
                }
                for (index_t t = 0; t < visible; ++t) {
                    importance[static_cast<std::size_t>(g * data.tokens + t)] +=
                        row[static_cast<std::size_t>(t)] / sum;
                }
            }
        }
        benchmark::DoNotOptimize(importance.data());
    }
    rates(state, key_flops(data.tokens), key_bytes<float>(data.tokens));
}

// What expected attention asks of the prefill: the statistics of `tokens` queries in chunks of 512.
void query_statistics(benchmark::State& state) {
    constexpr index_t chunk = 512;
    const auto q = random_elements<float>(q_heads * chunk * head_dim, 6);
    const kvtrim::strided<const float, 3> queries(q.data(), {q_heads, chunk, head_dim});
    kvtrim::query_statistics statistics(q_heads, head_dim);
    kvtrim::growing_workspace memory;
    kvtrim::workspace scratch = memory.of_bytes(statistics.workspace_bytes());
    for (auto _ : state) {
        for (index_t t = 0; t < state.range(0); t += chunk) {
            check(state, statistics.add(queries, scratch));
        }
    }
    const double products = static_cast<double>(q_heads * state.range(0)) * head_dim * head_dim;
    rates(state, 2 * products, 0);
}

void expected_attention(benchmark::State& state, bool use_covariance) {
    const auto q = random_elements<float>(q_heads * 512 * head_dim, 6);
    kvtrim::query_statistics statistics(q_heads, head_dim);
    kvtrim::growing_workspace memory;
    kvtrim::workspace scratch = memory.of_bytes(statistics.workspace_bytes());
    check(state, statistics.add(kvtrim::strided(q.data(), {q_heads, 512, head_dim}), scratch));
    const std::vector<float> frequencies(head_dim / 2, 0.01f);
    score<float>(state, kvtrim::expected_attention_score{&statistics, {frequencies}, 512, use_covariance});
}

const kvtrim::window_attention<kvtrim::mean_attention> snapkv{};
const kvtrim::window_attention<kvtrim::worst_case_attention> defensive{};

template <class Scorer>
void score_f32(benchmark::State& state, const Scorer& scorer) {
    score<float>(state, scorer);
}
template <class Scorer>
void score_bf16(benchmark::State& state, const Scorer& scorer) {
    score<kvtrim::bf16>(state, scorer);
}

template <class Scorer>
void score_f16(benchmark::State& state, const Scorer& scorer) {
    score<kvtrim::f16>(state, scorer);
}

BENCHMARK_CAPTURE(score_f32, snapkv, snapkv)->Apply(token_counts);
BENCHMARK_CAPTURE(score_bf16, snapkv, snapkv)->Apply(token_counts);
BENCHMARK_CAPTURE(score_f16, snapkv, snapkv)->Apply(token_counts);
BENCHMARK_CAPTURE(score_f32, defensive, defensive)->Apply(token_counts);
BENCHMARK_CAPTURE(score_bf16, defensive, defensive)->Apply(token_counts);
BENCHMARK_CAPTURE(score_f16, defensive, defensive)->Apply(token_counts);
BENCHMARK_CAPTURE(score_f32, key_norm, kvtrim::key_norm_score{})->Apply(token_counts);
BENCHMARK_CAPTURE(score_bf16, key_norm, kvtrim::key_norm_score{})->Apply(token_counts);
BENCHMARK_CAPTURE(score_f32, lag, kvtrim::lag_score{})->Apply(token_counts);
BENCHMARK_CAPTURE(score_f32, redundancy, kvtrim::redundancy_aware<kvtrim::recency>{})->Apply(token_counts);
BENCHMARK(query_statistics)->Name("score_f32/query_statistics")->Apply(token_counts);
BENCHMARK_CAPTURE(expected_attention, covariance, true)
    ->Name("score_f32/expected_attention")
    ->Apply(token_counts);
BENCHMARK_CAPTURE(expected_attention, mean, false)->Name("score_f32/expected_mean_only")->Apply(token_counts);
BENCHMARK(naive_snapkv)->Name("score_f32/naive_snapkv")->Apply(token_counts);

} // namespace
