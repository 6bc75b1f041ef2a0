// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// From an engine's pointers to freed memory: one attention layer, cut to a fifth by Ada-KV.
#include <kvtrim/compact/compact_to_flat.hpp>
#include <kvtrim/policy/snapkv.hpp>

#include <cstdio>
#include <vector>

int main() {
    constexpr kvtrim::index_t q_heads = 8, kv_heads = 2, tokens = 1000, head_dim = 64, window = 32;
    std::vector<float> k(kv_heads * tokens * head_dim), v(k.size()), q(q_heads * window * head_dim);
    for (std::size_t i = 0; i < k.size(); ++i) {
        k[i] = v[i] = static_cast<float>(i * 2654435761u % 1024) / 512 - 1;
    }
    for (std::size_t i = 0; i < q.size(); ++i) { q[i] = static_cast<float>(i * 40503u % 1024) / 512 - 1; }

    const kvtrim::strided keys(k.data(), {kv_heads, tokens, head_dim}); // any strides, any element
    const kvtrim::strided values(v.data(), {kv_heads, tokens, head_dim});
    const kvtrim::strided queries(q.data(), {q_heads, window, head_dim}); // the prompt's last queries
    const kvtrim::eviction_request request{.budget = kvtrim::per_head(tokens / 5),
                                           .protect = {.sink_tokens = 4, .window_tokens = window}};
    kvtrim::keep_plan plan;
    kvtrim::growing_workspace memory; // or your own arena, of policy.workspace_bytes(...) bytes
    const auto policy = kvtrim::ada_snapkv();
    kvtrim::status s = policy.plan(kvtrim::layer(keys, values).with_queries(queries), request, plan, memory);

    if (s.ok()) { s = kvtrim::compact_to_flat(keys, values, plan); }
    if (!s.ok()) { return std::puts(s.what()), 1; }
    for (std::vector<float>* cache : {&k, &v}) { // the survivors are at the front; the rest is free
        cache->resize(static_cast<std::size_t>(plan.total_tokens() * head_dim));
        cache->shrink_to_fit();
    }
    std::printf("head 0 keeps %d tokens, head 1 keeps %d; keys now take %zu KiB of 500\n",
                static_cast<int>(plan.kept_tokens(0)), static_cast<int>(plan.kept_tokens(1)),
                k.size() * 4 / 1024);
}
