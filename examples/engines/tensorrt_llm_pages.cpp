// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// TensorRT-LLM's compaction of a paged cache: kvtrim writes which token of each layer and head goes where, and the engine's
// kernel moves the rows (here a loop that does what sparse_kv_cache_compact_layers documents), in its two forms: one table of
// sources [kv_heads, width] for all layers, or [tables, kv_heads, width] with the table of each layer. Two of three requests
// share the pages of their prefix: only what is behind it is evicted, so the shared pages keep every bit.
#include "numbers.hpp"

#include <kvtrim/cache/paged_rows.hpp>
#include <kvtrim/compact/write_move_sources.hpp>
#include <kvtrim/policy/snapkv.hpp>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <vector>

namespace {

using namespace kvtrim;

constexpr index_t layers = 3, q_heads = 4, kv_heads = 2, head_dim = 64, page_tokens = 32, window = 8;
constexpr index_t requests = 3, request_pages = 4, pool_pages = 10, kept_behind_prefix = 40;
constexpr std::array<index_t, requests> tokens{128, 117, 100}, prefix{64, 64, 0};
// Pages. Requests 0 and 1 read the same two pages first.
constexpr std::array<std::int32_t, requests * request_pages> block_tables{7, 2, 4, 0, 7, 2, 9, 1, 3, 8, 5, 6};
constexpr index_t shared_pages_of_both[] = {7, 2};

// One layer's pool: [pages, 2, kv_heads, page_tokens, head_dim], keys and values of a page between each other.
struct kv_pool {
    std::vector<bf16> memory;
    page_layout layout = hnd_pages(page_tokens, kv_heads, head_dim, pool_pages);

    explicit kv_pool(std::uint32_t seed) {
        for (const float x : numbers(pool_pages * 2 * layout.page_stride, seed)) {
            memory.push_back(element_traits<bf16>::from_float(x));
        }
        layout.page_stride *= 2;
    }
    [[nodiscard]] bf16* values() { return memory.data() + layout.page_stride / 2; }
    // Key (which = 0) or value (1) of a token of a request.
    [[nodiscard]] bf16* row(int which, index_t request, index_t head, index_t token) {
        const auto page =
            block_tables[static_cast<std::size_t>(request * request_pages + token / page_tokens)];
        return memory.data() + page * layout.page_stride + which * layout.page_stride / 2 +
               head * layout.head_stride + token % page_tokens * layout.token_stride;
    }
};

// What the engine hands to its kernel: K offsets [requests, 2, request_pages], where a page's K has number 2 * page, its V 2 * page + 1.
std::vector<std::int32_t> kv_offsets() {
    std::vector<std::int32_t> offsets;
    for (index_t r = 0; r < requests; ++r) {
        for (const std::int32_t v : {0, 1}) {
            for (index_t p = 0; p < request_pages; ++p) {
                offsets.push_back(2 * block_tables[static_cast<std::size_t>(r * request_pages + p)] + v);
            }
        }
    }
    return offsets;
}

// Sources of the kernel. layer_tables: [layers] which table a layer reads; empty: there is one, of two axes.
struct move_sources {
    std::vector<std::int32_t> sources; // [tables, kv_heads, width]
    std::vector<std::int32_t> offsets; // [requests + 1]
    std::vector<std::int32_t> layer_tables;
    index_t width;

