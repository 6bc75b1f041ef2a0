// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// What a cache with a cap costs per generated token, and what it saves: decode attention over 20 % of 32768 tokens instead
// of all. One layer, one thread; a cut every 512 tokens.
//
//   attention   ragged_attention over all tokens, and over the kept ones (time: per token)
//   reading     the floor of any such attention: keys and values read once
//   state       what is done for every token: the query ring, positions, running sums (time: per token)
//   interval    an interval of 512 tokens: the state of each, and one cut with its compaction. Time is per token; saved_ms
//               is the attention it saves per token, measured by turns in the same loop; overhead_percent of it is spent.

#include "layer.hpp"

#include <Eigen/Core>

#include <cmath>

namespace {

using namespace bench;

constexpr index_t prompt_tokens = 32768;
constexpr index_t kept_tokens = prompt_tokens / 5;
constexpr index_t buffer_tokens = 512;

// out [q_heads, head_dim] for one token's queries [q_heads, head_dim].
template <class View>
kvtrim::status decode_attention(const View& keys, const View& values, const std::vector<float>& queries,
                                std::vector<float>& out, kvtrim::growing_workspace& memory) {
    const kvtrim::strided<const float, 3> q(queries.data(), {q_heads, 1, head_dim});
    const kvtrim::strided<float, 3> to(out.data(), {q_heads, 1, head_dim});
    const auto s = kvtrim::ragged_attention(kvtrim::layer(keys, values).with_queries(q), {}, to, {}, memory);
    benchmark::DoNotOptimize(out.data());
    return s;
}

// A capped cache in the middle of its life, with room for heads that take more than others.
template <class T>
struct capped_cache {
    static constexpr index_t slots = 2 * kept_tokens;

    std::vector<T> k = random_elements<T>(kv_heads * slots * head_dim, 1);
    std::vector<T> v = random_elements<T>(kv_heads * slots * head_dim, 2);
    std::vector<float> q = random_elements<float>(q_heads * head_dim, 3);
    std::vector<float> weights =
        std::vector<float>(static_cast<std::size_t>(kv_heads * slots), 1.0f / kept_tokens);
    kvtrim::cache_positions positions{kv_heads, slots};
    kvtrim::recent_queries<> queries{q_heads, window, head_dim};
    kvtrim::running_scores scores{kv_heads, 0, slots};
    kvtrim::keep_plan plan;
    kvtrim::growing_workspace memory;
    kvtrim::status ready; // of the constructor

    capped_cache() {
        const auto newest = random_elements<float>(q_heads * window * head_dim, 4);
        ready = positions.append(kept_tokens);
        if (ready.ok()) { ready = scores.append(kept_tokens); }
        if (ready.ok()) {
            ready = queries.append(kvtrim::strided(newest.data(), {q_heads, window, head_dim}));
        }
    }
    kvtrim::filled<T> view(std::vector<T>& data) {
        return {kvtrim::strided(data.data(), {kv_heads, slots, head_dim}), positions.lengths()};
    }
    kvtrim::strided<const float, 3> step_queries() const { return {q.data(), {q_heads, 1, head_dim}}; }

