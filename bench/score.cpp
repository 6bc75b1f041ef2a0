// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Scoring: window attention with each aggregator, scores without a window, and a naive loop beside them.
// Limit: one product of window queries and keys, where there are any (three where outputs are asked), with the keys read once
// (LagKV: the values, too), or what the row's function says. No two keys are similar, so that redundancy searches all it may.
// Checked: window scores against the naive loop, levels against the portable one.

#include "../examples/custom_policy.hpp"
#include "scoring.hpp"

#include <cmath>
#include <type_traits>

namespace {

using namespace bench;

// The textbook loop: all logits of a query row in an array, softmax, mean; no pooling. For the first `heads` query heads;
// [kv_heads, tokens], the window's own columns included.
std::vector<float> naive_snapkv_scores(const layer<float>& data, index_t heads) {
    std::vector<float> importance(static_cast<std::size_t>(kv_heads * data.tokens));
    std::vector<float> row(static_cast<std::size_t>(data.tokens));
    for (index_t h = 0; h < heads; ++h) {
        const index_t g = h / group;
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
                    row[static_cast<std::size_t>(t)] / sum / static_cast<float>(group * window);
            }
        }
    }
    return importance;
}

void naive_snapkv(benchmark::State& state) {
    const auto& data = shared_layer<float>(state.range(0));
    const index_t heads = data.tokens > 8192 ? 1 : group;
    for (auto _ : state) {
        scaled_iteration(state, static_cast<double>(q_heads) / static_cast<double>(heads), [&] {
            const auto importance = naive_snapkv_scores(data, heads);
            benchmark::DoNotOptimize(importance.data());
        });
    }
    const std::string tokens = std::to_string(data.tokens);
    describe(state, {.note = "scaled from " + std::to_string(heads) + " of " + std::to_string(q_heads) +
                             " query heads",
                     .beside = "score_f32/snapkv/tokens:" + tokens + "/threads:1",
                     .level = "compiler's"});
}

const kvtrim::window_attention<kvtrim::mean_attention> snapkv{};
const kvtrim::window_attention<kvtrim::worst_case_attention> defensive{};
// The same mean by the library and by a third party, from the public pieces.
const kvtrim::window_attention<kvtrim::mean_attention> unpooled{{.pool = kvtrim::pooling::none}};
const kvtrim::window_attention<plain_mean> custom{};

constexpr index_t checked_tokens = 640;

// The mean of the window's attention, not pooled, as the naive loop has it.
const char* disagreement_with_naive_loop() {
    const layer<float> data(checked_tokens);
    const kvtrim::window_attention<kvtrim::mean_attention> scorer{{.kernel_tokens = 1}};
    scoring own(data.inputs(), data.request(), scorer);
    if (!own.run().ok()) { return "the checked layer was refused"; }
    const std::vector<float> all = naive_snapkv_scores(data, q_heads);
    std::vector<float> candidates;
    for (index_t g = 0; g < kv_heads; ++g) {
        const auto row = all.begin() + g * checked_tokens;
        candidates.insert(candidates.end(), row, row + checked_tokens - window);
    }
    return agree(own.importance(), candidates, 1e-4f) ? nullptr
                                                      : "window scores differ from the naive loop's";
}

// bf16 tiles round the queries; all else is float.
template <class T, class Scorer>
const char* disagreement_with_portable(const Scorer& scorer) {
    const layer<T> data(checked_tokens);
    scoring own(data.inputs(), data.request(), scorer), expected(data.inputs(), data.request(), scorer);
    bool is_done = own.run().ok();
    const at_level lowered(kvtrim::cpu_level::portable);
    is_done = is_done && expected.run().ok();
    return is_done && agree(own.importance(), expected.importance(), 1e-2f)
               ? nullptr
               : "scores differ from the portable level's";
}

template <class Scorer>
constexpr bool reads_queries = requires(const Scorer& scorer) {
    scorer.aggregator;
};
// Tensors as large as the keys: LagKV reads the values, too.
template <class Scorer>
constexpr double tensors_read = std::is_same_v<Scorer, kvtrim::lag_score> ? 2 : 1;

