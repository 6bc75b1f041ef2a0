// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Allocation and selection of a fifth of the tokens from given scores, and the textbook forms with sorting.
// Limit: three passes over the scores in cache, one where a threshold stays below the bound. Checked: budgets and kept tokens
// against the textbook forms.

#include "layer.hpp"

#include <algorithm>
#include <numeric>
#include <span>

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
};

index_t kept_of(index_t tokens) {
    return tokens / 5;
}

// Orders places in `values` by score, then by index.
auto higher_in(std::span<const float> values) {
    return [values](int a, int b) {
        const float x = values[static_cast<std::size_t>(a)];
        const float y = values[static_cast<std::size_t>(b)];
        return x > y || (x == y && a < b);
    };
}

// The same counts as adaptive without a safeguard: sort all scores of all heads, count whose are the first.
std::vector<index_t> naive_budgets(const scored& data) {
    std::vector<int> order(data.values.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), higher_in(data.values));
    std::vector<index_t> budgets(kv_heads);
    order.resize(static_cast<std::size_t>(kv_heads * kept_of(data.tokens)));
    for (const int place : order) { ++budgets[static_cast<std::size_t>(place / data.tokens)]; }
    return budgets;
}

// The best of one head, ascending.
std::vector<int> naive_top_k(std::span<const float> row) {
    std::vector<int> order(row.size());
    std::iota(order.begin(), order.end(), 0);
    const auto kept = order.begin() + kept_of(std::ssize(row));
    std::nth_element(order.begin(), kept, order.end(), higher_in(row));
    std::sort(order.begin(), kept);
    order.erase(kept, order.end());
    return order;
}

template <class Allocator>
kvtrim::status allocate_fifth(const Allocator& allocator, scored& data, std::span<index_t> budgets) {
    static kvtrim::growing_workspace memory;
    kvtrim::workspace scratch = memory.of_bytes(4096);
    return allocator.allocate(data.rows(), kv_heads * kept_of(data.tokens), budgets, scratch);
}

template <class Allocator>
kvtrim::status plan_fifth(const Allocator& allocator, const std::vector<float>& scores, index_t tokens,
                          kvtrim::keep_plan& out) {
    static kvtrim::growing_workspace memory;
    static const float unread = 0; // of the keys only the extents matter
    const kvtrim::strided<const float, 3> keys(&unread, {kv_heads, tokens, head_dim}, {0, 0, 0});
    const kvtrim::given_scores given{kvtrim::strided(scores.data(), {kv_heads, tokens})};
    const kvtrim::eviction_policy policy{given, allocator, kvtrim::by_importance{}};
    return policy.plan(kvtrim::layer(keys), {.budget = kvtrim::per_head(kept_of(tokens))}, out, memory);
}

// nullptr where both agree with the textbook forms.
const char* disagreement() {
    scored data(2000);
    std::vector<index_t> budgets(kv_heads);
    if (!allocate_fifth(kvtrim::adaptive{.safeguard_ratio = 0}, data, budgets).ok() ||
        budgets != naive_budgets(data)) {
        return "budgets differ from those by sorting";
    }
    if (!allocate_fifth(kvtrim::above_threshold{0.1f}, data, budgets).ok() ||
        budgets != naive_budgets(data)) {
        return "budgets above a bounded threshold differ from those by sorting";
    }
    kvtrim::keep_plan plan;
    if (!plan_fifth(kvtrim::uniform{}, data.values, data.tokens, plan).ok()) { return "no plan"; }
    for (index_t g = 0; g < kv_heads; ++g) {
        const auto kept = plan.row(g);
        if (!std::ranges::equal(kept, naive_top_k(data.rows().row(g)))) {
            return "kept tokens differ from those by sorting";
        }
    }
    return nullptr;
}

bool is_right(benchmark::State& state) {
    static const char* const wrong = disagreement();
    if (wrong != nullptr) { state.SkipWithError(wrong); }
    return wrong == nullptr;
}

