// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Whole policies on a bf16 layer: scores, budgets, selection, and the survivors' keys and values gathered into a cache of
// a fifth. The plot shows these rows.
// Limit: of each stage in turn, one product with the keys, one of the values with the Gram matrices (or W_O) where the
// policy asks for norms, three passes over the scores, and the copy.

#include "layer.hpp"

namespace {

using namespace bench;
using element = kvtrim::bf16;

work score_work(const layer<element>& data) {
    return products<element>(window_flops(data.tokens), data.bytes_of_keys());
}
work norm_work(const layer<element>& data, index_t columns) {
    return products<element>(projection_flops(data.tokens, columns), data.bytes_of_keys());
}

template <class Policy, class Inputs>
void run(benchmark::State& state, const layer<element>& data, const Inputs& in, const Policy& policy,
         std::vector<work> stages, const std::string& note = "") {
    static kvtrim::growing_workspace memory;
    kvtrim::keep_plan plan;
    std::vector<element> keys(static_cast<std::size_t>(kv_heads * (data.tokens / 5) * head_dim)),
        values(keys.size());
    const auto evict = [&] {
        check(state, policy.plan(in, data.request(), plan, memory));
        check(state, kvtrim::gather(data.keys(), plan, std::span(keys)));
        check(state, kvtrim::gather(data.values(), plan, std::span(values)));
        benchmark::ClobberMemory();
    };
    for (auto _ : state) { evict(); }
    if (plan.total_tokens() != kv_heads * (data.tokens / 5)) { return state.SkipWithError("not the budget"); }
    stages.push_back(three_passes(data.tokens));
    stages.push_back({.copied_bytes = 4.0 * static_cast<double>(keys.size() * sizeof(element))});
    describe(state, {.stages = std::move(stages),
                     .workspace_bytes = static_cast<double>(policy.workspace_bytes(in, data.request())),
                     .note = note});
}

template <class Policy>
void by_attention(benchmark::State& state, const Policy& policy) {
    const auto& data = shared_layer<element>(state.range(0));
    run(state, data, data.inputs(), policy, {score_work(data)});
}

// What asking the inputs costs; each call asks them.
void check_inputs(benchmark::State& state) {
    const auto& data = shared_layer<element>(state.range(0));
    for (auto _ : state) { check(state, kvtrim::snapkv().validate(data.inputs(), data.request())); }
}

template <class Policy>
void by_gram_norms(benchmark::State& state, const Policy& policy) {
    const auto& data = shared_layer<element>(state.range(0));
    run(state, data, data.inputs().with_output_projection(output_gram<element>().view()), policy,
        {score_work(data), norm_work(data, head_dim)});
}

template <class Policy>
void by_exact_norms(benchmark::State& state, const Policy& policy) {
    const auto& data = shared_layer<element>(state.range(0));
    run(state, data, data.inputs().with_output_projection(data.output_projection()), policy,
        {score_work(data), norm_work(data, hidden)}, "exact norms, not cached during prefill");
}

BENCHMARK_CAPTURE(by_attention, snapkv, kvtrim::snapkv())->Name("policy/snapkv")->Apply(token_counts);
BENCHMARK(check_inputs)->Name("policy/check_inputs")->Apply(token_counts);
BENCHMARK_CAPTURE(by_attention, ada_snapkv, kvtrim::ada_snapkv())
    ->Name("policy/ada_snapkv")
    ->Apply(token_counts);
BENCHMARK_CAPTURE(by_gram_norms, criticalkv, kvtrim::criticalkv())
    ->Name("policy/criticalkv_gram")
    ->Apply(token_counts);
BENCHMARK_CAPTURE(by_gram_norms, ada_criticalkv, kvtrim::ada_criticalkv())
    ->Name("policy/ada_criticalkv_gram")
    ->Apply(token_counts);
BENCHMARK_CAPTURE(by_gram_norms, defensivekv, kvtrim::defensivekv())
    ->Name("policy/defensivekv_gram")
    ->Apply(token_counts);
BENCHMARK_CAPTURE(by_exact_norms, criticalkv, kvtrim::criticalkv())
    ->Name("policy/criticalkv_exact")
    ->ArgName("tokens")
    ->Arg(8192)
    ->Arg(32768)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

} // namespace
