// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// A cache with a cap: a prompt longer than the memory comes in chunks, then tokens one by one, and whenever the next ones
// would not fit, Ada-KV cuts the layer down by what the last queries attended to.
#include <kvtrim/cache/filled.hpp>
#include <kvtrim/compact/compact_in_place.hpp>
#include <kvtrim/decode/interval_policy.hpp>
#include <kvtrim/decode/recent_queries.hpp>
#include <kvtrim/policy/snapkv.hpp>

#include <algorithm>
#include <cstdio>
#include <random>
#include <vector>

using kvtrim::index_t;

int main() {
    constexpr index_t q_heads = 8, kv_heads = 2, head_dim = 64, window = 16, chunk = 64;
    constexpr index_t prompt = 500, generated = 200, slots = 512; // heads differ; one might take all
    const kvtrim::interval_policy decode{
        kvtrim::ada_snapkv(),
        {.budget = kvtrim::per_head(192), .protect = {.sink_tokens = 4, .window_tokens = window}},
        chunk}; // the buffer: as many tokens as come at a time

    // The engine's buffers, and what kvtrim keeps beside them for one layer of one sequence.
    std::vector<float> k(kv_heads * slots * head_dim), v(k.size()), q(q_heads * chunk * head_dim);
    kvtrim::cache_positions positions(kv_heads, slots);
    kvtrim::recent_queries queries(q_heads, window, head_dim);
    kvtrim::keep_plan plan;
    kvtrim::growing_workspace memory;
    const auto cache = [&](std::vector<float>& data) {
        return kvtrim::filled(kvtrim::strided(data.data(), {kv_heads, slots, head_dim}), positions.lengths());
    };

    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (index_t at = 0, n = 0; at < prompt + generated; at += n) {
        n = at < prompt ? std::min(chunk, prompt - at)
                        : 1; // a longer chunk would fit after no cut: admits() says so
        if (const kvtrim::status s = decode.admits(positions, n); !s.ok()) { return std::puts(s.what()), 1; }
        if (decode.is_due(positions, n)) {
            const auto inputs = kvtrim::layer(cache(k), cache(v)).with_queries(queries.view());
            kvtrim::compaction_report bytes;
            kvtrim::status s = decode.plan(inputs, plan, memory);
            if (s.ok()) { s = kvtrim::compact_in_place(cache(k), cache(v), plan, &bytes); }
            if (s.ok()) { s = positions.compact(plan); }
            if (!s.ok()) { return std::puts(s.what()), 1; }
            std::printf("token %3d: %d bytes cut to %d, heads keep %d and %d\n", static_cast<int>(at),
                        static_cast<int>(bytes.bytes_before), static_cast<int>(bytes.bytes_after),
                        static_cast<int>(plan.kept_tokens(0)), static_cast<int>(plan.kept_tokens(1)));
        }
        for (index_t g = 0; g < kv_heads;
             ++g) { // stands for the model: it writes the new rows of each head ...
            const index_t row = g * slots + positions.tokens(g);
            std::generate_n(k.begin() + row * head_dim, n * head_dim, [&] { return normal(random); });
            std::generate_n(v.begin() + row * head_dim, n * head_dim, [&] { return normal(random); });
        }
        std::generate_n(q.begin(), q_heads * n * head_dim,
                        [&] { return normal(random); }); // ... and has queries
        kvtrim::status s = positions.append(n);
        if (s.ok()) { s = queries.append(kvtrim::strided(q.data(), {q_heads, n, head_dim})); }
        if (!s.ok()) { return std::puts(s.what()), 1; }
        if (positions.total_tokens() > decode.limit_tokens(kv_heads)) {
            return std::puts("above the cap"), 1;
        }
    }
    std::printf("head 0 ends with positions %d ... %d of %d\n", positions.positions(0).front(),
                positions.positions(0).back(), static_cast<int>(positions.next_position()));
}
