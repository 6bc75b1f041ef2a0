// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// A paged cache of 100 000 pages cut to a fifth: planning the moves, and making them, against a plain copy of as
// many bytes.
//
//   span_heads   pages of 16 tokens span 8 heads, one token set: a slot moves as a whole, 2 KiB of keys
//   own_sets     the same pages, each head with a token set of its own: rows move head by head
//   per_head     a table per (request, KV head), as head-wise budgets need: 256 bytes of keys
//
// And a flat ragged cache of 8 heads that is fed token by token: flat_cache with room behind each head, its
// spreads included, against a copy of the whole cache for each token, as AdaKV does it. Rows show the time of 4096
// tokens, keys only.
//
// Survivors: heavy hitters spread over the prompt and a window of new tokens in each request. bytes counts rows
// read and written; each iteration makes the same moves again.

#include "layer.hpp"

#include <cstring>

namespace {

using namespace bench;

constexpr index_t page_tokens = 16;
constexpr index_t pages = 100000;

struct paged_layer {
    index_t heads; // in a page
    index_t sets;  // token sets of a request: 1, or one for each head
    std::vector<std::int32_t> indptr{0}, indices, last_page_len;
    kvtrim::keep_plan plan;

    // Requests of 32768 tokens.
    paged_layer(index_t heads_in_page, index_t token_sets) : heads(heads_in_page), sets(token_sets) {
        constexpr index_t row_pages = 32768 / page_tokens;
        for (index_t i = 0; i < pages; ++i) { // a permutation: 7919 is prime to the number of pages
            indices.push_back(static_cast<std::int32_t>(i * 7919 % pages));
        }
        for (index_t begin = 0; begin < pages; begin += row_pages) {
            indptr.push_back(static_cast<std::int32_t>(std::min(begin + row_pages, pages)));
            last_page_len.push_back(page_tokens);
        }
        cut();
    }

    [[nodiscard]] kvtrim::page_table table() const { return {indptr, indices, last_page_len}; }
    [[nodiscard]] kvtrim::page_pool pool() const {
        return {.pages = pages, .page_tokens = page_tokens, .heads = sets};
    }
    [[nodiscard]] std::vector<kvtrim::bf16> keys() const {
        return std::vector<kvtrim::bf16>(static_cast<std::size_t>(pages * page_tokens * heads * head_dim));
    }
    [[nodiscard]] kvtrim::paged_memory<kvtrim::bf16> memory(std::vector<kvtrim::bf16>& k) const {
        const index_t slot = heads * head_dim;
        return {k.data(), {page_tokens, page_tokens * slot, slot, head_dim}, heads, head_dim};
    }
    [[nodiscard]] kvtrim::move_plan moves(kvtrim::move_order order) const {
        kvtrim::growing_workspace memory;
        kvtrim::workspace scratch = memory.of_bytes(kvtrim::plan_page_moves_bytes(table(), pool()));
        kvtrim::move_plan out;
        if (!kvtrim::plan_page_moves(plan, table(), pool(), {.order = order}, out, scratch).ok()) {
            std::abort();
        }
        return out;
    }
    [[nodiscard]] index_t moved_elements(const kvtrim::move_plan& out) const {
        return out.total_moves() * head_dim * (sets == 1 ? heads : 1);
    }

