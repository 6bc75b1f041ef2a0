// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Attention weights that half precision cannot hold, and rows that hold no attention at all.

#include "support/checks.hpp"

#include <kvtrim/policy/baselines.hpp>
#include <kvtrim/policy/defensivekv.hpp>

#include <cmath>

using namespace kvtrim;
using namespace support;

namespace {

// A long f16 cache of one channel: token t has logit logits[t], the last token is the query's own.
struct half_cache {
    std::vector<f16> keys;
    std::vector<float> one{1.0f};

    explicit half_cache(const std::vector<float>& logits) {
        for (const float x : logits) { keys.push_back(element_traits<f16>::from_float(x)); }
    }
    [[nodiscard]] auto inputs() const {
        const strided<const f16, 3> k(keys.data(), {1, static_cast<index_t>(keys.size()), 1});
        return kvtrim::layer(k).with_queries(view(one.data(), {1, 1, 1}));
    }
};

} // namespace

// kvpress 8bb29b9, SnapKVPress: a softmax cast back to fp16 makes weights below 3e-8 equal zeros, kept by index.
TEST_CASE("weights below what half precision holds are not ties", "[regression]") {
    constexpr std::size_t tokens = 5000;
    std::vector<float> logits(tokens, -8.0f);
    for (std::size_t t = 0; t < 20; ++t) { logits[4000 + 10 * t] = -7.5f; } // wanted more, far from the front
    logits[tokens - 1] = 16.0f;                                             // nearly all the attention
    const half_cache cache(logits);
    const mean_attention unpooled{.pool = pooling::none};
    const trace t =
        run(snapkv(unpooled), cache.inputs(), {.budget = per_head(21), .protect = {.window_tokens = 1}});
    CHECK(t.importance[4000] < 1e-10f);
    CHECK(t.importance[4000] > t.importance[4001]);
    oracle::token_set expected;
    for (std::size_t i = 0; i < 20; ++i) { expected.push_back(4000 + 10 * i); }
    expected.push_back(tokens - 1);
    CHECK(kept_sets(t.plan)[0] == expected);
}

// CritiPrefill 3067f1e, ops.py: adding finfo.min to a negative fp16 logit is -inf, a row of those is NaN.
TEST_CASE("a row of logits at the end of half precision is a softmax, not NaN", "[regression]") {
    const half_cache cache(std::vector<float>(100, -65504.0f));
    const trace t = run(snapkv(), cache.inputs(), {.budget = per_head(10), .protect = {.window_tokens = 1}});
    CHECK(t.importance[50] == Approx(0.01).epsilon(1e-4));
}

// DefensiveKV 9251b95: scores / scores.sum(-1) of a row that has underflowed.
TEST_CASE("a window that attends to nothing before it gives zero scores, not NaN", "[regression]") {
    std::vector<float> logits(100, -500.0f);
    logits.back() = 500.0f;
    const half_cache cache(logits);
    const worst_case_attention worst;
    const eviction_policy policy{window_attention{worst}, adaptive{}, by_importance{}};
    const trace t = run(policy, cache.inputs(), {.budget = per_head(10), .protect = {.window_tokens = 1}});
    CHECK(t.importance == std::vector<float>(99, 0.0f));
    CHECK(t.protected_mass[0] == 1.0f);
    CHECK(kept_sets(t.plan)[0] == oracle::token_set{0, 1, 2, 3, 4, 5, 6, 7, 8, 99});
}

// kvpress 8bb29b9, observed_attention_press.py: H2O without count normalisation favours old tokens; observed_attention is the normalised form.
TEST_CASE("a token that few queries have seen is not judged by their number", "[regression]") {
    // Every query pays the same to every token that it sees.
    constexpr index_t tokens = 40;
    const std::vector<float> k(tokens, 0.0f);
    const std::vector<float> q(tokens, 1.0f);
    const auto in =
        kvtrim::layer(view(k.data(), {1, tokens, 1})).with_queries(view(q.data(), {1, tokens, 1}));
    const mean_attention sum{.pool = pooling::none, .queries = query_normalisation::sum};
    const trace sums =
        run(eviction_policy{window_attention{sum}, uniform{}, by_importance{}}, in, {.budget = per_head(10)});
    const trace means = run(observed_attention(), in, {.budget = per_head(10)});
    CHECK(sums.importance[0] > sums.importance[20]);
    CHECK(static_cast<double>(sums.importance[39]) == Approx(1.0 / 40));
    CHECK(static_cast<double>(means.importance[39]) == Approx(1.0 / 40));
    double harmonic = 0;
    for (int i = 21; i <= 40; ++i) { harmonic += 1.0 / i; }
    CHECK(static_cast<double>(means.importance[20]) == Approx(harmonic / 20));
}

// Cross-cutting: an extra softmax logit per head, left out of the denominator, biases scores towards weak queries.
TEST_CASE("a sink logit takes its part of each query's attention", "[regression]") {
    const std::vector<float> k(11, 0.0f);
    const std::vector<float> q(2, 1.0f);
    const std::vector<float> sinks{std::log(10.0f), std::log(30.0f)};
    const auto in = kvtrim::layer(view(k.data(), {1, 11, 1})).with_queries(view(q.data(), {2, 1, 1}));
    eviction_request request{.budget = per_head(5), .protect = {.window_tokens = 1}};
    request.attention.sink_logits = sinks;
    const mean_attention best{.pool = pooling::none, .group = group_reduction::maximum};
    const trace t = run(snapkv(best), in, request);
    CHECK(static_cast<double>(t.importance[0]) == Approx(1.0 / 21));
    CHECK(static_cast<double>(t.protected_mass[0]) == Approx((1.0 / 21 + 1.0 / 41) / 2));
}
