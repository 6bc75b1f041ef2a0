// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// After the first call of a shape nothing allocates: plans in the caller's workspace, compactions and prefills, for every
// head_dim. Counts operator new, in a program of its own: the counter sees all of it.

#include <cstdio>

namespace {

long heap_requests = 0;

} // namespace

#include <kvtrim/kvtrim.hpp>

#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

void* operator new(std::size_t bytes) {
    ++heap_requests;
    if (void* p = std::malloc(bytes)) { return p; }
    std::abort();
}
void operator delete(void* p) noexcept {
    std::free(p);
}
void operator delete(void* p, std::size_t) noexcept {
    std::free(p);
}

namespace {

using namespace kvtrim;

int failures = 0;

// Heap requests of fn().
template <class Fn>
long requests_of(Fn&& fn) {
    const long before = heap_requests;
    fn();
    return heap_requests - before;
}

constexpr long refused = -1;

void expect(long got, long expected, const char* what, index_t head_dim) {
    if (got == expected) { return; }
    ++failures;
    std::printf("%s, head_dim %d: %ld heap requests, expected %ld\n", what, static_cast<int>(head_dim), got,
                expected);
}

struct shape {
    index_t kv_heads, group, tokens, head_dim, queries;
};

template <class T>
std::vector<T> numbers(index_t count) {
    std::vector<T> values(static_cast<std::size_t>(count));
    std::uint32_t state = 1;
    for (T& x : values) {
        state = state * 1664525u + 1013904223u;
        x = element_traits<T>::from_float(static_cast<float>(state >> 8) * 0x1p-23f - 1.0f);
    }
    return values;
}

template <class Policy, class Inputs>
void expect_no_allocation(const char* name, const Policy& policy, const Inputs& in,
                          const eviction_request& request) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(policy.workspace_bytes(in, request)));
    keep_plan plan;
    workspace scratch(bytes);
    bool planned = policy.plan(in, request, plan, scratch).ok();
    const long requests = requests_of([&] {
        planned = planned && policy.workspace_bytes(in, request) == static_cast<index_t>(bytes.size());
        planned = planned && policy.plan(in, request, plan, scratch).ok();
    });
    expect(planned ? requests : refused, 0, name, in.head_dim());

    std::vector<std::byte> score_memory(static_cast<std::size_t>(policy.score_bytes(in, request)));
    score_table scores;
    workspace score_scratch(score_memory);
    bool scored = policy.score(in, request, scores, score_scratch).ok();
    const long score_requests =
        requests_of([&] { scored = scored && policy.score(in, request, scores, score_scratch).ok(); });
    expect(scored ? score_requests : refused, 0, name, in.head_dim());
}

