// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Whole policies against the oracle: random layers, requests and budgets, kept sets compared head by head.

#include "support/checks.hpp"

namespace support {

// What the oracle answers: columns (not cache rows) that stay, per head.
using column_sets = std::vector<oracle::token_set>;

struct comparison {
    int compared = 0;
    int too_close = 0; // float rounding may decide a cut: left out
};

// Shapes that every policy can score in a moment.
inline layer_shape policy_shape(random& r) {
    layer_shape s = random_shape(r);
    s.tokens = std::max<index_t>(4, s.tokens > 300 && r.chance(0.7) ? s.tokens / 4 : s.tokens);
    s.queries = std::min({s.queries, s.tokens, r.chance(0.5) ? s.tokens / 3 + 1 : s.tokens});
    s.hidden = std::min<index_t>(s.hidden, 40);
    return s;
}

// slow(layer_oracle, total candidates that stay, near_ties) -> column_sets
template <class Policy, class Slow>
void compare_with_oracle(const Policy& policy, const layer_data& layer,
                         const kvtrim::eviction_request& request, comparison& count, Slow&& slow) {
    const auto in = layer.inputs();
    const layer_oracle expected(in, request);
    oracle::near_ties ties;
    const std::size_t total = expected.total(request.budget.total(in.kv_heads()));
    const column_sets columns = slow(expected, total, ties);
    const trace fast = run(policy, in, request);
    REQUIRE(fast.answer.ok());
    REQUIRE(is_valid(fast.plan, in));
    REQUIRE(keeps_protected(fast.plan, in, request.protect));
    if (ties.rounding_may_decide()) {
        ++count.too_close;
        return;
    }
    std::vector<oracle::token_set> kept;
    for (std::size_t g = 0; g < columns.size(); ++g) {
        kept.push_back(oracle::with_protected(expected.protect, expected.keys[g].size(), columns[g]));
    }
    REQUIRE(kept_sets(fast.plan) == kept);
    ++count.compared;
}

// A random layer and a request with a budget below its length, `repeat` times: fn(layer, request, random).
template <class Fn>
void for_random_layers(std::uint64_t seed, int repeat, Fn&& fn) {
    random r(seed);
    std::vector<float> sinks;
    for (int i = 0; i < repeat;) {
        const layer_data layer = random_layer(policy_shape(r), seed * 10000 + r.bits() % 10000);
        kvtrim::eviction_request request = random_request(r, layer.shape, sinks);
        const index_t budget = random_budget(r, layer.inputs(), request.protect);
        if (budget == 0) { continue; }
        request.budget = kvtrim::over_all_heads(budget);
        CAPTURE(i, seed, budget, layer.shape.kv_heads, layer.shape.group, layer.shape.tokens,
                layer.shape.head_dim, layer.shape.queries);
        fn(layer, request, r);
        ++i;
    }
}

// Each row's best by importance, as many as its budget.
inline column_sets best_of_rows(const oracle::matrix& importance, const oracle::counts& budgets,
                                oracle::near_ties& ties) {
    column_sets result;
    for (std::size_t g = 0; g < importance.size(); ++g) {
        result.push_back(oracle::by_importance(importance[g], budgets[g], ties));
    }
    return result;
}

// floor(even share * ratio), for ratios of one decimal.
inline std::size_t share_of(std::size_t total, std::size_t rows, double ratio) {
    return static_cast<std::size_t>(std::llround(10 * ratio)) * (total / rows) / 10;
}

} // namespace support
