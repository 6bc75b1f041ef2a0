// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// FlashInfer's and vLLM's page tables: the same requests as NHD with K and V apart, as HND with both in one five-axis pool
// [pages, 2, heads, page_tokens, head_dim], and as a layer of vLLM's buffers, where a token's value follows its key, in each of
// the six orders that vLLM has for layers, blocks (pages), heads, tokens and content. All give the same plan; pages are freed,
// each slot of the new table holds the token that it should, and the other layers are as they were. Attention over the new table
// is attention over the survivors.
#include <kvtrim/cache/paged_rows.hpp>
#include <kvtrim/compact/move_rows.hpp>
#include <kvtrim/compact/plan_page_moves.hpp>
#include <kvtrim/decode/ragged_attention.hpp>
#include <kvtrim/policy/snapkv.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

namespace {

using namespace kvtrim;

constexpr index_t q_heads = 4, kv_heads = 2, head_dim = 16, page_tokens = 8, pool_pages = 40, window = 8;
constexpr index_t kept = 40, layers = 3;

// Keys (which = 0) and values (1) of a layer, in a pool of either kind.
struct kv_pool {
    std::vector<float> memory;
    page_layout layout;
    index_t values_at;      // elements from the keys
    index_t first = 0;      // elements before the layer's
    std::string order = {}; // of a buffer of all layers

    [[nodiscard]] paged_memory<float> part(int which) {
        return {memory.data() + first + which * values_at, layout, kv_heads, head_dim};
    }
};

kv_pool separate_nhd() {
    const page_layout layout = nhd_pages(page_tokens, kv_heads, head_dim);
    return {std::vector<float>(static_cast<std::size_t>(2 * pool_pages * layout.page_stride)), layout,
            pool_pages * layout.page_stride};
}

kv_pool combined_hnd() {
    page_layout layout = hnd_pages(page_tokens, kv_heads, head_dim);
    const index_t one = layout.page_stride;
    layout.page_stride = 2 * one; // the other half of a page is V
    return {std::vector<float>(static_cast<std::size_t>(2 * pool_pages * one)), layout, one};
}

// Layer 1 of a vLLM buffer whose axes lie in memory in this order: "LBNHC", for instance.
kv_pool vllm_layer(const std::string& order) {
    std::map<char, index_t> extent{
        {'L', layers}, {'B', pool_pages}, {'H', kv_heads}, {'N', page_tokens}, {'C', 2 * head_dim}};
    std::map<char, index_t> stride;
    index_t elements = 1;
    for (auto axis = order.rbegin(); axis != order.rend(); ++axis) {
        stride[*axis] = elements;
        elements *= extent[*axis];
    }
    return {.memory = std::vector<float>(static_cast<std::size_t>(elements)),
            .layout = {.page_tokens = page_tokens,
                       .page_stride = stride['B'],
                       .token_stride = stride['N'],
                       .head_stride = stride['H'],
                       .pages = pool_pages},
            .values_at = head_dim,
            .first = stride['L'],
            .order = order};
}

// What token t of a request holds.
float number(int which, index_t request, index_t head, index_t t, index_t d) {
    const index_t i = (((which * 2 + request) * kv_heads + head) * 1000 + t) * head_dim + d;
    return static_cast<float>(static_cast<std::uint32_t>(i) * 2654435761u >> 20) / 2048 - 1;
}

std::int32_t slot_of(const page_table& table, index_t request, index_t t) {
    return static_cast<std::int32_t>(
        table.row(request)[static_cast<std::size_t>(t / page_tokens)] * page_tokens + t % page_tokens);
}

// Both requests' survivors, in one plan with a row per (request, head).
status plan_requests(kv_pool& p, const page_table& table, keep_plan& out) {
    std::vector<float> q(q_heads * window * head_dim);
    for (std::size_t i = 0; i < q.size(); ++i) { q[i] = static_cast<float>(i * 40503u % 1024) / 512 - 1; }
    const eviction_request request{.budget = per_head(kept),
                                   .protect = {.sink_tokens = 4, .window_tokens = window}};
    growing_workspace memory;
    std::vector<keep_plan> plans(static_cast<std::size_t>(table.rows()));
    std::vector<index_t> counts;
    for (index_t r = 0; r < table.rows(); ++r) {
        const paged_rows<float> keys(p.part(0).data, p.layout, table, r, kv_heads, head_dim);
        const auto in = layer(keys).with_queries(strided(q.data(), {q_heads, window, head_dim}));
        keep_plan& plan = plans[static_cast<std::size_t>(r)];
        if (const status s = snapkv().plan(in, request, plan, memory); !s.ok()) { return s; }
        for (index_t h = 0; h < kv_heads; ++h) { counts.push_back(plan.kept_tokens(h)); }
    }
    if (const status s = out.reset(counts); !s.ok()) { return s; }
    for (index_t row = 0; row < out.rows(); ++row) {
        const auto from = plans[static_cast<std::size_t>(row / kv_heads)].row(row % kv_heads);
        std::copy(from.begin(), from.end(), out.writable_row(row).begin());
    }
    return {};
}

// Whether each slot of the new table holds the token that its origin names.
bool holds_survivors(kv_pool& p, const move_plan& moves) {
    for (index_t row = 0; row < moves.rows(); ++row) {
        const index_t request = row / kv_heads, head = row % kv_heads;
        const auto origins = moves.origins(row);
        for (index_t t = 0; t < std::ssize(origins); ++t) {
            for (int which = 0; which < 2; ++which) {
                const float* got = p.part(which).row(slot_of(moves.table(), request, t), head);
                for (index_t d = 0; d < head_dim; ++d) {
                    const auto origin = origins[static_cast<std::size_t>(t)];
                    if (got[d] != number(which, request, head, origin, d)) { return false; }
                }
            }
        }
    }
    return true;
}

// Whether nothing was written beside the layer: memory of the others is zero, as it was made.
bool leaves_other_layers(const kv_pool& p) {
    if (p.order.empty()) { return true; }
    const auto written = std::count_if(p.memory.begin(), p.memory.end(), [](float x) { return x != 0; });
    kv_pool own = p;
    for (std::int32_t slot = 0; slot < pool_pages * page_tokens; ++slot) {
        for (index_t h = 0; h < kv_heads; ++h) {
            for (int which = 0; which < 2; ++which) {
                std::fill_n(own.part(which).row(slot, h), head_dim, 0.0f);
            }
        }
    }
    return written > 0 && std::all_of(own.memory.begin(), own.memory.end(), [](float x) { return x == 0; });
}

// The largest difference between attention over the new table of a request and over its survivors, gathered; < 0: an error.
float attention_distance(kv_pool& p, const keep_plan& plan, const page_table& table, index_t request) {
    std::vector<float> gathered[2], q(q_heads * head_dim), got(q.size()), expected(q.size());
    for (std::size_t i = 0; i < q.size(); ++i) { q[i] = number(0, 0, 0, 900, static_cast<index_t>(i)); }
    for (int which = 0; which < 2; ++which) {
        for (index_t h = 0; h < kv_heads; ++h) {
            for (const auto t : plan.row(request * kv_heads + h)) {
                for (index_t d = 0; d < head_dim; ++d) {
                    gathered[which].push_back(number(which, request, h, t, d));
                }
            }
        }
    }
    const strided query(q.data(), {q_heads, 1, head_dim});
    const paged_rows<float> keys(p.part(0).data, p.layout, table, request, kv_heads, head_dim);
    const paged_rows<float> values(p.part(1).data, p.layout, table, request, kv_heads, head_dim);
    const strided own_keys(gathered[0].data(), {kv_heads, kept, head_dim});
    const strided own_values(gathered[1].data(), {kv_heads, kept, head_dim});
    growing_workspace memory;
    const status a = ragged_attention(layer(keys, values).with_queries(query), {},
                                      strided(got.data(), {q_heads, 1, head_dim}), {}, memory);
    const status b = ragged_attention(layer(own_keys, own_values).with_queries(query), {},
                                      strided(expected.data(), {q_heads, 1, head_dim}), {}, memory);
    if (!a.ok() || !b.ok()) { return -1; }
    float worst = 0;
    for (std::size_t i = 0; i < got.size(); ++i) { worst = std::max(worst, std::abs(got[i] - expected[i])); }
    return worst;
}

status evict(kv_pool& p, keep_plan& plan, move_plan& moves) {
    // 100 tokens in 13 pages and 163 in 21, scattered.
    const std::int32_t indptr[] = {0, 13, 34}, last_page_len[] = {4, 3};
    std::vector<std::int32_t> indices(34);
    for (std::size_t i = 0; i < indices.size(); ++i) { indices[i] = static_cast<std::int32_t>(i * 7 % 40); }
    const page_table table{indptr, indices, last_page_len};
    for (index_t r = 0; r < table.rows(); ++r) {
        for (index_t t = 0; t < table.tokens(r, page_tokens); ++t) {
            for (int which = 0; which < 2; ++which) {
                for (index_t h = 0; h < kv_heads; ++h) {
                    float* row = p.part(which).row(slot_of(table, r, t), h);
                    for (index_t d = 0; d < head_dim; ++d) { row[d] = number(which, r, h, t, d); }
                }
            }
        }
    }
    if (const status s = plan_requests(p, table, plan); !s.ok()) { return s; }
    const page_pool pages{.pages = pool_pages, .page_tokens = page_tokens, .heads = kv_heads};
    growing_workspace memory;
    workspace scratch = memory.of_bytes(plan_page_moves_bytes(table, pages));
    if (const status s = plan_page_moves(plan, table, pages, {}, moves, scratch); !s.ok()) { return s; }
    return move_rows(p.part(0), p.part(1), moves); // keys and values
}

} // namespace