template <class T, class Scorer>
void score(benchmark::State& state, const Scorer& scorer, index_t thread_count = 1) {
    static const char* const wrong = disagreement_with_portable<T>(scorer);
    if (wrong != nullptr) { return state.SkipWithError(wrong); }
    const auto& data = shared_layer<T>(state.range(0));
    const threads ex{thread_count};
    scoring own(data.inputs(), data.request(), scorer);
    // Its memory is there, as from an engine's second layer on.
    if constexpr (reads_queries<Scorer>) { check(state, own.run(ex)); }
    for (auto _ : state) { check(state, own.run(ex)); }
    describe(state, {.stages = {products<T>(reads_queries<Scorer> ? window_flops(data.tokens) : 0,
                                            tensors_read<Scorer> * data.bytes_of_keys())},
                     .threads = ex.count,
                     .workspace_bytes = static_cast<double>(own.workspace_bytes())});
}

template <class T, class Scorer>
void window_score(benchmark::State& state, const Scorer& scorer) {
    static const char* const wrong = disagreement_with_naive_loop();
    if (wrong != nullptr) { return state.SkipWithError(wrong); }
    score<T>(state, scorer, state.range(1));
}

// A layer of a small model, SmolLM2-135M, and a short prompt.
void small_layer(benchmark::State& state) {
    constexpr index_t heads = 3, queries_of_head = 3, channels = 64;
    const index_t tokens = state.range(0);
    const auto k = random_elements<float>(heads * tokens * channels, 1);
    const auto q = random_elements<float>(heads * queries_of_head * window * channels, 3);
    const kvtrim::strided keys(k.data(), {heads, tokens, channels});
    const kvtrim::strided queries(q.data(), {heads * queries_of_head, window, channels});
    scoring own(kvtrim::layer(keys).with_queries(queries),
                {.budget = kvtrim::per_head(tokens / 5), .protect = {.window_tokens = window}}, snapkv);
    check(state, own.run());
    for (auto _ : state) { check(state, own.run()); }
    describe(state,
             {.stages = {products<float>(2.0 * static_cast<double>(q.size()) * static_cast<double>(tokens),
                                         static_cast<double>(k.size() * sizeof(float)))},
              .workspace_bytes = static_cast<double>(own.workspace_bytes())});
}