// Elements of T with all heads of a token together if token_major.
template <class T>
void check(const shape& s, bool token_major) {
    const index_t q_heads = s.kv_heads * s.group;
    const index_t hidden = 2 * s.head_dim;
    auto k = numbers<T>(s.kv_heads * s.tokens * s.head_dim);
    auto v = k;
    const auto q = numbers<T>(q_heads * s.queries * s.head_dim);
    const auto w = numbers<T>(q_heads * s.head_dim * hidden);
    const auto cache = [&](T* data) {
        return token_major ? strided(data, {s.kv_heads, s.tokens, s.head_dim},
                                     {s.head_dim, s.kv_heads * s.head_dim, 1})
                           : strided(data, {s.kv_heads, s.tokens, s.head_dim});
    };
    const auto in = layer(cache(k.data()), cache(v.data()))
                        .with_queries(strided(q.data(), {q_heads, s.queries, s.head_dim}))
                        .with_output_projection(strided(w.data(), {q_heads, s.head_dim, hidden}));
    const eviction_request request{
        .budget = per_head(std::max<index_t>(1, s.tokens / 4)),
        .protect = {.sink_tokens = 1, .window_tokens = std::min<index_t>(4, s.queries)}};
    expect_no_allocation("snapkv", snapkv(), in, request);
    expect_no_allocation("ada_snapkv", ada_snapkv(), in, request);
    expect_no_allocation("ada_snapkv, blended", ada_snapkv({}, blended{}), in, request);
    expect_no_allocation("criticalkv", criticalkv(), in, request);
    expect_no_allocation("ada_criticalkv", ada_criticalkv(), in, request);
    expect_no_allocation("defensivekv", defensivekv(), in, request);
    expect_no_allocation("h2o", h2o(), in, request);
    expect_no_allocation("tova", tova(), in, request);
    expect_no_allocation("key_norm", key_norm(), in, request);
    expect_no_allocation("key_diff", key_diff(), in, request);
    const std::vector<float> angles(static_cast<std::size_t>(s.head_dim / 2), 0.1f);
    expect_no_allocation("key_diff_before_rope", key_diff_before_rope({angles}), in, request);
    expect_no_allocation("streaming_llm", streaming_llm(), in, request);
    expect_no_allocation("rkv", rkv(), in, request);
    expect_no_allocation("lagkv", lagkv({.lag = 16}), in, request);

    query_statistics statistics(q_heads, s.head_dim);
    growing_workspace chunk_memory;
    workspace chunk_scratch = chunk_memory.of_bytes(statistics.workspace_bytes());
    bool added = true;
    expect(requests_of([&] { added = statistics.add(in.queries, chunk_scratch).ok(); }), 0,
           "query_statistics", s.head_dim);
    recent_queries<f16> ring(q_heads, 8, s.head_dim);
    expect(requests_of([&] { added = added && ring.append(in.queries).ok(); }), 0, "recent_queries",
           s.head_dim);
    const std::vector<float> frequencies(static_cast<std::size_t>(s.head_dim / 2), 0.1f);
    expect(added ? 0 : refused, 0, "query_statistics", s.head_dim);
    expect_no_allocation("expected_attention", expected_attention(statistics, {frequencies}), in, request);

    const gram_projection gram(in.output_projection);
    expect_no_allocation("criticalkv, Gram form", criticalkv(), in.with_output_projection(gram.view()),
                         request);

    const auto by_attention = snapkv();
    const auto by_keys = key_norm();
    keep_plan plans[2];
    status answers[2];
    std::vector<std::byte> batch_bytes;
    bool batched = true;
    const auto plan_all = [&] {
        const batch_item items[]{{by_attention, in, request, plans[0]}, {by_keys, in, request, plans[1]}};
        batch_bytes.resize(static_cast<std::size_t>(plan_batch_bytes(items)));
        workspace batch_scratch(batch_bytes);
        batched = batched && plan_batch(items, answers, batch_scratch).ok();
    };
    plan_all();
    const long batch_requests = requests_of(plan_all);
    expect(batched ? batch_requests : refused, 0, "plan_batch", s.head_dim);

    keep_plan plan;
    growing_workspace memory;
    bool done = streaming_llm().plan(in, request, plan, memory).ok();
    std::vector<T> out(static_cast<std::size_t>(plan.total_tokens() * s.head_dim));
    expect(requests_of([&] {
               compaction_report report;
               done = done && gather(in.keys, plan, std::span(out)).ok();
               done = done && compact_in_place(in.keys, in.values, plan, &report).ok();
               if (!token_major) { done = done && compact_to_flat(in.keys, plan, &report).ok(); }
           }),
           0, "compaction", s.head_dim);
    const rope rope{frequencies};
    growing_workspace turns;
    workspace turn_scratch = turns.of_bytes(rerotate_keys_bytes(in.keys, rope));
    expect(requests_of(
               [&] { done = done && rerotate_keys(in.keys, rope, positions_of(plan), turn_scratch).ok(); }),
           0, "rerotate_keys", s.head_dim);
    expect(requests_of([&] { done = done && streaming_llm().plan(in, request, plan, memory).ok(); }), 0,
           "growing_workspace", s.head_dim);
    expect(done ? 0 : refused, 0, "compaction", s.head_dim);
}

