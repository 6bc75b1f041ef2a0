// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Prefill attention of a layer, dense and block-sparse as CritiPrefill plans it. ./dev table prefill says more about the
// latter: all budgets, estimates, kept mass.
// Rows measure the segment of 512 queries in the middle of the prompt for two KV heads, and show what the whole layer
// takes at that rate per query-key pair. Limit: 4 * head_dim flops per pair at the peak of the products.

#include "layer.hpp"

namespace {

using namespace bench;

constexpr index_t measured_heads = 2; // KV heads, one for each of two threads

// Queries, keys and values of the measured KV heads.
template <class T>
struct prompt {
    index_t tokens;
    std::vector<T> q = random_elements<T>(measured_heads * group * tokens * head_dim, 6);
    std::vector<T> k = random_elements<T>(measured_heads * tokens * head_dim, 1);
    std::vector<T> v = random_elements<T>(measured_heads * tokens * head_dim, 2);

    using view = kvtrim::strided<const T, 3>;
    view queries() const { return {q.data(), {measured_heads * group, tokens, head_dim}}; }
    view keys() const { return {k.data(), {measured_heads, tokens, head_dim}}; }
    auto inputs(index_t first_query, index_t count) const {
        const view values(v.data(), {measured_heads, tokens, head_dim});
        const view chunk(q.data() + first_query * head_dim, {measured_heads * group, count, head_dim},
                         {tokens * head_dim, head_dim, 1});
        return kvtrim::layer(keys(), values).with_queries(chunk);
    }
};

template <class T>
const prompt<T>& shared_prompt(index_t tokens) {
    static std::map<index_t, prompt<T>> prompts;
    return prompts.try_emplace(tokens, prompt<T>{tokens}).first->second;
}

// One segment of a plan, as a plan of its own.
kvtrim::status cut_out(const kvtrim::prune_plan& plan, index_t segment, kvtrim::prune_plan& out) {
    kvtrim::segment_grid grid = plan.grid();
    grid.first_token = plan.grid().begin(segment);
    grid.end_token = plan.grid().end(segment);
    std::vector<index_t> counts;
    for (index_t g = 0; g < measured_heads; ++g) { counts.push_back(std::ssize(plan.row(g, segment))); }
    if (const auto s = out.reset(grid, measured_heads, counts); !s.ok()) { return s; }
    for (index_t g = 0; g < measured_heads; ++g) {
        std::ranges::copy(plan.row(g, segment), out.writable_row(g, 0).begin());
    }
    return {};
}

// Attention of one segment.
template <class T>
class segment_attention {
  public:
    segment_attention(const prompt<T>& data, const kvtrim::prune_plan& segment)
        : data_(data), segment_(segment),
          out_(static_cast<std::size_t>(measured_heads * group * segment.grid().tokens() * head_dim)) {}

    [[nodiscard]] kvtrim::status run(threads ex = {}) {
        static kvtrim::growing_workspace memory;
        const kvtrim::segment_grid& grid = segment_.grid();
        const kvtrim::strided<float, 3> out(out_.data(), {measured_heads * group, grid.tokens(), head_dim});
        return kvtrim::block_sparse_attention(data_.inputs(grid.first_token, grid.tokens()), segment_, {},
                                              out, {}, memory, ex);
    }
    [[nodiscard]] const std::vector<float>& out() const { return out_; }

