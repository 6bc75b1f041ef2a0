// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// The same bf16 keys in the layouts of engines: contiguous, in pages of 16 tokens that the sequence got in random order,
// in slots token by token. SnapKV's scores, and loading every key once as floats.
// Limit: as of the contiguous keys (score.cpp). Checked: the scores against the contiguous ones.

#include "layer.hpp"

#include <kvtrim/source/indexed.hpp>
#include <kvtrim/source/paged.hpp>

#include <numeric>
#include <random>

namespace {

using namespace bench;
using kvtrim::bf16;

std::vector<std::int32_t> random_order(index_t count) {
    std::vector<std::int32_t> order(static_cast<std::size_t>(count));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937(7));
    return order;
}

struct contiguous {
    const layer<bf16>& data;

    explicit contiguous(const layer<bf16>& from) : data(from) {}
    auto view() const { return data.keys(); }
};

// The layer's keys, where a page table says.
struct pages {
    static constexpr index_t page_tokens = 16;

    kvtrim::page_layout layout;
    std::vector<std::int32_t> indptr, indices, last_page_len{page_tokens};
    std::vector<bf16> pool;

    pages(const layer<bf16>& from, const kvtrim::page_layout& where)
        : layout(where), indptr{0, static_cast<std::int32_t>(from.tokens / page_tokens)},
          indices(random_order(from.tokens / page_tokens)), pool(from.k.size()) {
        for (index_t t = 0; t < from.tokens; ++t) {
            const index_t page = indices[static_cast<std::size_t>(t / page_tokens)];
            for (index_t g = 0; g < kv_heads; ++g) {
                std::copy_n(from.k.begin() + (g * from.tokens + t) * head_dim, head_dim,
                            pool.begin() + page * layout.page_stride + t % page_tokens * layout.token_stride +
                                g * layout.head_stride);
            }
        }
    }
    auto view() const {
        return kvtrim::paged_rows<bf16>(pool.data(), layout, {indptr, indices, last_page_len}, 0, kv_heads,
                                        head_dim);
    }
};
struct nhd : pages {
    explicit nhd(const layer<bf16>& from) : pages(from, kvtrim::nhd_pages(page_tokens, kv_heads, head_dim)) {}
};
struct hnd : pages {
    explicit hnd(const layer<bf16>& from) : pages(from, kvtrim::hnd_pages(page_tokens, kv_heads, head_dim)) {}
};

// [slots, kv_heads, head_dim] with a slot of its own for each token.
struct slots {
    index_t tokens;
    std::vector<std::int32_t> indices;
    std::vector<bf16> pool;

    explicit slots(const layer<bf16>& from)
        : tokens(from.tokens), indices(random_order(tokens)), pool(from.k.size()) {
        for (index_t t = 0; t < tokens; ++t) {
            const index_t slot = indices[static_cast<std::size_t>(t)];
            for (index_t g = 0; g < kv_heads; ++g) {
                std::copy_n(from.k.begin() + (g * tokens + t) * head_dim, head_dim,
                            pool.begin() + (slot * kv_heads + g) * head_dim);
            }
        }
    }
    auto view() const {
        return kvtrim::indexed_rows(kvtrim::strided<const bf16, 3>(pool.data(), {kv_heads, tokens, head_dim},
                                                                   {head_dim, kv_heads * head_dim, 1}),
                                    indices);
    }
};

// SnapKV's importance of the candidates.
template <class Keys>
class scoring {
  public:
    scoring(const Keys& keys, const layer<bf16>& data)
        : in_(kvtrim::layer(keys.view()).with_queries(data.queries())), request_(data.request()),
          columns_(kvtrim::candidates(request_.protect, data.tokens).size()),
          offsets_(even_offsets(kv_heads, columns_)),
          importance_(static_cast<std::size_t>(kv_heads * columns_)) {}

    [[nodiscard]] index_t workspace_bytes() const { return scorer_.workspace_bytes(in_, request_); }
    [[nodiscard]] kvtrim::status run() {
        static kvtrim::growing_workspace memory;
        kvtrim::workspace scratch = memory.of_bytes(workspace_bytes());
        kvtrim::serial_executor ex;
        const kvtrim::status s =
            scorer_.score(in_, request_, {offsets_, importance_, {}, mass_}, scratch, ex);
        benchmark::DoNotOptimize(importance_.data());
        return s;
    }
    [[nodiscard]] const std::vector<float>& importance() const { return importance_; }

  private:
    using inputs = decltype(kvtrim::layer(std::declval<const Keys&>().view())
                                .with_queries(std::declval<const layer<bf16>&>().queries()));
    kvtrim::window_attention<kvtrim::mean_attention> scorer_;
    inputs in_;
    kvtrim::eviction_request request_;
    index_t columns_;
    std::vector<index_t> offsets_;
    std::vector<float> importance_, mass_ = std::vector<float>(kv_heads);
};

template <class Keys>
const char* disagreement() {
    const layer<bf16> data(640);
    const Keys keys(data);
    const contiguous same(data);
    scoring own(keys, data);
    scoring expected(same, data);
    return own.run().ok() && expected.run().ok() && agree(own.importance(), expected.importance(), 1e-2f)
               ? nullptr
               : "scores differ from those of contiguous keys";
}

template <class Keys>
void snapkv(benchmark::State& state) {
    static const char* const wrong = disagreement<Keys>();
    if (wrong != nullptr) { return state.SkipWithError(wrong); }
    const auto& data = shared_layer<bf16>(state.range(0));
    const Keys keys(data);
    scoring own(keys, data);
    check(state, own.run());
    for (auto _ : state) { check(state, own.run()); }
    describe(state, {.stages = {products<bf16>(window_flops(data.tokens), data.bytes_of_keys())},
                     .workspace_bytes = static_cast<double>(own.workspace_bytes())});
}

template <class Keys>
void load(benchmark::State& state) {
    const auto& data = shared_layer<bf16>(state.range(0));
    const Keys keys(data);
    const auto view = keys.view();
    const index_t step = kvtrim::kernels::tile_tokens(head_dim);
    std::vector<float> tile(static_cast<std::size_t>(step * head_dim));
    for (auto _ : state) {
        for (index_t g = 0; g < kv_heads; ++g) {
            for (index_t t = 0; t < data.tokens; t += step) {
                kvtrim::kernels::load_rows(view, g, t, std::min(step, data.tokens - t), tile.data());
                benchmark::DoNotOptimize(tile.data());
                benchmark::ClobberMemory();
            }
        }
    }
    describe(state, {.stages = {{.read_bytes = data.bytes_of_keys()}}});
}

BENCHMARK(snapkv<contiguous>)->Name("source/snapkv_contiguous")->Apply(token_counts);
BENCHMARK(snapkv<nhd>)->Name("source/snapkv_paged_nhd")->Apply(token_counts);
BENCHMARK(snapkv<hnd>)->Name("source/snapkv_paged_hnd")->Apply(token_counts);
BENCHMARK(snapkv<slots>)->Name("source/snapkv_indexed")->Apply(token_counts);
BENCHMARK(load<contiguous>)->Name("source/load_contiguous")->Apply(token_counts);
BENCHMARK(load<nhd>)->Name("source/load_paged_nhd")->Apply(token_counts);
BENCHMARK(load<hnd>)->Name("source/load_paged_hnd")->Apply(token_counts);
BENCHMARK(load<slots>)->Name("source/load_indexed")->Apply(token_counts);

} // namespace