    [[nodiscard]] const std::int32_t* of_layer(index_t l) const {
        const index_t table = layer_tables.empty() ? 0 : layer_tables[static_cast<std::size_t>(l)];
        return sources.data() + table * kv_heads * width;
    }
};

// What the kernel does, move by move, in place: it finds a page as K offset / 2.
void compact_layers(std::span<kv_pool> pools, const move_sources& m) {
    const std::vector<std::int32_t> kv = kv_offsets();
    const index_t half = pools[0].layout.page_stride / 2;
    for (index_t l = 0; l < std::ssize(pools); ++l) {
        kv_pool& p = pools[static_cast<std::size_t>(l)];
        const auto at = [&](index_t request, index_t head, index_t token) {
            const auto k = kv[static_cast<std::size_t>(2 * request * request_pages + token / page_tokens)];
            return p.memory.data() + k / 2 * p.layout.page_stride + head * p.layout.head_stride +
                   token % page_tokens * p.layout.token_stride;
        };
        for (index_t r = 0; r < requests; ++r) {
            const index_t begin = m.offsets[static_cast<std::size_t>(r)],
                          end = m.offsets[static_cast<std::size_t>(r + 1)];
            for (index_t h = 0; h < kv_heads; ++h) {
                for (index_t i = begin; i < end; ++i) {
                    const bf16* source = at(r, h, m.of_layer(l)[h * m.width + i]);
                    bf16* destination = at(r, h, prefix[static_cast<std::size_t>(r)] + i - begin);
                    std::memmove(destination, source, head_dim * sizeof(bf16));
                    std::memmove(destination + half, source + half, head_dim * sizeof(bf16));
                }
            }
        }
    }
}

// The plans of one layer's requests.
status plan_layer(kv_pool& p, std::uint32_t seed, std::span<keep_plan> plans) {
    std::vector<std::int32_t> indptr(requests + 1), indices(block_tables.size()), last_page_len(requests);
    std::array<std::int32_t, requests> lengths{};
    std::copy(tokens.begin(), tokens.end(), lengths.begin());
    page_table table;
    status s = write_page_table({block_tables, request_pages, lengths}, page_tokens, indptr, indices,
                                last_page_len, table);
    growing_workspace memory;
    for (index_t r = 0; r < requests && s.ok(); ++r) {
        const auto i = static_cast<std::size_t>(r);
        const paged_rows<bf16> keys(p.memory.data(), p.layout, table, r, kv_heads, head_dim);
        const paged_rows<bf16> values(p.values(), p.layout, table, r, kv_heads, head_dim);
        const auto q = numbers(q_heads * window * head_dim, seed + static_cast<std::uint32_t>(r));
        const auto in = layer(keys, values).with_queries(strided(q.data(), {q_heads, window, head_dim}));
        const eviction_request request{.budget = per_head(prefix[i] + kept_behind_prefix),
                                       .protect = {.window_tokens = window}};
        s = snapkv().plan(in, keeping_prefix(request, prefix[i]), plans[i], memory);
    }
    return s;
}

// Layer l reads table layer_tables[l], which holds the plans of layer table_layers[table].
bool compacts(std::span<const index_t> table_layers, std::vector<std::int32_t> layer_tables) {
    std::vector<kv_pool> pools;
    for (std::uint32_t l = 0; l < layers; ++l) { pools.emplace_back(l); }
    std::vector<kv_pool> before = pools;
    std::vector<std::vector<keep_plan>> plans(table_layers.size(), std::vector<keep_plan>(requests));
    move_sources m{{}, std::vector<std::int32_t>(requests + 1), std::move(layer_tables), 0};
    for (std::size_t t = 0; t < table_layers.size(); ++t) {
        kv_pool& p = pools[static_cast<std::size_t>(table_layers[t])];
        status s = plan_layer(p, 100 * static_cast<std::uint32_t>(t), plans[t]);
        // Offsets hold for all layers: each must keep equally many tokens of a request, as uniform budgets do.
        m.width = move_source_columns(plans[t], prefix);
        const std::vector<std::int32_t> offsets = m.offsets;
        m.sources.resize((t + 1) * static_cast<std::size_t>(kv_heads * m.width));
        const auto table = std::span(m.sources).last(static_cast<std::size_t>(kv_heads * m.width));
        if (s.ok()) { s = write_move_sources(plans[t], prefix, m.offsets, table); }
        if (!s.ok()) { return std::puts(s.what()), false; }
        if (t > 0 && offsets != m.offsets) { return std::puts("layers of different lengths"), false; }
    }
    compact_layers(pools, m);

    bool is_right = plans.size() == 1 || plans[0] != plans[1];
    for (index_t l = 0; l < layers; ++l) {
        const auto i = static_cast<std::size_t>(l);
        const auto table = m.layer_tables.empty() ? 0u : static_cast<std::size_t>(m.layer_tables[i]);
        for (index_t r = 0; r < requests; ++r) { // each slot holds the token that the plan names
            const keep_plan& plan = plans[table][static_cast<std::size_t>(r)];
            for (index_t h = 0; h < kv_heads; ++h) {
                for (index_t t = 0; t < plan.kept_tokens(h); ++t) {
                    for (int which = 0; which < 2; ++which) {
                        const bf16* got = pools[i].row(which, r, h, t);
                        const bf16* expected =
                            before[i].row(which, r, h, plan.row(h)[static_cast<std::size_t>(t)]);
                        is_right = is_right && std::memcmp(got, expected, head_dim * sizeof(bf16)) == 0;
                    }
                }
                is_right = is_right &&
                           plan.kept_tokens(h) == prefix[static_cast<std::size_t>(r)] + kept_behind_prefix;
            }
        }
        const index_t page = pools[i].layout.page_stride;
        for (const index_t shared_page : shared_pages_of_both) {
            const auto at = static_cast<std::size_t>(shared_page * page);
            is_right = is_right && std::memcmp(&pools[i].memory[at], &before[i].memory[at],
                                               static_cast<std::size_t>(page) * sizeof(bf16)) == 0;
        }
    }
    std::printf("%d rows moved in %d layers by %zu tables, shared prefix %s\n",
                static_cast<int>(layers * kv_heads * m.offsets.back()), static_cast<int>(layers),
                plans.size(), is_right ? "untouched, each survivor in its slot" : "WRONG");
    return is_right;
}

} // namespace

int main() {
    const index_t first_layer[] = {0}, last_and_middle[] = {2, 1};
    const bool one = compacts(first_layer, {}), more = compacts(last_and_middle, {1, 1, 0});
    return one && more ? 0 : 1;
}