int main() {
    struct evicted {
        kv_pool pool;
        keep_plan plan = {};
        move_plan moves = {};
    };
    std::vector<evicted> pools;
    pools.push_back({separate_nhd()});
    pools.push_back({combined_hnd()});
    for (const char* order : {"LBHNC", "LBNHC", "LHBNC", "BLHNC", "BLNHC", "BHLNC"}) {
        pools.push_back({vllm_layer(order)});
    }
    bool is_right = true;
    for (evicted& e : pools) {
        const status s = evict(e.pool, e.plan, e.moves);
        if (!s.ok()) { return std::puts(s.what()), 1; }
        for (index_t request = 0; request < 2; ++request) {
            const float distance = attention_distance(e.pool, e.plan, e.moves.table(), request);
            is_right = is_right && distance >= 0 && distance < 1e-5f;
        }
        is_right = is_right && e.plan == pools[0].plan && e.moves == pools[0].moves &&
                   holds_survivors(e.pool, e.moves) && e.moves.freed_pages().size() == 24 &&
                   leaves_other_layers(e.pool);
    }
    std::printf("NHD, HND and the orders of vLLM: %d rows moved, %zu of 34 pages freed, %s\n",
                static_cast<int>(pools[0].moves.total_moves()), pools[0].moves.freed_pages().size(),
                is_right ? "each survivor in its slot" : "WRONG");
    return is_right ? 0 : 1;
}
