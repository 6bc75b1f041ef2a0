// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Quantised caches beside contiguous bf16: SnapKV's scores, and reading every key once. Token-major, all heads together,
// where the format has no other place (ggml). Codes are random, so that each row costs what it costs in a model.
// Limit: one product in f32, with the codes read once.

#include "layer.hpp"

namespace {

using namespace bench;

// Memory of one key cache and the view on it.
template <class T>
struct plain_keys {
    std::vector<T> data;

    explicit plain_keys(index_t tokens) : data(random_elements<T>(kv_heads * tokens * head_dim, 1)) {}
    auto view(index_t tokens) const {
        return kvtrim::strided<const T, 3>(data.data(), {kv_heads, tokens, head_dim});
    }
};

template <class Block>
struct block_keys {
    static constexpr index_t row_blocks = head_dim / Block::elements;
    std::vector<Block> data;

    explicit block_keys(index_t tokens) : data(static_cast<std::size_t>(kv_heads * tokens * row_blocks)) {
        std::uint32_t state = 1;
        for (Block& block : data) {
            block.scale = kvtrim::element_traits<kvtrim::f16>::from_float(1.0f / 256);
            for (auto& code : block.codes) {
                state = state * 1664525u + 1013904223u;
                code = static_cast<std::remove_reference_t<decltype(code)>>(state >> 24);
            }
        }
    }
    auto view(index_t tokens) const {
        constexpr auto row = row_blocks * static_cast<index_t>(sizeof(Block));
        return kvtrim::ggml_rows<const Block>(data.data(), {kv_heads, tokens, head_dim},
                                              {row, kv_heads * row});
    }
};

struct int8_keys {
    std::vector<std::int8_t> data;
    std::vector<float> scales;

    explicit int8_keys(index_t tokens) : scales(static_cast<std::size_t>(kv_heads * tokens), 1.0f / 256) {
        for (const float x : random_elements<float>(kv_heads * tokens * head_dim, 1)) {
            data.push_back(static_cast<std::int8_t>(254 * x));
        }
    }
    auto view(index_t tokens) const {
        return kvtrim::scaled_rows<const std::int8_t>(data.data(), {kv_heads, tokens, head_dim},
                                                      {tokens * head_dim, head_dim},
                                                      {scales.data(), {tokens, 1, 0}});
    }
};

template <class T>
double bytes_of(const std::vector<T>& data) {
    return static_cast<double>(data.size() * sizeof(T));
}

template <class Keys>
void snapkv(benchmark::State& state) {
    const index_t tokens = state.range(0);
    const Keys keys(tokens);
    const auto q = random_elements<kvtrim::bf16>(q_heads * window * head_dim, 3);
    const kvtrim::strided<const kvtrim::bf16, 3> queries(q.data(), {q_heads, window, head_dim});
    const auto in = kvtrim::layer(keys.view(tokens)).with_queries(queries);
    const kvtrim::eviction_request request{.budget = kvtrim::per_head(tokens / 5),
                                           .protect = {.window_tokens = window}};
    const index_t columns = kvtrim::candidates(request.protect, tokens).size();
    std::vector<index_t> offsets;
    for (index_t g = 0; g <= kv_heads; ++g) { offsets.push_back(g * columns); }
    std::vector<float> importance(static_cast<std::size_t>(kv_heads * columns)), mass(kv_heads);
    const kvtrim::window_attention<kvtrim::mean_attention> scorer{};
    kvtrim::growing_workspace memory;
    kvtrim::serial_executor ex;
    const index_t bytes = scorer.workspace_bytes(in, request);
    for (auto _ : state) {
        kvtrim::workspace scratch = memory.of_bytes(bytes);
        check(state, scorer.score(in, request, {offsets, importance, {}, mass}, scratch, ex));
        benchmark::DoNotOptimize(importance.data());
    }
    describe(state, {.stages = {{.flops = window_flops(tokens), .read_bytes = bytes_of(keys.data)}},
                     .workspace_bytes = static_cast<double>(bytes)});
}

template <class Keys>
void load(benchmark::State& state) {
    const index_t tokens = state.range(0);
    const Keys keys(tokens);
    const auto view = keys.view(tokens);
    const index_t step = kvtrim::kernels::tile_tokens(head_dim);
    std::vector<float> tile(static_cast<std::size_t>(step * head_dim));
    for (auto _ : state) {
        for (index_t g = 0; g < kv_heads; ++g) {
            for (index_t t = 0; t < tokens; t += step) {
                kvtrim::kernels::load_rows(view, g, t, std::min(step, tokens - t), tile.data());
                benchmark::DoNotOptimize(tile.data());
                benchmark::ClobberMemory();
            }
        }
    }
    describe(state, {.stages = {{.read_bytes = bytes_of(keys.data)}}});
}

#define KVTRIM_BENCH_KEYS(name, type)                                                                        \
    BENCHMARK(snapkv<type>)->Name("quantised/snapkv_" name)->Apply(token_counts);                            \
    BENCHMARK(load<type>)->Name("quantised/load_" name)->Apply(token_counts)

KVTRIM_BENCH_KEYS("bf16", plain_keys<kvtrim::bf16>);
KVTRIM_BENCH_KEYS("q8_0", block_keys<kvtrim::block_q8_0>);
KVTRIM_BENCH_KEYS("q4_0", block_keys<kvtrim::block_q4_0>);
KVTRIM_BENCH_KEYS("int8", int8_keys);
KVTRIM_BENCH_KEYS("e4m3", plain_keys<kvtrim::f8_e4m3>);
KVTRIM_BENCH_KEYS("e5m2", plain_keys<kvtrim::f8_e5m2>);

} // namespace
