// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// A policy on OpenMP's threads: the plan is the one of a single thread, whatever their number.
#include <kvtrim/adapter/openmp.hpp>
#include <kvtrim/policy/snapkv.hpp>

#include <atomic>
#include <cstdio>
#include <vector>

namespace {

// Whether each of `count` pieces runs exactly once.
bool calls_each_once(const kvtrim::openmp_executor& ex, kvtrim::index_t count) {
    std::vector<std::atomic<int>> calls(static_cast<std::size_t>(count));
    ex(count, [&](kvtrim::index_t i) { ++calls[static_cast<std::size_t>(i)]; });
    for (const auto& n : calls) {
        if (n != 1) { return false; }
    }
    return true;
}

} // namespace

int main() {
    static_assert(kvtrim::executor<const kvtrim::openmp_executor>);
    constexpr kvtrim::index_t q_heads = 16, kv_heads = 8, tokens = 600, head_dim = 32, window = 16;
    std::vector<float> k(kv_heads * tokens * head_dim), q(q_heads * window * head_dim);
    for (std::size_t i = 0; i < k.size(); ++i) {
        k[i] = static_cast<float>(i * 2654435761u % 1024) / 512 - 1;
    }
    for (std::size_t i = 0; i < q.size(); ++i) { q[i] = static_cast<float>(i * 40503u % 1024) / 512 - 1; }

    const auto inputs = kvtrim::layer(kvtrim::strided(k.data(), {kv_heads, tokens, head_dim}))
                            .with_queries(kvtrim::strided(q.data(), {q_heads, window, head_dim}));
    const kvtrim::eviction_request request{.budget = kvtrim::per_head(100),
                                           .protect = {.sink_tokens = 4, .window_tokens = window}};
    const auto policy = kvtrim::ada_snapkv();
    kvtrim::growing_workspace memory;
    kvtrim::keep_plan serial;
    if (const kvtrim::status s = policy.plan(inputs, request, serial, memory); !s.ok()) {
        return std::puts(s.what()), 1;
    }
    for (const int threads : {0, 1, 2, 3, 7}) { // 0: as many as OpenMP likes
        const kvtrim::openmp_executor ex{threads};
        kvtrim::keep_plan plan;
        const kvtrim::status s = policy.plan(inputs, request, plan, memory, ex);
        const bool is_same = s.ok() && plan == serial;
        if (!is_same || !calls_each_once(ex, 0) || !calls_each_once(ex, 1000)) {
            return std::printf("%d threads: another plan\n", threads), 1;
        }
    }
    std::printf("one plan with 1, 2, 3, 7 and %d threads\n",
                static_cast<int>(kvtrim::openmp_executor{}.workers()));
}