void custom_mean(benchmark::State& state) {
    static const char* const wrong = [] {
        const layer<float> data(checked_tokens);
        scoring own(data.inputs(), data.request(), custom);
        scoring expected(data.inputs(), data.request(), unpooled);
        return own.run().ok() && expected.run().ok() && own.importance() == expected.importance()
                   ? nullptr
                   : "the scores of a third party's mean differ";
    }();
    if (wrong != nullptr) { return state.SkipWithError(wrong); }
    score<float>(state, custom);
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
    describe(state, {.stages = {{.flops = projection_flops(state.range(0), head_dim)}}});
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

// measure(inputs, what they cost beside products of queries), with W_O as its Gram matrix or without it.
template <class Measure>
void with_or_without_gram(const layer<float>& data, bool has_gram, const Measure& measure) {
    if (!has_gram) { return measure(data.inputs(), work{}); }
    measure(data.inputs().with_output_projection(output_gram<float>().view()),
            products<float>(projection_flops(data.tokens, head_dim), 0));
}

// What the newest queries' outputs lose: two products more than attention, for o and <v, o>.
void single_eviction(benchmark::State& state, bool has_gram) {
    const auto& data = shared_layer<float>(state.range(0));
    const kvtrim::single_eviction scorer;
    with_or_without_gram(data, has_gram, [&](const auto& in, const work& norms) {
        scoring own(in, data.request(), scorer);
        check(state, own.run());
        for (auto _ : state) { check(state, own.run()); }
        describe(state,
                 {.stages = {products<float>(3 * window_flops(data.tokens), 2 * data.bytes_of_keys()), norms},
                  .workspace_bytes = static_cast<double>(own.workspace_bytes())});
    });
}

// A chunk of as many queries as the window has, of a replay behind the cache: a prompt is scored once per chunk. part_rows: of
// the prompt, which are scored and seen beside four sinks; 0: all.
void replay_chunk(benchmark::State& state, index_t part_rows) {
    const auto& data = shared_layer<float>(state.range(0));
    kvtrim::replay_scores scores(kv_heads, data.tokens);
    kvtrim::growing_workspace memory;
    const index_t rows = part_rows > 0 ? part_rows : data.tokens, begin = (data.tokens - rows) / 2;
    const kvtrim::replay_part part{{begin, begin + rows}, part_rows > 0 ? 4 : 0};
    for (auto _ : state) { check(state, scores.add(data.inputs(), {}, memory, part)); }
    const double key_bytes =
        data.bytes_of_keys() * static_cast<double>(rows) / static_cast<double>(data.tokens);
    describe(state,
             {.stages = {products<float>(window_flops(rows), key_bytes)},
              .workspace_bytes = static_cast<double>(scores.workspace_bytes(data.inputs(), {}, part))});
}

// Losses of outputs by such a chunk, or (is_own) by the prompt's own newest queries: what is wanted from afar.
void output_chunk(benchmark::State& state, bool is_own, bool has_gram) {
    const auto& data = shared_layer<float>(state.range(0));
    kvtrim::replay_scores scores(kv_heads, data.tokens, kvtrim::token_loss::output_square_sum);
    kvtrim::growing_workspace memory;
    with_or_without_gram(data, has_gram, [&](const auto& in, const work& norms) {
        for (auto _ : state) {
            check(state, is_own ? scores.add_own(in, {}, 64, memory) : scores.add(in, {}, memory));
        }
        describe(state, {.stages = {products<float>(3 * window_flops(data.tokens), 2 * data.bytes_of_keys()),
                                    norms}});
    });
}

// A replay's scores times the norms of the values, both in the cache after a pass.
void replay_weigh(benchmark::State& state) {
    const index_t tokens = state.range(0);
    kvtrim::replay_scores scores(kv_heads, tokens);
    const std::vector<float> ones(static_cast<std::size_t>(kv_heads * tokens), 1.0f);
    const kvtrim::strided<const float, 2> norms(ones.data(), {kv_heads, tokens});
    for (auto _ : state) { check(state, scores.weigh(norms)); }
    describe(state, {.stages = {{.cached_bytes = 12.0 * static_cast<double>(ones.size())}}});
}

// A replay's scores and those of the prompt's own pass, added.
void replay_add_pass(benchmark::State& state) {
    const index_t tokens = state.range(0);
    const auto loss = kvtrim::token_loss::output_square_sum;
    kvtrim::replay_scores scores(kv_heads, tokens, loss);
    const kvtrim::replay_scores own(kv_heads, tokens, loss);
    for (auto _ : state) { check(state, kvtrim::add_pass(scores, own, 32, 2)); }
    describe(state, {.stages = {{.cached_bytes = 12.0 * static_cast<double>(kv_heads * tokens)}}});
}

const std::vector<float>& frequencies() {
    static const std::vector<float> table = [] {
        std::vector<float> all;
        for (index_t i = 0; i < head_dim / 2; ++i) {
            all.push_back(std::pow(500000.0f, -2.0f * static_cast<float>(i) / float{head_dim}));
        }
        return all;
    }();
    return table;
}

// Of each key its product with the mean query of each head, and of the lengths of its pairs with their spread.
void triattention(benchmark::State& state) {
    const kvtrim::rope model{.inverse_frequencies = frequencies()};
    const auto q = random_elements<float>(q_heads * 512 * head_dim, 6);
    kvtrim::query_pair_means means(q_heads, head_dim, model);
    kvtrim::growing_workspace memory;
    kvtrim::workspace scratch = memory.of_bytes(means.workspace_bytes());
    check(state, means.add(kvtrim::strided(q.data(), {q_heads, 512, head_dim}), scratch));
    score<float>(state, kvtrim::trig_series_score{&means, model});
    const auto& data = shared_layer<float>(state.range(0));
    describe(state,
             {.stages = {products<float>(1.5 * window_flops(data.tokens) / window, data.bytes_of_keys())}});
}

// Keys read twice, and turned back each time: four multiplications and two additions a pair.
void key_diff_before_rope(benchmark::State& state) {
    score<float>(state, kvtrim::before_rope<kvtrim::key_diff_score>{{}, {frequencies()}});
    const auto& data = shared_layer<float>(state.range(0));
    describe(state, {.stages = {products<float>(2.0 * 3 * static_cast<double>(data.k.size()),
                                                data.bytes_of_keys())}});
}

template <class Scorer>
void score_f32(benchmark::State& state, const Scorer& scorer) {
    score<float>(state, scorer);
}
template <class Scorer>
void score_bf16(benchmark::State& state, const Scorer& scorer) {
    score<kvtrim::bf16>(state, scorer);
}

template <class Scorer>
void window_f32(benchmark::State& state, const Scorer& scorer) {
    window_score<float>(state, scorer);
}
template <class Scorer>
void window_bf16(benchmark::State& state, const Scorer& scorer) {
    window_score<kvtrim::bf16>(state, scorer);
}
template <class Scorer>
void window_f16(benchmark::State& state, const Scorer& scorer) {
    window_score<kvtrim::f16>(state, scorer);
}

void snapkv_portable(benchmark::State& state) {
    const at_level lowered(kvtrim::cpu_level::portable);
    window_score<float>(state, snapkv);
}

BENCHMARK_CAPTURE(window_f32, snapkv, snapkv)->Name("score_f32/snapkv")->Apply(token_and_thread_counts);
BENCHMARK_CAPTURE(window_bf16, snapkv, snapkv)->Name("score_bf16/snapkv")->Apply(token_and_thread_counts);
BENCHMARK_CAPTURE(window_f16, snapkv, snapkv)->Name("score_f16/snapkv")->Apply(token_and_thread_counts);
BENCHMARK_CAPTURE(window_f32, defensive, defensive)
    ->Name("score_f32/defensive")
    ->Apply(token_and_thread_counts);
BENCHMARK_CAPTURE(window_bf16, defensive, defensive)
    ->Name("score_bf16/defensive")
    ->Apply(token_and_thread_counts);
BENCHMARK_CAPTURE(window_f16, defensive, defensive)
    ->Name("score_f16/defensive")
    ->Apply(token_and_thread_counts);
BENCHMARK(small_layer)
    ->Name("score_f32/small_layer_snapkv")
    ->ArgName("tokens")
    ->Arg(1024)
    ->Arg(2048)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK_CAPTURE(score_f32, unpooled_mean, unpooled)->Apply(token_counts);
BENCHMARK(custom_mean)->Name("score_f32/custom_mean")->Apply(token_counts);
BENCHMARK(snapkv_portable)->Name("score_f32_portable/snapkv")->Apply(token_and_thread_counts);
BENCHMARK_CAPTURE(score_f32, key_norm, kvtrim::key_norm_score{})->Apply(token_counts);
BENCHMARK_CAPTURE(score_bf16, key_norm, kvtrim::key_norm_score{})->Apply(token_counts);
BENCHMARK_CAPTURE(score_f32, key_diff, kvtrim::key_diff_score{})->Apply(token_counts);
BENCHMARK_CAPTURE(score_bf16, key_diff, kvtrim::key_diff_score{})->Apply(token_counts);
BENCHMARK_CAPTURE(score_f32, lag, kvtrim::lag_score{})->Apply(token_counts);
BENCHMARK_CAPTURE(score_bf16, lag, kvtrim::lag_score{})->Apply(token_counts);
BENCHMARK_CAPTURE(score_f32, redundancy, kvtrim::redundancy_aware<kvtrim::recency>{})->Apply(token_counts);
BENCHMARK(query_statistics)->Name("score_f32/query_statistics")->Apply(token_counts);
BENCHMARK_CAPTURE(expected_attention, covariance, true)
    ->Name("score_f32/expected_attention")
    ->Apply(token_counts);
BENCHMARK_CAPTURE(expected_attention, mean, false)->Name("score_f32/expected_mean_only")->Apply(token_counts);
BENCHMARK_CAPTURE(single_eviction, values, false)->Name("score_f32/single_eviction")->Apply(token_counts);
BENCHMARK_CAPTURE(single_eviction, gram, true)->Name("score_f32/single_eviction_gram")->Apply(token_counts);
BENCHMARK_CAPTURE(replay_chunk, attention, 0)->Name("score_f32/replay_chunk_attention")->Apply(token_counts);
BENCHMARK_CAPTURE(output_chunk, replay, false, false)
    ->Name("score_f32/replay_chunk_output")
    ->Apply(token_counts);
BENCHMARK_CAPTURE(output_chunk, replay_gram, false, true)
    ->Name("score_f32/replay_chunk_output_gram")
    ->Apply(token_counts);
BENCHMARK_CAPTURE(replay_chunk, part, 2048)->Name("score_f32/replay_part_chunk")->Apply(token_counts);
BENCHMARK(replay_weigh)->Name("score_f32/replay_weigh")->Apply(token_counts);
BENCHMARK(replay_add_pass)->Name("score_f32/replay_add_pass")->Apply(token_counts);
BENCHMARK_CAPTURE(output_chunk, own, true, false)->Name("score_f32/own_chunk_output")->Apply(token_counts);
BENCHMARK_CAPTURE(output_chunk, own_gram, true, true)
    ->Name("score_f32/own_chunk_output_gram")
    ->Apply(token_counts);
BENCHMARK(triattention)->Name("score_f32/triattention")->Apply(token_counts);
BENCHMARK(key_diff_before_rope)->Name("score_f32/key_diff_before_rope")->Apply(token_counts);
BENCHMARK(naive_snapkv)->Name("score_f32/naive_snapkv")->Apply(scaled_token_counts);

} // namespace