// A generated token, a draft that is undone and a cut, once the state has its size.
void check_decode(index_t head_dim) {
    constexpr index_t kv_heads = 2, q_heads = 4, budget = 40, buffer = 8, window = 4, drafts = 2, slots = 64;
    auto k = numbers<float>(kv_heads * slots * head_dim);
    auto v = k;
    const auto q = numbers<float>(q_heads * head_dim);
    const strided<const float, 3> query(q.data(), {q_heads, 1, head_dim});
    cache_positions positions(kv_heads, slots);
    recent_queries<> queries(q_heads, window, head_dim, drafts);
    running_scores scores(kv_heads, drafts, slots);
    keep_plan plan;
    growing_workspace memory;
    bool done = true;
    const auto live = [&](index_t steps) {
        const eviction_request request{.budget = per_head(budget), .protect = {.window_tokens = window}};
        const interval_policy by_window{snapkv(), request, buffer};
        const interval_policy by_sums{eviction_policy{scores.scorer(), uniform{}, by_importance{}}, request,
                                      buffer};
        const auto cache = [&](std::vector<float>& data) {
            return filled(strided(data.data(), {kv_heads, slots, head_dim}), positions.lengths());
        };
        const auto advance = [&] {
            done = done && positions.append(1).ok() && queries.append(query).ok() && scores.append(1).ok();
            const auto in = layer(cache(k)).with_queries(query);
            done = done && scores.update(in, {}, memory).ok();
        };
        for (index_t step = 0; step < steps; ++step) {
            if (by_window.is_due(positions, drafts)) {
                const auto in = layer(cache(k), cache(v)).with_queries(queries.view());
                done =
                    done &&
                    (step % 2 == 0 ? by_window.plan(in, plan, memory) : by_sums.plan(in, plan, memory)).ok();
                done = done && compact_in_place(cache(k), cache(v), plan).ok();
                done = done && positions.compact(plan).ok() && scores.compact(plan).ok();
            }
            advance();
            advance();
            done = done && positions.rollback(1).ok() && queries.rollback(1).ok() && scores.rollback(1).ok();
        }
    };
    live(budget + 3 * buffer);
    const long requests = requests_of([&] { live(3 * buffer); });
    expect(done ? requests : refused, 0, "decode", head_dim);
}

// The CPU levels of this machine; those that it lacks are named once.
const std::vector<cpu_level>& levels_of_this_machine() {
    static const std::vector<cpu_level> levels = [] {
        std::vector<cpu_level> own;
        for (unsigned i = 0; std::strcmp(name_of(static_cast<cpu_level>(i)), "unknown") != 0; ++i) {
            const auto level = static_cast<cpu_level>(i);
            if (set_cpu_level(level) == level) {
                own.push_back(level);
            } else {
                std::printf("no %s on this machine: not tested\n", name_of(level));
            }
        }
        return own;
    }();
    return levels;
}

