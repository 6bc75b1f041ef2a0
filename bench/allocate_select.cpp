// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Allocation and selection of a fifth of the tokens from given scores, and the textbook forms with sorting.
// bytes counts the scores once.

#include "layer.hpp"

#include <algorithm>
#include <numeric>

namespace {

using namespace bench;

struct scored {
    std::vector<float> values;
    std::vector<index_t> offsets;
    index_t tokens;

    explicit scored(index_t token_count) : values(attention_like_scores(token_count)), tokens(token_count) {
        for (index_t g = 0; g <= kv_heads; ++g) { offsets.push_back(g * tokens); }
    }
    kvtrim::score_rows rows() { return {offsets, values}; }
    double bytes() const { return static_cast<double>(values.size() * sizeof(float)); }
};

template <class Allocator>
void allocate(benchmark::State& state, const Allocator& allocator) {
    scored data(state.range(0));
    std::vector<index_t> budgets(kv_heads);
    kvtrim::growing_workspace memory;
    for (auto _ : state) {
        kvtrim::workspace scratch = memory.of_bytes(4096);
        check(state, allocator.allocate(data.rows(), kv_heads * (data.tokens / 5), budgets, scratch));
        benchmark::DoNotOptimize(budgets.data());
    }
    rates(state, 0, data.bytes());
}

// The same counts as adaptive without a safeguard: sort all scores of all heads, count whose are the first.
void naive_allocate(benchmark::State& state) {
    scored data(state.range(0));
    std::vector<int> order(data.values.size());
    std::vector<index_t> budgets(kv_heads);
    const index_t total = kv_heads * (data.tokens / 5);
    for (auto _ : state) {
        std::iota(order.begin(), order.end(), 0);
        std::sort(order.begin(), order.end(), [&](int a, int b) {
            const float x = data.values[static_cast<std::size_t>(a)];
            const float y = data.values[static_cast<std::size_t>(b)];
            return x > y || (x == y && a < b);
        });
        std::fill(budgets.begin(), budgets.end(), index_t{0});
        for (index_t i = 0; i < total; ++i) {
            ++budgets[static_cast<std::size_t>(order[static_cast<std::size_t>(i)] / data.tokens)];
        }
        benchmark::DoNotOptimize(budgets.data());
    }
    rates(state, 0, data.bytes());
}

// A whole plan from given scores: allocate, select, write the table.
template <class Allocator>
void plan(benchmark::State& state, const Allocator& allocator) {
    const layer<float> cache(state.range(0));
    const auto scores = attention_like_scores(cache.tokens);
    const kvtrim::given_scores given{kvtrim::strided(scores.data(), {kv_heads, cache.tokens})};
    const kvtrim::eviction_policy policy{given, allocator, kvtrim::one_stage{}};
    kvtrim::keep_plan out;
    kvtrim::growing_workspace memory;
    for (auto _ : state) {
        check(state, policy.plan(kvtrim::layer(cache.keys()), cache.request(), out, memory));
        benchmark::DoNotOptimize(out.kept().data());
    }
    rates(state, 0, static_cast<double>(scores.size() * sizeof(float)));
}

void naive_top_k(benchmark::State& state) {
    scored data(state.range(0));
    std::vector<int> order(static_cast<std::size_t>(data.tokens));
    const auto kept = static_cast<std::ptrdiff_t>(data.tokens / 5);
    for (auto _ : state) {
        for (index_t g = 0; g < kv_heads; ++g) {
            const auto row = data.rows().row(g);
            std::iota(order.begin(), order.end(), 0);
            std::nth_element(order.begin(), order.begin() + kept, order.end(), [&](int a, int b) {
                const float x = row[static_cast<std::size_t>(a)];
                const float y = row[static_cast<std::size_t>(b)];
                return x > y || (x == y && a < b);
            });
            std::sort(order.begin(), order.begin() + kept);
            benchmark::DoNotOptimize(order.data());
        }
    }
    rates(state, 0, data.bytes());
}

BENCHMARK_CAPTURE(allocate, adaptive, kvtrim::adaptive{})->Apply(token_counts);
BENCHMARK_CAPTURE(allocate, blended, kvtrim::blended{})->Apply(token_counts);
BENCHMARK(naive_allocate)->Name("allocate/naive_sort")->Apply(token_counts);
BENCHMARK_CAPTURE(plan, given_scores_uniform, kvtrim::uniform{})->Apply(token_counts);
BENCHMARK_CAPTURE(plan, given_scores_adaptive, kvtrim::adaptive{})->Apply(token_counts);
BENCHMARK(naive_top_k)->Name("select/naive_nth_element")->Apply(token_counts);

} // namespace
