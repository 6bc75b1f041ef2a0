// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// A third party's scorer: keep the tokens whose values are large. The struct below is all it takes; it then works
// with every allocator, selector, cache layout and compaction of the library.
#include <kvtrim/policy/snapkv.hpp>

#include <cstdio>
#include <vector>

struct value_norm {
    static constexpr bool two_stage = false;

    template <class Inputs, class Executor>
    kvtrim::status score(const Inputs& in, const kvtrim::eviction_request& request,
                         const kvtrim::token_scores& out, kvtrim::workspace&, Executor& ex) const {
        ex(in.kv_heads(), [&](kvtrim::index_t head) {
            const auto range = kvtrim::candidates(request.protect, in.tokens(head));
            for (kvtrim::index_t t = range.begin; t < range.end; ++t) {
                float sum = 0;
                for (kvtrim::index_t d = 0; d < in.head_dim(); ++d) {
                    sum += std::abs(in.values(head, t, d));
                }
                out.importance_rows().row(head)[static_cast<std::size_t>(t - range.begin)] = sum;
            }
        });
        return {};
    }
};

int main() {
    std::vector<float> v(2 * 100 * 8);
    for (std::size_t i = 0; i < v.size(); ++i) { v[i] = static_cast<float>(i / 8 * 37 % 100); }
    const kvtrim::strided cache(v.data(), {2, 100, 8});
    kvtrim::keep_plan plan;
    kvtrim::growing_workspace memory;
    const kvtrim::eviction_policy policy{value_norm{}, kvtrim::adaptive{}, kvtrim::one_stage{}};
    const auto s = policy.plan(kvtrim::layer(cache, cache), {.budget = kvtrim::per_head(10)}, plan, memory);
    if (!s.ok()) { return std::puts(s.what()), 1; }
    for (kvtrim::index_t head = 0; head < plan.rows(); ++head) {
        std::printf("head %d keeps", static_cast<int>(head));
        for (const auto token : plan.row(head)) { std::printf(" %d", token); }
        std::printf("\n");
    }
}
