// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Budgets over the layers of a whole model, 32 layers of 8 KV heads and 32768 tokens, a fifth kept: one cut when every cache
// is there against a cascade that follows the prefill. Both from given scores, so that only the budgeting is timed.
// Then a batch of 32 sequences of ragged lengths: one call against a loop.
//
//   held          most tokens in the caches at the same time, a new layer's included, summed over rows
//   held_of_all   of the tokens of all layers
//   cache_MB      keys and values of the held tokens in bf16
//   busiest_ms    CPU time of the busiest thread of each parallel call: what a machine that does nothing else waits for

#include "layer.hpp"

#include <algorithm>
#include <atomic>
#include <ctime>
#include <thread>
#include <utility>

namespace {

using namespace bench;

// ---- One budget for all layers -----------------------------------------------------------------

constexpr index_t layers = 32;
constexpr index_t tokens = 32768;
constexpr index_t all_rows = layers * kv_heads;
constexpr index_t kept = all_rows * (tokens / 5);

// Like attention, some layers flatter than others; [layers * kv_heads, tokens].
std::vector<float> model_scores() {
    auto scores = random_elements<float>(all_rows * tokens, 7);
    for (std::size_t i = 0; i < scores.size(); ++i) {
        const float u = (scores[i] + 0.5f) * (scores[i] + 0.5f);
        scores[i] = u * u * u * u / static_cast<float>(1 + i / (kv_heads * tokens) % 5);
    }
    return scores;
}

struct scored_model {
    std::vector<float> values = model_scores();
    std::vector<index_t> offsets;

