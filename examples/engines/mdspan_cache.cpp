// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// A cache that the engine holds as mdspan, here token-major by layout_stride: no adapter, the span is the view. Kokkos' mdspan;
// std::mdspan (C++23) goes the same way.
#include <kvtrim/compact/compact_in_place.hpp>
#include <kvtrim/policy/snapkv.hpp>

#include <mdspan/mdspan.hpp>

#include <array>
#include <cstdio>
#include <vector>

int main() {
    constexpr int q_heads = 4, kv_heads = 2, tokens = 200, head_dim = 16, window = 8, kept = 40;
    using extents = Kokkos::dextents<int, 3>;
    using span = Kokkos::mdspan<float, extents, Kokkos::layout_stride>;
    std::vector<float> k(kv_heads * tokens * head_dim), q(q_heads * window * head_dim);
    for (std::size_t i = 0; i < k.size(); ++i) {
        k[i] = static_cast<float>(i * 2654435761u % 1024) / 512 - 1;
    }
    for (std::size_t i = 0; i < q.size(); ++i) { q[i] = static_cast<float>(i * 40503u % 1024) / 512 - 1; }
    const std::vector<float> before = k;

    // [kv_heads, tokens, head_dim] of memory [tokens, kv_heads, head_dim]; the queries head-major.
    const span keys(k.data(),
                    {extents(kv_heads, tokens, head_dim), std::array{head_dim, kv_heads * head_dim, 1}});
    const Kokkos::mdspan<const float, extents> queries(q.data(), q_heads, window, head_dim);

    kvtrim::keep_plan plan;
    kvtrim::growing_workspace memory;
    kvtrim::status s = kvtrim::snapkv().plan(
        kvtrim::layer(keys).with_queries(queries),
        {.budget = kvtrim::per_head(kept), .protect = {.sink_tokens = 4, .window_tokens = window}}, plan,
        memory);
    if (s.ok()) { s = kvtrim::compact_in_place(keys, plan); }
    if (!s.ok()) { return std::puts(s.what()), 1; }

    bool is_right = true;
    for (int h = 0; h < kv_heads; ++h) {
        for (int i = 0; i < kept; ++i) {
            const int t = plan.row(h)[static_cast<std::size_t>(i)];
            for (int d = 0; d < head_dim; ++d) {
                const auto at = static_cast<std::size_t>((t * kv_heads + h) * head_dim + d);
                is_right = is_right && keys(h, i, d) == before[at];
            }
        }
    }
    std::printf("%d of %d tokens stay at the front of the span: %s\n", kept, tokens,
                is_right ? "right" : "WRONG");
    return is_right ? 0 : 1;
}