  private:
    void cut() {
        std::vector<index_t> counts;
        for (index_t r = 0; r < table().rows() * sets; ++r) {
            counts.push_back(table().tokens(r / sets, page_tokens) / 5);
        }
        if (!plan.reset(counts).ok()) { std::abort(); }
        for (index_t r = 0; r < plan.rows(); ++r) {
            auto scores = random_elements<float>(table().tokens(r / sets, page_tokens),
                                                 static_cast<std::uint32_t>(7 + r));
            const std::span candidates(scores.data(), scores.size() - window);
            kvtrim::top_k_cut best = kvtrim::find_top_k(candidates, plan.kept_tokens(r) - window);
            auto next = plan.writable_row(r).begin();
            const auto keep = [&](index_t t) { *next++ = static_cast<std::int32_t>(t); };
            kvtrim::for_each_above(candidates, best, keep);
            for (index_t t = std::ssize(candidates); t < std::ssize(scores); ++t) { keep(t); }
        }
    }
};

// What asking the table costs; planning and making its moves, the rows below, ask it too.
void check_table(benchmark::State& state) {
    const paged_layer layer(1, 1);
    for (auto _ : state) { check(state, kvtrim::validate(layer.table(), pages, page_tokens)); }
}

// And what asking the plan costs, before its moves are planned.
void check_plan(benchmark::State& state) {
    const paged_layer layer(1, 1);
    const auto tokens = [&](index_t r) { return layer.table().tokens(r, page_tokens); };
    for (auto _ : state) {
        bool holds = layer.plan.check_invariants(tokens);
        benchmark::DoNotOptimize(holds);
    }
}

void plan_moves(benchmark::State& state, index_t sets, kvtrim::move_order order) {
    const paged_layer layer(sets, sets);
    kvtrim::growing_workspace memory;
    kvtrim::workspace scratch = memory.of_bytes(kvtrim::plan_page_moves_bytes(layer.table(), layer.pool()));
    kvtrim::move_plan plan;
    for (auto _ : state) {
        check(state, kvtrim::plan_page_moves(layer.plan, layer.table(), layer.pool(), {.order = order}, plan,
                                             scratch));
        benchmark::DoNotOptimize(plan);
    }
    state.counters["moves"] = static_cast<double>(plan.total_moves());
    state.counters["freed"] = static_cast<double>(plan.freed_pages().size());
}

void make_moves(benchmark::State& state, index_t heads, index_t sets) {
    const paged_layer layer(heads, sets);
    const kvtrim::move_plan plan = layer.moves(kvtrim::move_order::fewest);
    auto keys = layer.keys();
    for (auto _ : state) {
        check(state, kvtrim::move_rows(layer.memory(keys), plan));
        benchmark::ClobberMemory();
    }
    describe(state, {.stages = {{.copied_bytes = 2.0 * static_cast<double>(layer.moved_elements(plan)) *
                                                 sizeof(kvtrim::bf16)}}});
}

// As many bytes, from one contiguous array to another.
void plain_copy(benchmark::State& state, index_t heads, index_t sets) {
    const paged_layer layer(heads, sets);
    const auto elements =
        static_cast<std::size_t>(layer.moved_elements(layer.moves(kvtrim::move_order::fewest)));
    const auto keys = layer.keys();
    std::vector<kvtrim::bf16> out(elements);
    for (auto _ : state) {
        std::memcpy(out.data(), keys.data(), elements * sizeof(kvtrim::bf16));
        benchmark::ClobberMemory();
    }
    describe(state,
             {.stages = {{.copied_bytes = 2.0 * static_cast<double>(elements) * sizeof(kvtrim::bf16)}}});
}

// Rows of each head before the first token, as head-wise budgets leave them: 1024 to 15360, 8192 on average.
kvtrim::keep_plan uneven_rows() {
    std::vector<index_t> counts;
    for (index_t g = 0; g < kv_heads; ++g) { counts.push_back(1024 + g * 2048); }
    kvtrim::keep_plan plan;
    if (!plan.reset(counts).ok()) { std::abort(); }
    return plan;
}

constexpr index_t new_tokens = 4096;

void append(benchmark::State& state, double growth) {
    const kvtrim::keep_plan rows = uneven_rows();
    std::vector<kvtrim::bf16> keys(static_cast<std::size_t>(4 * rows.total_tokens() * head_dim));
    const auto token = random_elements<kvtrim::bf16>(kv_heads * head_dim, 3);
    index_t spreads = 0;
    for (auto _ : state) {
        kvtrim::flat_cache cache(rows, growth);
        const kvtrim::flat_rows<kvtrim::bf16> view(keys.data(), cache, head_dim);
        spreads = 0;
        for (index_t t = 0; t < new_tokens; ++t) {
            if (const auto full = cache.append(1); !full.ok()) {
                check(state, cache.spread(full.needed(), [&](index_t from, index_t to, index_t count) {
                    view.move(from, to, count);
                }));
                check(state, cache.append(1));
                ++spreads;
            }
            for (index_t g = 0; g < kv_heads; ++g) {
                std::copy_n(token.data() + g * head_dim, head_dim, view.row(g, cache.rows(g) - 1));
            }
        }
        benchmark::ClobberMemory();
    }
    state.counters["spreads"] = static_cast<double>(spreads);
}

// One copy of the cache as it is before the first token, scaled to as many tokens.
void copy_per_token(benchmark::State& state) {
    const kvtrim::keep_plan rows = uneven_rows();
    const std::vector<kvtrim::bf16> keys(static_cast<std::size_t>(rows.total_tokens() * head_dim));
    std::vector<kvtrim::bf16> copy(keys.size());
    for (auto _ : state) {
        scaled_iteration(state, new_tokens, [&] {
            std::memcpy(copy.data(), keys.data(), keys.size() * sizeof(kvtrim::bf16));
            benchmark::ClobberMemory();
        });
    }
}

void milliseconds(benchmark::internal::Benchmark* b) {
    b->Unit(benchmark::kMillisecond);
}

using kvtrim::move_order;
BENCHMARK(check_table)->Name("page_moves/check_table");
BENCHMARK(check_plan)->Name("page_moves/check_plan");
BENCHMARK_CAPTURE(plan_moves, fewest, 1, move_order::fewest)
    ->Name("page_moves/plan/fewest")
    ->Apply(milliseconds);
BENCHMARK_CAPTURE(plan_moves, from_tail, 1, move_order::from_tail)
    ->Name("page_moves/plan/from_tail")
    ->Apply(milliseconds);
BENCHMARK_CAPTURE(plan_moves, in_order, 1, move_order::in_order)
    ->Name("page_moves/plan/in_order")
    ->Apply(milliseconds);
BENCHMARK_CAPTURE(plan_moves, own_sets, kv_heads, move_order::fewest)
    ->Name("page_moves/plan/own_sets")
    ->Apply(milliseconds);
BENCHMARK_CAPTURE(make_moves, span_heads, kv_heads, 1)
    ->Name("page_moves/move/span_heads")
    ->Apply(milliseconds);
BENCHMARK_CAPTURE(plain_copy, span_heads, kv_heads, 1)
    ->Name("page_moves/memcpy/span_heads")
    ->Apply(milliseconds);
BENCHMARK_CAPTURE(make_moves, own_sets, kv_heads, kv_heads)
    ->Name("page_moves/move/own_sets")
    ->Apply(milliseconds);
BENCHMARK_CAPTURE(plain_copy, own_sets, kv_heads, kv_heads)
    ->Name("page_moves/memcpy/own_sets")
    ->Apply(milliseconds);
BENCHMARK_CAPTURE(make_moves, per_head, 1, 1)->Name("page_moves/move/per_head")->Apply(milliseconds);
BENCHMARK_CAPTURE(plain_copy, per_head, 1, 1)->Name("page_moves/memcpy/per_head")->Apply(milliseconds);

BENCHMARK_CAPTURE(append, growth_quarter, 0.25)->Name("flat_cache/append/growth:0.25")->Apply(milliseconds);
BENCHMARK_CAPTURE(append, growth_sixteenth, 0.0625)
    ->Name("flat_cache/append/growth:0.0625")
    ->Apply(milliseconds);
BENCHMARK(copy_per_token)->Name("flat_cache/copy_per_token")->Apply(milliseconds)->UseManualTime();

} // namespace
