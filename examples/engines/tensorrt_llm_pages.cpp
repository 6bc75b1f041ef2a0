// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// TensorRT-LLM's compaction of a paged cache: kvtrim writes which token of each layer and head goes where, and the engine's
// kernel moves the rows (here a loop that does what sparse_kv_cache_compact_layers documents). Two of three requests share
// the pages of their prefix: only what is behind it is evicted, so the shared pages keep every bit.
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

constexpr index_t layers = 2, q_heads = 4, kv_heads = 2, head_dim = 64, page_tokens = 32, window = 8;
constexpr index_t requests = 3, request_pages = 4, pool_pages = 10, kept_behind_prefix = 40;
constexpr std::array<index_t, requests> tokens{128, 117, 100}, prefix{64, 64, 0};
// Requests 0 and 1 read the same two pages first.
constexpr std::array<std::int32_t, requests * request_pages> block_tables{7, 2, 4, 0, 7, 2, 9, 1, 3, 8, 5, 6};

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

// What the engine's kernel does with one layer, move by move, in place.
void compact_layer(kv_pool& p, std::span<const std::int32_t> offsets, std::span<const std::int32_t> sources,
                   index_t width) {
    for (index_t r = 0; r < requests; ++r) {
        const index_t begin = offsets[static_cast<std::size_t>(r)],
                      end = offsets[static_cast<std::size_t>(r + 1)];
        for (index_t h = 0; h < kv_heads; ++h) {
            for (index_t m = begin; m < end; ++m) {
                const index_t source = sources[static_cast<std::size_t>(h * width + m)];
                const index_t destination = prefix[static_cast<std::size_t>(r)] + m - begin;
                for (int which = 0; which < 2; ++which) {
                    std::copy_n(p.row(which, r, h, source), head_dim, p.row(which, r, h, destination));
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

} // namespace

int main() {
    bool is_right = true;
    index_t moves = 0;
    for (std::uint32_t l = 0; l < layers; ++l) {
        kv_pool p(l), before = p;
        std::vector<keep_plan> plans(requests);
        status s = plan_layer(p, 100 * l, plans);
        const index_t width = move_source_columns(plans, prefix);
        std::vector<std::int32_t> offsets(requests + 1), sources(static_cast<std::size_t>(kv_heads * width));
        if (s.ok()) { s = write_move_sources(plans, prefix, offsets, sources); }
        if (!s.ok()) { return std::puts(s.what()), 1; }
        compact_layer(p, offsets, sources, width);
        moves += kv_heads * offsets.back();

        for (index_t r = 0; r < requests; ++r) { // each slot holds the token that the plan names
            const keep_plan& plan = plans[static_cast<std::size_t>(r)];
            for (index_t h = 0; h < kv_heads; ++h) {
                for (index_t t = 0; t < plan.kept_tokens(h); ++t) {
                    for (int which = 0; which < 2; ++which) {
                        const bf16* got = p.row(which, r, h, t);
                        const bf16* expected =
                            before.row(which, r, h, plan.row(h)[static_cast<std::size_t>(t)]);
                        is_right = is_right && std::memcmp(got, expected, head_dim * sizeof(bf16)) == 0;
                    }
                }
                is_right = is_right &&
                           plan.kept_tokens(h) == prefix[static_cast<std::size_t>(r)] + kept_behind_prefix;
            }
        }
        for (const index_t shared_page : {7, 2}) {
            const auto at = static_cast<std::size_t>(shared_page * p.layout.page_stride);
            is_right =
                is_right && std::memcmp(&p.memory[at], &before.memory[at],
                                        static_cast<std::size_t>(p.layout.page_stride) * sizeof(bf16)) == 0;
        }
    }
    std::printf("%d rows moved in %d layers, shared prefix %s\n", static_cast<int>(moves),
                static_cast<int>(layers), is_right ? "untouched, each survivor in its slot" : "WRONG");
    return is_right ? 0 : 1;
}