    kvtrim::status add_token(bool with_scores) {
        if (const auto s = positions.append(1); !s.ok()) { return s; }
        if (const auto s = queries.append(step_queries()); !s.ok() || !with_scores) { return s; }
        return add_scores(kvtrim::strided<const float, 2>(weights.data(), {kv_heads, slots}));
    }
    kvtrim::status add_scores(const kvtrim::strided<const float, 2>& attention) {
        const auto s = scores.append(1);
        return s.ok() ? scores.add(attention) : s;
    }
    template <class Policy>
    kvtrim::status cut(const Policy& policy, bool with_scores) {
        const kvtrim::interval_policy decode{
            policy,
            {.budget = kvtrim::per_head(kept_tokens), .protect = {.sink_tokens = 4, .window_tokens = window}},
            buffer_tokens};
        const auto in = kvtrim::layer(view(k), view(v)).with_queries(queries.view());
        if (const auto s = decode.plan(in, plan, memory); !s.ok()) { return s; }
        if (const auto s = kvtrim::compact_in_place(view(k), view(v), plan); !s.ok()) { return s; }
        if (const auto s = positions.compact(plan); !s.ok()) { return s; }
        return with_scores ? scores.compact(plan) : kvtrim::status{};
    }
};

// The last query head of the last KV head.
template <class T>
bool is_right(const layer<T>& data, const std::vector<float>& queries, const std::vector<float>& out) {
    const index_t rows = (kv_heads - 1) * data.tokens, query = (q_heads - 1) * head_dim;
    const auto read = [](const std::vector<T>& from, index_t i) {
        return static_cast<double>(kvtrim::element_traits<T>::to_float(from[static_cast<std::size_t>(i)]));
    };
    double sum = 0, distance = 0, expected[head_dim] = {};
    for (index_t t = rows; t < rows + data.tokens; ++t) {
        double logit = 0;
        for (index_t d = 0; d < head_dim; ++d) {
            logit += static_cast<double>(queries[static_cast<std::size_t>(query + d)]) *
                     read(data.k, t * head_dim + d);
        }
        const double weight = std::exp(logit / std::sqrt(static_cast<double>(head_dim)));
        sum += weight;
        for (index_t d = 0; d < head_dim; ++d) { expected[d] += weight * read(data.v, t * head_dim + d); }
    }
    for (index_t d = 0; d < head_dim; ++d) {
        const auto own = static_cast<double>(out[static_cast<std::size_t>(query + d)]);
        distance = std::max(distance, std::abs(own - expected[d] / sum));
    }
    return distance < 1e-4;
}

template <class T>
void attention(benchmark::State& state) {
    const auto& data = shared_layer<T>(state.range(0));
    const auto q = random_elements<float>(q_heads * head_dim, 3);
    std::vector<float> out(q.size());
    kvtrim::growing_workspace memory;
    check(state, decode_attention(data.keys(), data.values(), q, out, memory));
    if (!is_right(data, q, out)) { return state.SkipWithError("attention differs from a loop in double"); }
    for (auto _ : state) { check(state, decode_attention(data.keys(), data.values(), q, out, memory)); }
    describe(state, {.stages = {{.flops = 4.0 * q_heads * static_cast<double>(data.tokens * head_dim),
                                 .read_bytes = 2 * data.bytes_of_keys()}}});
}

// The floor of any decode attention: keys and values read once; 16-bit ones take as long as half as many tokens.
void reading(benchmark::State& state) {
    const auto& data = shared_layer<float>(state.range(0));
    for (auto _ : state) {
        float sum = 0;
        for (const auto* floats : {&data.k, &data.v}) {
            for (index_t g = 0; g < kv_heads; ++g) {
                const index_t count = data.tokens * head_dim;
                sum += Eigen::Map<const Eigen::ArrayXf>(floats->data() + g * count, count).sum();
            }
        }
        benchmark::DoNotOptimize(sum);
    }
    describe(state, {.stages = {{.read_bytes = 2 * data.bytes_of_keys()}}});
}

// The state of one token: fn(cache) answers a status.
template <class Fn>
void state_row(benchmark::State& state, Fn&& fn) {
    capped_cache<float> cache;
    check(state, cache.ready);
    for (auto _ : state) {
        check(state, fn(cache));
        state.PauseTiming(); // back to where it was
        if (cache.positions.total_tokens() > kv_heads * kept_tokens) {
            check(state, cache.positions.rollback(1));
        }
        if (cache.scores.tokens(0) >= kept_tokens + buffer_tokens) {
            cache.scores = kvtrim::running_scores(kv_heads);
        }
        if (cache.scores.tokens(0) == 0) { check(state, cache.scores.append(kept_tokens)); }
        state.ResumeTiming();
    }
}

void state_queries(benchmark::State& state) {
    state_row(state, [](auto& cache) { return cache.queries.append(cache.step_queries()); });
}
void state_positions(benchmark::State& state) {
    state_row(state, [](auto& cache) { return cache.positions.append(1); });
}
void state_scores_given(benchmark::State& state) {
    const std::vector<float> weights(static_cast<std::size_t>(q_heads * (kept_tokens + buffer_tokens)),
                                     1e-4f);
    const kvtrim::strided<const float, 2> attention(weights.data(), {q_heads, kept_tokens + buffer_tokens});
    state_row(state, [&](auto& cache) { return cache.add_scores(attention); });
}
// range(0) tokens' queries at a time; time is per call, per_token_ms what counts.
void state_scores_computed(benchmark::State& state) {
    const index_t batch = state.range(0);
    capped_cache<float> cache;
    check(state, cache.ready);
    const auto q = random_elements<float>(q_heads * batch * head_dim, 6);
    const kvtrim::strided<const float, 3> queries(q.data(), {q_heads, batch, head_dim});
    double seconds = 0;
    for (auto _ : state) {
        cache.scores = kvtrim::running_scores(kv_heads, 0, capped_cache<float>::slots);
        check(state, cache.scores.append(kept_tokens));
        const auto in = kvtrim::layer(cache.view(cache.k)).with_queries(queries);
        seconds += seconds_of([&] { check(state, cache.scores.update(in, {}, cache.memory)); });
    }
    state.counters["per_token_ms"] =
        1e3 * seconds / static_cast<double>(batch) / static_cast<double>(state.iterations());
}

// One interval of a capped cache beside the attention it saves, by turns; manual time: overhead per token.
template <class T, class MakePolicy>
void interval(benchmark::State& state, bool with_scores, MakePolicy&& make_policy) {
    const auto& whole = shared_layer<T>(prompt_tokens);
    capped_cache<T> cache;
    check(state, cache.ready);
    std::vector<float> out(static_cast<std::size_t>(q_heads * head_dim));
    kvtrim::growing_workspace memory;
    double saved = 0, overhead = 0;
    for (auto _ : state) {
        const double all = seconds_of(
            [&] { check(state, decode_attention(whole.keys(), whole.values(), cache.q, out, memory)); });
        double spent = 0, kept = 0;
        for (index_t i = 0; i < buffer_tokens; ++i) {
            spent += seconds_of([&] { check(state, cache.add_token(with_scores)); });
            if (i != buffer_tokens / 2) { continue; } // the mean length
            kept = seconds_of([&] {
                check(state,
                      decode_attention(cache.view(cache.k), cache.view(cache.v), cache.q, out, memory));
            });
        }
        spent += seconds_of([&] { check(state, cache.cut(make_policy(cache), with_scores)); });
        saved += all - kept;
        overhead += spent / buffer_tokens;
        state.SetIterationTime(spent / buffer_tokens);
    }
    state.counters["saved_ms"] = 1e3 * saved / static_cast<double>(state.iterations());
    state.counters["overhead_percent"] = 100 * overhead / saved;
}

template <class T>
void interval_streaming(benchmark::State& state) {
    interval<T>(state, false, [](auto&) { return kvtrim::streaming_llm(); });
}
template <class T>
void interval_snapkv(benchmark::State& state) {
    interval<T>(state, false, [](auto&) { return kvtrim::snapkv(); });
}
template <class T>
void interval_ada_snapkv(benchmark::State& state) {
    interval<T>(state, false, [](auto&) { return kvtrim::ada_snapkv(); });
}
template <class T>
void interval_running_h2o(benchmark::State& state) { // attention given by the engine
    interval<T>(state, true, [](auto& cache) {
        return kvtrim::eviction_policy{cache.scores.scorer(), kvtrim::adaptive{}, kvtrim::by_importance{}};
    });
}

void attention_lengths(benchmark::internal::Benchmark* b) {
    b->ArgName("tokens")
        ->Arg(kept_tokens)
        ->Arg(prompt_tokens)
        ->Arg(131072)
        ->Unit(benchmark::kMillisecond)
        ->UseRealTime();
}
void per_token(benchmark::internal::Benchmark* b) {
    b->Unit(benchmark::kMillisecond)->UseManualTime()->Iterations(8);
}
void few(benchmark::internal::Benchmark* b) {
    b->Unit(benchmark::kMicrosecond)->UseRealTime()->Iterations(4096);
}

BENCHMARK_TEMPLATE(attention, float)->Name("decode/attention_f32")->Apply(attention_lengths);
BENCHMARK_TEMPLATE(attention, kvtrim::f16)->Name("decode/attention_f16")->Apply(attention_lengths);
BENCHMARK_TEMPLATE(attention, kvtrim::bf16)->Name("decode/attention_bf16")->Apply(attention_lengths);
BENCHMARK(reading)->Name("decode/reading_f32")->Apply(attention_lengths);
BENCHMARK(state_queries)->Name("decode/state/recent_queries")->Apply(few);
BENCHMARK(state_positions)->Name("decode/state/cache_positions")->Apply(few);
BENCHMARK(state_scores_given)->Name("decode/state/running_scores_given")->Apply(few);
BENCHMARK(state_scores_computed)
    ->Name("decode/state/running_scores_computed")
    ->ArgName("queries")
    ->Arg(1)
    ->Arg(32)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK_TEMPLATE(interval_streaming, float)->Name("decode/interval_f32/streaming_llm")->Apply(per_token);
BENCHMARK_TEMPLATE(interval_running_h2o, float)
    ->Name("decode/interval_f32/running_h2o_given")
    ->Apply(per_token);
BENCHMARK_TEMPLATE(interval_snapkv, float)->Name("decode/interval_f32/snapkv")->Apply(per_token);
BENCHMARK_TEMPLATE(interval_ada_snapkv, float)->Name("decode/interval_f32/ada_snapkv")->Apply(per_token);
BENCHMARK_TEMPLATE(interval_ada_snapkv, kvtrim::bf16)
    ->Name("decode/interval_bf16/ada_snapkv")
    ->Apply(per_token);

} // namespace