// Plan and attention of a prompt in the caller's workspace, at each CPU level.
template <class T, class Policy>
void check_prefill(const char* name, Policy policy, index_t head_dim) {
    constexpr index_t kv_heads = 2, q_heads = 6, tokens = 320;
    policy.options = {.segment_tokens = 64, .block_tokens = 16, .budget_tokens = 48, .dense_below_tokens = 0};
    const auto k = numbers<T>(kv_heads * tokens * head_dim);
    const auto q = numbers<T>(q_heads * tokens * head_dim);
    std::vector<T> o(q.size());
    std::vector<float> lse(static_cast<std::size_t>(q_heads * tokens));
    const strided keys(k.data(), {kv_heads, tokens, head_dim});
    const strided queries(q.data(), {q_heads, tokens, head_dim}, {head_dim, q_heads * head_dim, 1});
    const strided out(o.data(), {q_heads, tokens, head_dim}, {head_dim, q_heads * head_dim, 1});
    const auto in = layer(keys, keys).with_queries(queries);
    for (const cpu_level level : levels_of_this_machine()) {
        set_cpu_level(level);
        layer_fusion state;
        prune_plan plan;
        std::vector<std::byte> bytes(
            static_cast<std::size_t>(policy.workspace_bytes(queries, keys, {.layer = 1})));
        workspace scratch(bytes);
        bool done = policy.plan(queries, keys, {.layer = 1}, state, plan, scratch).ok();
        std::vector<std::byte> more(
            static_cast<std::size_t>(block_sparse_attention_bytes(in, plan, {}, out)));
        workspace attention_scratch(more);
        const long requests = requests_of([&] {
            done = done &&
                   policy.workspace_bytes(queries, keys, {.layer = 2}) == static_cast<index_t>(bytes.size());
            done = done && policy.plan(queries, keys, {.layer = 2}, state, plan, scratch).ok();
            done =
                done && block_sparse_attention(in, plan, {.soft_cap = 30}, out, lse, attention_scratch).ok();
        });
        expect(done ? requests : refused, 0, name, head_dim);
    }
    set_cpu_level(best_cpu_level());
}

// What would make this program blind: a counter that does not count.
void check_counters() {
    static keep_plan plan;
    const index_t count = 3;
    expect(requests_of([&] { static_cast<void>(plan.reset({&count, 1})); }), 2, "operator new", 0);
}

// Page moves of a table, and a flat cache that has its memory.
void check_caches_of_engines(index_t head_dim) {
    constexpr index_t pages = 12, page_tokens = 4;
    const std::vector<std::int32_t> indptr{0, 5, 12}, indices{7, 1, 9, 3, 0, 2, 4, 5, 6, 8, 10, 11},
        last{3, 4};
    const page_table table{indptr, indices, last};
    const page_pool pool{.pages = pages, .page_tokens = page_tokens};
    keep_plan plan;
    const std::vector<index_t> counts{7, 9};
    bool done = plan.reset(counts).ok();
    for (index_t row = 0; row < 2; ++row) {
        std::int32_t next = 0;
        for (auto& token : plan.writable_row(row)) { token = next += 2; }
    }
    auto k = numbers<float>(pages * page_tokens * head_dim);
    const paged_memory keys{k.data(), page_layout{page_tokens, page_tokens * head_dim, head_dim, head_dim}, 1,
                            head_dim};
    std::vector<std::byte> bytes(static_cast<std::size_t>(plan_page_moves_bytes(table, pool)));
    workspace scratch(bytes);
    move_plan moves;
    flat_cache cache(plan);
    const auto run = [&] {
        for (const move_order order : {move_order::fewest, move_order::from_tail, move_order::in_order}) {
            done = done && plan_page_moves(plan, table, pool, {.order = order}, moves, scratch).ok();
            done = done && move_rows(keys, moves).ok();
        }
        done = done && cache.spread(40, [](index_t, index_t, index_t) {}).ok() && cache.append(1).ok();
    };
    run();
    const long requests = requests_of(run);
    expect(done ? requests : refused, 0, "page moves, flat_cache", head_dim);
}

} // namespace

int main() {
    check_counters();
    check_caches_of_engines(64);
    check_decode(64);
    check_decode(128);
    for (const index_t head_dim : {32, 64, 80, 96, 128, 192, 256}) {
        check<float>({.kv_heads = 2, .group = 4, .tokens = 300, .head_dim = head_dim, .queries = 32}, false);
        check<f16>({.kv_heads = 2, .group = 1, .tokens = 270, .head_dim = head_dim, .queries = 1}, true);
        check<bf16>({.kv_heads = 1, .group = 7, .tokens = 100, .head_dim = head_dim, .queries = 100}, false);
        check_prefill<float>("critiprefill", critiprefill(), head_dim);
        check_prefill<bf16>("critiprefill_bound", critiprefill_bound(), head_dim);
        check_prefill<f16>("ada_critiprefill", ada_critiprefill(), head_dim);
    }
    return failures == 0 ? 0 : 1;
}