// Of these scores; a fifth is the bound.
constexpr kvtrim::above_threshold above_18_per_cent{0.2f}, above_25_per_cent{0.1f};

// Curves of the model's table, of one layer.
const kvtrim::row_profile& profile() {
    static const kvtrim::row_profile table = [] {
        kvtrim::row_profile made;
        scored data(2000);
        if (!made.add(data.rows()).ok()) { made = {}; } // then allocate() refuses it, and the row says so
        return made;
    }();
    return table;
}

// passes: over the scores; 0, if they decide nothing: then there is no limit.
template <class Allocator>
void allocate(benchmark::State& state, const Allocator& allocator, double passes = 3) {
    if (!is_right(state)) { return; }
    scored data(state.range(0));
    std::vector<index_t> budgets(kv_heads);
    check(state, allocate_fifth(allocator, data, budgets));
    for (auto _ : state) {
        check(state, allocate_fifth(allocator, data, budgets));
        benchmark::DoNotOptimize(budgets.data());
    }
    describe(state, {.stages = {passes / 3 * three_passes(data.tokens)},
                     .note = passes == 0 ? "reads no scores" : ""});
}

void profiled(benchmark::State& state) {
    allocate(state, profile().budgets(), 0);
}
void layer_shares(benchmark::State& state) {
    const std::vector<double> shares(kv_heads, 1.0);
    allocate(state, kvtrim::layer_shares{shares}, 0);
}

// A whole plan from given scores: allocate, select, write the table.
template <class Allocator>
void plan(benchmark::State& state, const Allocator& allocator) {
    if (!is_right(state)) { return; }
    const index_t tokens = state.range(0);
    const auto scores = attention_like_scores(tokens);
    kvtrim::keep_plan out;
    check(state, plan_fifth(allocator, scores, tokens, out));
    for (auto _ : state) {
        check(state, plan_fifth(allocator, scores, tokens, out));
        benchmark::DoNotOptimize(out.kept().data());
    }
    describe(state, {.stages = {three_passes(tokens)}});
}

void naive_allocate(benchmark::State& state) {
    const scored data(state.range(0));
    for (auto _ : state) { benchmark::DoNotOptimize(naive_budgets(data).data()); }
    describe(state,
             {.beside = "allocate/adaptive/tokens:" + std::to_string(data.tokens), .level = "compiler's"});
}

void naive_select(benchmark::State& state) {
    scored data(state.range(0));
    for (auto _ : state) {
        for (index_t g = 0; g < kv_heads; ++g) {
            benchmark::DoNotOptimize(naive_top_k(data.rows().row(g)).data());
        }
    }
    describe(state, {.beside = "plan/given_scores_uniform/tokens:" + std::to_string(data.tokens),
                     .level = "compiler's"});
}

BENCHMARK_CAPTURE(allocate, adaptive, kvtrim::adaptive{})->Apply(token_counts);
BENCHMARK_CAPTURE(allocate, blended, kvtrim::blended{})->Apply(token_counts);
BENCHMARK_CAPTURE(allocate, above_threshold, above_18_per_cent, 1)->Apply(token_counts);
BENCHMARK_CAPTURE(allocate, above_threshold_bounded, above_25_per_cent)->Apply(token_counts);
BENCHMARK(profiled)->Name("allocate/profiled_budgets")->Apply(token_counts);
BENCHMARK(layer_shares)->Name("allocate/layer_shares")->Apply(token_counts);
BENCHMARK(naive_allocate)->Name("allocate/naive_sort")->Apply(token_counts);
BENCHMARK_CAPTURE(plan, given_scores_uniform, kvtrim::uniform{})->Apply(token_counts);
BENCHMARK_CAPTURE(plan, given_scores_adaptive, kvtrim::adaptive{})->Apply(token_counts);
BENCHMARK_CAPTURE(plan, given_scores_above_threshold, above_18_per_cent)->Apply(token_counts);
BENCHMARK(naive_select)->Name("select/naive_nth_element")->Apply(token_counts);

} // namespace
