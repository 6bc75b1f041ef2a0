// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Compaction of keys to a fifth: into a new flat array, and in place; then the survivors' rotation to closed-up
// positions; a plain copy of as many bytes beside them.
// Limit: the survivors read and written at the speed of memcpy. In place, each iteration moves the same rows again.
// Checked: survivors against the rows that the plan names.

#include "layer.hpp"

#include <cmath>
#include <cstring>

namespace {

using namespace bench;

// Survivors spread over the whole prompt.
kvtrim::keep_plan scattered_plan(index_t tokens) {
    const auto scores = attention_like_scores(tokens);
    const kvtrim::strided cache(scores.data(), {kv_heads, tokens, 1});
    const kvtrim::given_scores given{kvtrim::strided(scores.data(), {kv_heads, tokens})};
    kvtrim::keep_plan plan;
    kvtrim::growing_workspace memory;
    const kvtrim::eviction_policy policy{given, kvtrim::adaptive{}, kvtrim::by_importance{}};
    if (!policy.plan(kvtrim::layer(cache), {.budget = kvtrim::per_head(tokens / 5)}, plan, memory).ok()) {
        std::abort();
    }
    return plan;
}

template <class T>
work moved(const kvtrim::keep_plan& plan) {
    return {.copied_bytes = 2.0 * static_cast<double>(plan.total_tokens() * head_dim) * sizeof(T)};
}

// Whether `rows` [head_dim] of each head, `stride` tokens from one head to the next or packed where it is 0, are the
// survivors.
template <class T>
bool are_survivors(const layer<T>& data, const kvtrim::keep_plan& plan, const std::vector<T>& rows,
                   index_t stride) {
    for (index_t g = 0; g < kv_heads; ++g) {
        const T* own =
            rows.data() + (stride == 0 ? plan.offsets()[static_cast<std::size_t>(g)] : g * stride) * head_dim;
        for (const auto token : plan.row(g)) {
            const T* from = data.k.data() + (g * data.tokens + token) * head_dim;
            if (std::memcmp(own, from, head_dim * sizeof(T)) != 0) { return false; }
            own += head_dim;
        }
    }
    return true;
}

template <class T>
void gather(benchmark::State& state) {
    const auto& data = shared_layer<T>(state.range(0));
    const kvtrim::keep_plan plan = scattered_plan(data.tokens);
    std::vector<T> out(static_cast<std::size_t>(plan.total_tokens() * head_dim));
    check(state, kvtrim::gather(data.keys(), plan, std::span(out)));
    if (!are_survivors(data, plan, out, 0)) { return state.SkipWithError("not the survivors"); }
    for (auto _ : state) {
        check(state, kvtrim::gather(data.keys(), plan, std::span(out)));
        benchmark::ClobberMemory();
    }
    describe(state, {.stages = {moved<T>(plan)}});
}

template <class T>
void in_place(benchmark::State& state) {
    const auto& data = shared_layer<T>(state.range(0));
    const kvtrim::keep_plan plan = scattered_plan(data.tokens);
    std::vector<T> cache = data.k;
    const kvtrim::strided keys(cache.data(), {kv_heads, data.tokens, head_dim});
    check(state, kvtrim::compact_in_place(keys, plan));
    if (!are_survivors(data, plan, cache, data.tokens)) { return state.SkipWithError("not the survivors"); }
    for (auto _ : state) {
        check(state, kvtrim::compact_in_place(keys, plan));
        benchmark::ClobberMemory();
    }
    describe(state, {.stages = {moved<T>(plan)}});
}

// The survivors, compacted before; each iteration rotates them by as much again.
template <class T>
void rerotate(benchmark::State& state) {
    const auto& data = shared_layer<T>(state.range(0));
    const kvtrim::keep_plan plan = scattered_plan(data.tokens);
    std::vector<T> out(static_cast<std::size_t>(plan.total_tokens() * head_dim));
    check(state, kvtrim::gather(data.keys(), plan, std::span(out)));
    const auto keys = kvtrim::flat_view(out.data(), plan, head_dim);
    std::vector<float> frequencies;
    for (index_t i = 0; i < head_dim / 2; ++i) {
        frequencies.push_back(static_cast<float>(std::pow(5e5, -2.0 * static_cast<double>(i) / head_dim)));
    }
    const kvtrim::rope rope{frequencies};
    kvtrim::growing_workspace memory;
    kvtrim::workspace scratch = memory.of_bytes(kvtrim::rerotate_keys_bytes(keys, rope));
    for (auto _ : state) {
        check(state, kvtrim::rerotate_keys(keys, rope, kvtrim::positions_of(plan), scratch));
        benchmark::ClobberMemory();
    }
    describe(state, {.stages = {moved<T>(plan)}});
}

template <class T>
void plain_copy(benchmark::State& state) {
    const auto& data = shared_layer<T>(state.range(0));
    std::vector<T> out(data.k.size() / 5);
    for (auto _ : state) {
        std::memcpy(out.data(), data.k.data(), out.size() * sizeof(T));
        benchmark::ClobberMemory();
    }
    describe(state, {.stages = {{.copied_bytes = 2.0 * static_cast<double>(out.size() * sizeof(T))}}});
}

BENCHMARK(gather<float>)->Name("compact/gather_f32")->Apply(token_counts);
BENCHMARK(gather<kvtrim::bf16>)->Name("compact/gather_bf16")->Apply(token_counts);
BENCHMARK(in_place<float>)->Name("compact/in_place_f32")->Apply(token_counts);
BENCHMARK(in_place<kvtrim::bf16>)->Name("compact/in_place_bf16")->Apply(token_counts);
BENCHMARK(rerotate<float>)->Name("compact/rerotate_f32")->Apply(token_counts);
BENCHMARK(rerotate<kvtrim::f16>)->Name("compact/rerotate_f16")->Apply(token_counts);
BENCHMARK(rerotate<kvtrim::bf16>)->Name("compact/rerotate_bf16")->Apply(token_counts);
BENCHMARK(plain_copy<float>)->Name("compact/memcpy_f32")->Apply(token_counts);
BENCHMARK(plain_copy<kvtrim::bf16>)->Name("compact/memcpy_bf16")->Apply(token_counts);

} // namespace
