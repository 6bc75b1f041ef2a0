// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The layer that every benchmark measures: the shape of one Llama-3.1-8B attention layer, with seeded random data.
// Random queries and keys say nothing about quality; for that, see the demo.

#include <kvtrim/kvtrim.hpp>

#include <benchmark/benchmark.h>

#include <chrono>
#include <string>
#include <vector>

namespace bench {

using kvtrim::index_t;

inline constexpr index_t q_heads = 32;
inline constexpr index_t kv_heads = 8;
inline constexpr index_t head_dim = 128;
inline constexpr index_t hidden = 4096;
inline constexpr index_t window = 32;

// Uniform in [-0.5, 0.5), as elements of T.
template <class T>
std::vector<T> random_elements(index_t count, std::uint32_t seed) {
    std::vector<T> out(static_cast<std::size_t>(count));
    std::uint32_t state = seed * 2654435761u + 1u;
    for (T& x : out) {
        state = state * 1664525u + 1013904223u;
        x = kvtrim::element_traits<T>::from_float(static_cast<float>(state >> 8) * 0x1p-24f - 0.5f);
    }
    return out;
}

template <class T>
struct layer {
    index_t tokens;
    std::vector<T> k, v, q, w_o;

    explicit layer(index_t token_count)
        : tokens(token_count), k(random_elements<T>(kv_heads * tokens * head_dim, 1)),
          v(random_elements<T>(kv_heads * tokens * head_dim, 2)),
          q(random_elements<T>(q_heads * window * head_dim, 3)),
          w_o(random_elements<T>(q_heads * head_dim * hidden, 4)) {}

    kvtrim::strided<const T, 3> keys() const { return {k.data(), {kv_heads, tokens, head_dim}}; }
    kvtrim::strided<const T, 3> values() const { return {v.data(), {kv_heads, tokens, head_dim}}; }
    kvtrim::strided<const T, 3> queries() const { return {q.data(), {q_heads, window, head_dim}}; }
    kvtrim::strided<const T, 3> output_projection() const {
        return {w_o.data(), {q_heads, head_dim, hidden}};
    }
    auto inputs() const { return kvtrim::layer(keys(), values()).with_queries(queries()); }
    kvtrim::eviction_request request() const {
        return {.budget = kvtrim::per_head(tokens / 5), .protect = {.window_tokens = window}};
    }
};

// Scores like attention: a few large, most small; [kv_heads, tokens].
inline std::vector<float> attention_like_scores(index_t tokens) {
    auto scores = random_elements<float>(kv_heads * tokens, 5);
    for (float& s : scores) {
        const float u = (s + 0.5f) * (s + 0.5f);
        s = u * u * u * u;
    }
    return scores;
}

inline void check(benchmark::State& state, const kvtrim::status& s) {
    if (!s.ok()) { state.SkipWithError(s.what()); }
}

// Work done per iteration, as rates.
inline void rates(benchmark::State& state, double flops, double bytes) {
    if (flops > 0) { state.counters["flops"] = {flops, benchmark::Counter::kIsIterationInvariantRate}; }
    if (bytes > 0) { state.counters["bytes"] = {bytes, benchmark::Counter::kIsIterationInvariantRate}; }
}

// Runs one iteration of a row that would take too long: fn() does a share of the work, 1 / factor, and the time that the
// row shows is factor times fn()'s. Belongs to UseManualTime().
template <class Fn>
void scaled_iteration(benchmark::State& state, double factor, Fn&& fn) {
    const auto start = std::chrono::steady_clock::now();
    fn();
    state.SetIterationTime(factor *
                           std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
}

inline void token_counts(benchmark::internal::Benchmark* b) {
    b->ArgName("tokens")->Arg(8192)->Arg(32768)->Arg(131072)->Unit(benchmark::kMillisecond)->UseRealTime();
}

inline void scaled_token_counts(benchmark::internal::Benchmark* b) {
    b->ArgName("tokens")->Arg(8192)->Arg(32768)->Arg(131072)->Unit(benchmark::kMillisecond)->UseManualTime();
}

} // namespace bench