  private:
    const prompt<T>& data_;
    const kvtrim::prune_plan& segment_;
    std::vector<float> out_;
};

// Whether attention multiplies elements T as they are in memory. A level may have products of bf16 and no tile of queries
// for them: attention widens them to floats then.
template <class T>
bool multiplies_as_they_are() {
    return !std::is_same_v<T, kvtrim::bf16> || kvtrim::kernels::with_bf16_query_tile([]<class Tile>() {
        return std::is_same_v<typename Tile::element, T>;
    });
}

// The portable level decides; AMX rounds weights to bf16.
template <class T>
const char* disagreement_with_portable() {
    const prompt<T> data{1024};
    kvtrim::prune_plan whole, segment;
    if (!kvtrim::plan_dense({.end_token = 1024}, measured_heads, whole).ok() ||
        !cut_out(whole, 1, segment).ok()) {
        return "no plan";
    }
    segment_attention own(data, segment), expected(data, segment);
    bool is_done = own.run().ok();
    const at_level lowered(kvtrim::cpu_level::portable);
    is_done = is_done && expected.run().ok();
    return is_done && agree(own.out(), expected.out(), 1e-2f) ? nullptr
                                                              : "attention differs from the portable level's";
}

// The middle segment of `whole`, at its rate per pair.
template <class T>
void measure_middle(benchmark::State& state, const prompt<T>& data, const kvtrim::prune_plan& whole,
                    threads ex) {
    static const char* const wrong = disagreement_with_portable<T>();
    if (wrong != nullptr) { return state.SkipWithError(wrong); }
    const index_t middle = whole.grid().segments() / 2;
    kvtrim::prune_plan segment;
    check(state, cut_out(whole, middle, segment));
    segment_attention attention(data, segment);
    check(state, attention.run(ex));
    constexpr double heads = static_cast<double>(kv_heads) / measured_heads;
    const double factor = heads * whole.planned_pairs() / segment.planned_pairs();
    for (auto _ : state) {
        scaled_iteration(state, factor, [&] { check(state, attention.run(ex)); });
    }
    const double flops = heads * whole.planned_pairs() * group * 4 * head_dim;
    describe(state, {.stages = {multiplies_as_they_are<T>() ? products<T>(flops, 0) : work{.flops = flops}},
                     .threads = ex.count,
                     .note = "from segment " + std::to_string(middle) + " of " +
                             std::to_string(whole.grid().segments()) + ", 2 of 8 KV heads"});
}

template <class T>
void dense(benchmark::State& state) {
    const auto& data = shared_prompt<T>(state.range(0));
    kvtrim::prune_plan plan;
    check(state, kvtrim::plan_dense({.end_token = data.tokens}, measured_heads, plan));
    measure_middle(state, data, plan, threads{state.range(1)});
}

void dense_portable(benchmark::State& state) {
    const at_level lowered(kvtrim::cpu_level::portable);
    dense<float>(state);
}

// At the defaults: 2048 tokens per segment.
template <class T>
void sparse(benchmark::State& state) {
    const auto& data = shared_prompt<T>(state.range(0));
    static std::map<index_t, kvtrim::prune_plan> plans;
    kvtrim::prune_plan& plan = plans[data.tokens];
    if (plan.rows() == 0) {
        kvtrim::layer_fusion fusion;
        kvtrim::growing_workspace memory;
        check(state,
              kvtrim::critiprefill().plan(data.queries(), data.keys(), {.layer = 1}, fusion, plan, memory));
    }
    measure_middle(state, data, plan, threads{state.range(1)});
}

void middle_segments(benchmark::internal::Benchmark* b) {
    b->ArgNames({"tokens", "threads"})->Unit(benchmark::kMillisecond)->UseManualTime();
    b->Args({8192, 1})->Args({32768, 1})->Args({32768, 2});
}

BENCHMARK(dense<float>)->Name("prefill/dense_f32")->Apply(middle_segments);
BENCHMARK(dense<kvtrim::bf16>)->Name("prefill/dense_bf16")->Apply(middle_segments);
BENCHMARK(dense_portable)
    ->Name("prefill/dense_f32_portable")
    ->ArgNames({"tokens", "threads"})
    ->Args({8192, 1})
    ->Unit(benchmark::kMillisecond)
    ->UseManualTime();
BENCHMARK(sparse<float>)->Name("prefill/sparse_f32")->Apply(middle_segments);
BENCHMARK(sparse<kvtrim::bf16>)->Name("prefill/sparse_bf16")->Apply(middle_segments);

} // namespace
