// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Projected value norms: exact L1, the Gram form, and a naive loop.
// Limit: the product with W_O (L1) or with the Gram matrices (L2), with the values read once.
// Exact norms of a whole layer take seconds: their rows measure two KV heads with one query head each, show that time times
// the whole over that part, and say so; the naive loop's measure one head and 1024 tokens. Costs are linear in either.

#include "layer.hpp"

#include <cmath>
#include <utility>

namespace {

using namespace bench;

std::string scaled_label(index_t heads) {
    return "scaled from " + std::to_string(heads) + " of " + std::to_string(q_heads) + " query heads";
}

// Norms by a projection of `heads` query heads, one for each of the first KV heads or, where it has all, four.
template <class T, class Projection>
class norming {
  public:
    norming(const layer<T>& data, const Projection& projection, index_t heads)
        : in_(kvtrim::layer(first(data.k, data, heads), first(data.v, data, heads))
                  .with_output_projection(projection)),
          offsets_(even_offsets(groups_of(heads), data.tokens)),
          norms_(static_cast<std::size_t>(groups_of(heads) * data.tokens)) {}

    [[nodiscard]] index_t workspace_bytes() const { return kvtrim::projected_value_norms_bytes(in_); }
    [[nodiscard]] kvtrim::status run(threads ex = {}) {
        static kvtrim::growing_workspace memory;
        kvtrim::workspace scratch = memory.of_bytes(workspace_bytes());
        const auto s =
            kvtrim::projected_value_norms(in_, {}, kvtrim::score_rows{offsets_, norms_}, scratch, ex);
        benchmark::DoNotOptimize(norms_.data());
        return s;
    }
    [[nodiscard]] const std::vector<float>& norms() const { return norms_; }

  private:
    using view = kvtrim::strided<const T, 3>;
    static index_t groups_of(index_t heads) { return std::min(heads, kv_heads); }
    static view first(const std::vector<T>& elements, const layer<T>& data, index_t heads) {
        return {elements.data(), {groups_of(heads), data.tokens, head_dim}};
    }
    decltype(kvtrim::layer(std::declval<view>(), std::declval<view>())
                 .with_output_projection(std::declval<Projection>())) in_;
    std::vector<index_t> offsets_;
    std::vector<float> norms_;
};

template <class T, class Projection>
const char* disagreement_with_portable(const Projection& projection, index_t heads) {
    const layer<T> data(300);
    norming own(data, projection, heads), expected(data, projection, heads);
    bool is_done = own.run().ok();
    const at_level lowered(kvtrim::cpu_level::portable);
    is_done = is_done && expected.run().ok();
    return is_done && agree(own.norms(), expected.norms(), 1e-2f) ? nullptr
                                                                  : "norms differ from the portable level's";
}

template <class T, class Projection>
void norms(benchmark::State& state, const Projection& projection, index_t columns, index_t heads) {
    static const char* const wrong = disagreement_with_portable<T>(projection, heads);
    if (wrong != nullptr) { return state.SkipWithError(wrong); }
    const auto& data = shared_layer<T>(state.range(0));
    const threads ex{state.range(1)};
    norming own(data, projection, heads);
    const double factor = static_cast<double>(q_heads) / static_cast<double>(heads);
    for (auto _ : state) {
        scaled_iteration(state, factor, [&] { check(state, own.run(ex)); });
    }
    describe(state, {.stages = {products<T>(projection_flops(data.tokens, columns), data.bytes_of_keys())},
                     .threads = ex.count,
                     .workspace_bytes = static_cast<double>(own.workspace_bytes()),
                     .note = heads < q_heads ? scaled_label(heads) : ""});
}

// W_O is packed anew in each call: beside the product that is nothing.
template <class T>
void exact_l1(benchmark::State& state) {
    constexpr index_t heads = 2;
    static const kvtrim::strided<const T, 3> w_o(output_weights<T>().data(), {heads, head_dim, hidden});
    norms<T>(state, w_o, hidden, heads);
}

template <class T>
void gram_l2(benchmark::State& state) {
    norms<T>(state, output_gram<T>().view(), head_dim, q_heads);
}

// The textbook loop, over one query head and 1024 tokens.
void naive_l1(benchmark::State& state) {
    constexpr index_t tokens = 1024;
    const auto& data = shared_layer<float>(state.range(0));
    const auto& w_o = output_weights<float>();
    std::vector<float> out(static_cast<std::size_t>(tokens)), projected(hidden);
    const double factor = static_cast<double>(q_heads * data.tokens) / static_cast<double>(tokens);
    for (auto _ : state) {
        scaled_iteration(state, factor, [&] {
            std::fill(out.begin(), out.end(), 0.0f);
            for (index_t t = 0; t < tokens; ++t) {
                std::fill(projected.begin(), projected.end(), 0.0f);
                for (index_t d = 0; d < head_dim; ++d) {
                    const float v = data.v[static_cast<std::size_t>(t * head_dim + d)];
                    const float* w = &w_o[static_cast<std::size_t>(d * hidden)];
                    for (std::size_t c = 0; c < projected.size(); ++c) { projected[c] += v * w[c]; }
                }
                for (const float x : projected) { out[static_cast<std::size_t>(t)] += std::abs(x); }
            }
            benchmark::DoNotOptimize(out.data());
        });
    }
    const std::string all = std::to_string(data.tokens);
    describe(state, {.note = scaled_label(1) + " and 1024 of " + all + " tokens",
                     .beside = "norm/exact_l1_f32/tokens:" + all + "/threads:1",
                     .level = "compiler's"});
}

BENCHMARK(exact_l1<float>)->Name("norm/exact_l1_f32")->Apply(scaled_token_and_thread_counts);
BENCHMARK(exact_l1<kvtrim::bf16>)->Name("norm/exact_l1_bf16")->Apply(scaled_token_and_thread_counts);
BENCHMARK(gram_l2<float>)->Name("norm/gram_l2_f32")->Apply(scaled_token_and_thread_counts);
BENCHMARK(gram_l2<kvtrim::bf16>)->Name("norm/gram_l2_bf16")->Apply(scaled_token_and_thread_counts);
BENCHMARK(naive_l1)->Name("norm/naive_l1_f32")->Apply(scaled_token_counts);

} // namespace
