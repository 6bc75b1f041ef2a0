// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The rows that every source of keys has: SnapKV's scores over it, and loading each key once as floats.
//
// Keys is made from a layer of bf16, says what its products are made of (multiplied: bf16 where AMX may take the rows as they
// are, else float), and has view(). Limit: one product of queries and keys, the keys as they are kept read once.
// Checked: the scores against those of contiguous keys.

#include "scoring.hpp"

#include <span>
#include <type_traits>

namespace bench {

using kvtrim::bf16;

struct contiguous {
    using multiplied = bf16;

    const layer<bf16>& data;

    explicit contiguous(const layer<bf16>& from) : data(from) {}
    auto view() const { return data.keys(); }
};

// SnapKV's scores of these keys.
template <class Keys>
auto snapkv_scoring(const Keys& keys, const layer<bf16>& data) {
    static const kvtrim::window_attention<kvtrim::mean_attention> scorer;
    return scoring(kvtrim::layer(keys.view()).with_queries(data.queries()), data.request(), scorer);
}

// Quantised keys are near the others, no nearer.
template <class Keys>
const char* disagreement() {
    const float tolerance = std::is_same_v<typename Keys::multiplied, bf16> ? 1e-2f : 5e-2f;
    const layer<bf16> data(640);
    const Keys keys(data);
    const contiguous same(data);
    auto own = snapkv_scoring(keys, data);
    auto expected = snapkv_scoring(same, data);
    return own.run().ok() && expected.run().ok() && agree(own.importance(), expected.importance(), tolerance)
               ? nullptr
               : "scores differ from those of contiguous keys";
}

// Of the keys as they are kept.
template <class Keys>
double bytes_of(const Keys& keys, const layer<bf16>& data) {
    if constexpr (std::is_same_v<typename Keys::multiplied, bf16>) {
        return data.bytes_of_keys();
    } else {
        return static_cast<double>(kvtrim::row_bytes(keys.view()) * kv_heads * data.tokens);
    }
}

template <class Keys>
void snapkv(benchmark::State& state) {
    static const char* const wrong = disagreement<Keys>();
    if (wrong != nullptr) { return state.SkipWithError(wrong); }
    const auto& data = shared_layer<bf16>(state.range(0));
    const Keys keys(data);
    auto own = snapkv_scoring(keys, data);
    check(state, own.run());
    for (auto _ : state) { check(state, own.run()); }
    describe(state, {.stages = {products<typename Keys::multiplied>(window_flops(data.tokens),
                                                                    bytes_of(keys, data))},
                     .workspace_bytes = static_cast<double>(own.workspace_bytes())});
}

template <class Keys>
void load(benchmark::State& state) {
    const auto& data = shared_layer<bf16>(state.range(0));
    const Keys keys(data);
    const auto view = keys.view();
    const index_t step = kvtrim::kernels::tile_tokens(head_dim);
    // Aligned as a policy's tiles are: stores of whole lines to a vector's memory take up to half as long again.
    static kvtrim::growing_workspace memory;
    kvtrim::workspace scratch = memory.of_bytes(4 * step * head_dim + kvtrim::workspace::alignment_bytes);
    const std::span<float> tile = scratch.take<float>(step * head_dim);
    for (auto _ : state) {
        for (index_t g = 0; g < kv_heads; ++g) {
            for (index_t t = 0; t < data.tokens; t += step) {
                kvtrim::load_rows(view, g, t, std::min(step, data.tokens - t), tile.data());
                benchmark::DoNotOptimize(tile.data());
                benchmark::ClobberMemory();
            }
        }
    }
    describe(state, {.stages = {{.read_bytes = bytes_of(keys, data)}}});
}

} // namespace bench
