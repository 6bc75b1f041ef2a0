// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// The same bf16 keys in the layouts of engines: contiguous, in pages of 16 tokens that the sequence got in random order,
// in slots token by token. SnapKV's scores, and loading every key once as floats.
// Limit: as of the contiguous keys (score.cpp). Checked: the scores against the contiguous ones.

#include "source_rows.hpp"

#include <kvtrim/cache/indexed_rows.hpp>
#include <kvtrim/cache/paged_rows.hpp>

#include <numeric>
#include <random>

namespace {

using namespace bench;

std::vector<std::int32_t> random_order(index_t count) {
    std::vector<std::int32_t> order(static_cast<std::size_t>(count));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937(7));
    return order;
}

// The layer's keys, where a page table says.
struct pages {
    using multiplied = bf16;
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
    using multiplied = bf16;

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

BENCHMARK(snapkv<contiguous>)->Name("source/snapkv_contiguous")->Apply(token_counts);
BENCHMARK(snapkv<nhd>)->Name("source/snapkv_paged_nhd")->Apply(token_counts);
BENCHMARK(snapkv<hnd>)->Name("source/snapkv_paged_hnd")->Apply(token_counts);
BENCHMARK(snapkv<slots>)->Name("source/snapkv_indexed")->Apply(token_counts);
BENCHMARK(load<contiguous>)->Name("source/load_contiguous")->Apply(token_counts);
BENCHMARK(load<nhd>)->Name("source/load_paged_nhd")->Apply(token_counts);
BENCHMARK(load<hnd>)->Name("source/load_paged_hnd")->Apply(token_counts);
BENCHMARK(load<slots>)->Name("source/load_indexed")->Apply(token_counts);

} // namespace