    scored_model() {
        for (index_t r = 0; r <= all_rows; ++r) { offsets.push_back(r * tokens); }
    }
    kvtrim::score_rows rows() { return {offsets, values}; }
    kvtrim::score_rows layer_rows(index_t layer) {
        constexpr std::size_t size = kv_heads * tokens;
        return {std::span(offsets).first(kv_heads + 1),
                std::span(values).subspan(static_cast<std::size_t>(layer) * size, size)};
    }
};

// The benchmark's argument is the safeguard in percent of an even share.
kvtrim::adaptive allocator_of(const benchmark::State& state) {
    return {.safeguard_ratio = static_cast<double>(state.range(0)) / 100};
}

std::vector<index_t> allocate_all(benchmark::State& state, scored_model& model,
                                  kvtrim::growing_workspace& memory) {
    std::vector<index_t> budgets(all_rows);
    kvtrim::workspace scratch = memory.of_bytes(1 << 16);
    check(state, allocator_of(state).allocate(model.rows(), kept, budgets, scratch));
    return budgets;
}

void report_held(benchmark::State& state, index_t held) {
    constexpr double bytes_per_token = 2 * head_dim * 2; // key and value
    state.counters["held"] = static_cast<double>(held);
    state.counters["held_of_all"] = static_cast<double>(held) / static_cast<double>(all_rows * tokens);
    state.counters["cache_MB"] = static_cast<double>(held) * bytes_per_token * 1e-6;
}

// Budgets over all rows, then the plan of every layer.
void one_shot(benchmark::State& state) {
    scored_model model;
    const float unread = 0; // of the keys only the extents matter
    const auto in =
        kvtrim::layer(kvtrim::strided<const float, 3>(&unread, {kv_heads, tokens, head_dim}, {0, 0, 0}));
    std::vector<index_t> counts(kv_heads);
    std::vector<kvtrim::keep_plan> plans(layers);
    kvtrim::growing_workspace memory;
    for (auto _ : state) {
        const auto budgets = allocate_all(state, model, memory);
        for (index_t l = 0; l < layers; ++l) {
            const auto own = std::span(budgets).subspan(static_cast<std::size_t>(l * kv_heads), kv_heads);
            check(state, kvtrim::plan_best(in, {}, model.layer_rows(l), own, counts,
                                           plans[static_cast<std::size_t>(l)]));
        }
        benchmark::DoNotOptimize(plans.data());
    }
    report_held(state, all_rows * tokens);
}

// Layer by layer, with a plan for each layer that loses tokens.
void cascade(benchmark::State& state) {
    scored_model model;
    kvtrim::growing_workspace memory;
    const auto expected = allocate_all(state, model, memory);
    kvtrim::keep_plan plan;
    index_t held = 0;
    for (auto _ : state) {
        kvtrim::layer_cascade cascade(kept, allocator_of(state).safeguard_of(kept, all_rows));
        for (index_t l = 0; l < layers; ++l) {
            held = std::max(held, cascade.held_tokens() + kv_heads * tokens);
            check(state, cascade.push(model.layer_rows(l)));
            for (index_t k = 0; k <= l; ++k) {
                if (cascade.changed(k)) { check(state, cascade.plan(k, 0, 0, plan)); }
            }
        }
        benchmark::DoNotOptimize(plan.kept().data());
        for (index_t r = 0; r < all_rows; ++r) {
            if (std::ssize(cascade.kept(r / kv_heads, r % kv_heads)) !=
                expected[static_cast<std::size_t>(r)]) {
                state.SkipWithError("the cascade and the one-shot cut differ");
            }
        }
    }
    report_held(state, held);
}

// ---- A batch -----------------------------------------------------------------------------------

double thread_seconds() {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// As threads, but it knows the CPU time of the busiest thread of each call, summed.
struct timed_threads {
    index_t count;
    double* busiest;

    [[nodiscard]] index_t workers() const { return count; }
    template <class Fn>
    void operator()(index_t calls, Fn&& fn) const {
        std::atomic<index_t> next = 0;
        std::vector<double> seconds(static_cast<std::size_t>(count));
        const auto work = [&](index_t thread) {
            const double start = thread_seconds();
            for (index_t i = next++; i < calls; i = next++) { fn(i); }
            seconds[static_cast<std::size_t>(thread)] = thread_seconds() - start;
        };
        std::vector<std::thread> pool;
        for (index_t t = 1; t < std::min(count, calls); ++t) { pool.emplace_back(work, t); }
        work(0);
        for (std::thread& t : pool) { t.join(); }
        *busiest += *std::max_element(seconds.begin(), seconds.end());
    }
};

struct batch {
    static constexpr std::size_t sequences = 32;
    using view = kvtrim::strided<const float, 3>;
    using inputs = decltype(kvtrim::layer(std::declval<view>()).with_queries(std::declval<view>()));

    std::vector<std::vector<float>> keys;
    std::vector<float> queries = random_elements<float>(q_heads * window * head_dim, 3);
    std::vector<inputs> in;
    std::vector<kvtrim::eviction_request> requests;
    std::vector<kvtrim::keep_plan> plans = std::vector<kvtrim::keep_plan>(sequences);
    std::vector<kvtrim::status> answers = std::vector<kvtrim::status>(sequences);

    // Lengths from 128 to 4096, most of them short.
    batch() {
        const auto sizes = random_elements<float>(sequences, 11);
        for (std::size_t i = 0; i < sequences; ++i) {
            const float u = sizes[i] + 0.5f;
            const index_t length = 128 + static_cast<index_t>(3968 * u * u);
            keys.push_back(
                random_elements<float>(kv_heads * length * head_dim, static_cast<std::uint32_t>(20 + i)));
            in.push_back(kvtrim::layer(view(keys.back().data(), {kv_heads, length, head_dim}))
                             .with_queries(view(queries.data(), {q_heads, window, head_dim})));
            requests.push_back(
                {.budget = kvtrim::per_head(length / 5 + window), .protect = {.window_tokens = window}});
        }
    }
};

void report_busiest(benchmark::State& state, double seconds) {
    describe(state, {.threads = state.range(0)});
    state.counters["busiest_ms"] = {1e3 * seconds, benchmark::Counter::kAvgIterations};
}

// A sequence after the other; the threads share the heads of each.
template <class Policy>
void batch_loop(benchmark::State& state, const Policy& policy) {
    batch b;
    kvtrim::growing_workspace memory;
    double busiest = 0;
    const timed_threads ex{state.range(0), &busiest};
    for (auto _ : state) {
        for (std::size_t i = 0; i < batch::sequences; ++i) {
            check(state, policy.plan(b.in[i], b.requests[i], b.plans[i], memory, ex));
        }
        benchmark::DoNotOptimize(b.plans.data());
    }
    report_busiest(state, busiest);
}

template <class Policy>
void plan_batch(benchmark::State& state, const Policy& policy) {
    batch b;
    kvtrim::growing_workspace memory;
    double busiest = 0;
    const timed_threads ex{state.range(0), &busiest};
    for (auto _ : state) {
        check(state, kvtrim::plan_batch(policy, std::span<const batch::inputs>(b.in), b.requests, b.plans,
                                        b.answers, memory, ex));
        benchmark::DoNotOptimize(b.plans.data());
    }
    report_busiest(state, busiest);
    state.counters["scratch_MB"] = static_cast<double>(memory.capacity_bytes()) * 1e-6;
}

void safeguards(benchmark::internal::Benchmark* b) {
    b->ArgName("safeguard_percent")->Arg(90)->Arg(0)->Unit(benchmark::kMillisecond);
}

void thread_counts(benchmark::internal::Benchmark* b) {
    b->ArgName("threads")->Arg(1)->Arg(2)->Unit(benchmark::kMillisecond);
    b->MeasureProcessCPUTime()->UseRealTime();
}

BENCHMARK(one_shot)->Name("model/one_shot")->Apply(safeguards);
BENCHMARK(cascade)->Name("model/cascade")->Apply(safeguards);
BENCHMARK_CAPTURE(batch_loop, snapkv, kvtrim::snapkv())->Apply(thread_counts);
BENCHMARK_CAPTURE(plan_batch, snapkv, kvtrim::snapkv())->Apply(thread_counts);
BENCHMARK_CAPTURE(batch_loop, key_norm, kvtrim::key_norm())->Apply(thread_counts);
BENCHMARK_CAPTURE(plan_batch, key_norm, kvtrim::key_norm())->Apply(thread_counts);

} // namespace
