// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Defects around projected value norms in DefensiveKV's and kvpress' code, as symptoms.

#include "support/checks.hpp"

#include <kvtrim/policy/criticalkv.hpp>
#include <kvtrim/policy/defensivekv.hpp>

#include <cmath>

using namespace kvtrim;
using namespace support;

namespace {

constexpr eviction_request thirty{.budget = per_head(30), .protect = {.window_tokens = 8}};

layer_data of_heads(index_t kv_heads, std::uint64_t seed = 1) {
    return random_layer({.kv_heads = kv_heads, .group = 2, .tokens = 100, .queries = 8}, seed);
}

} // namespace

// DefensiveKV's code (D6 of policy/defensivekv.hpp): dividing by the sum over heads makes every norm of a single KV head 1.
TEST_CASE("with one KV head the values still matter", "[regression]") {
    layer_data layer = of_heads(1);
    const auto policy = defensivekv({.first_at_most = 0.0});
    const trace before = run(policy, layer.inputs(), thirty);
    const auto row = before.plan.row(0);
    index_t dropped = 10;
    while (std::binary_search(row.begin(), row.end(), dropped)) { ++dropped; }
    for (index_t d = 0; d < 16; ++d) { layer.value(0, dropped)[d] *= 1e4f; }
    const auto after = run(policy, layer.inputs(), thirty).plan;
    CHECK(std::binary_search(after.row(0).begin(), after.row(0).end(), dropped));
}

// The same code: it also removes a token's own magnitude, so that the order inside a head changes.
TEST_CASE("inside a head, normalised norms keep the order of the raw ones", "[regression]") {
    const layer_data layer = of_heads(3);
    projected_norm_weighted<window_attention<worst_case_attention>> raw;
    raw.epsilon = 0;
    auto normalised = raw;
    normalised.scope = norm_scope::per_head;
    score_memory a = score_layer(raw, layer.inputs(), thirty);
    score_memory b = score_layer(normalised, layer.inputs(), thirty);
    for (index_t g = 0; g < 3; ++g) {
        const auto x = a.importance_rows().row(g);
        const auto y = b.importance_rows().row(g);
        for (std::size_t c = 1; c < x.size(); ++c) {
            const bool near = std::abs(x[c] - x[c - 1]) < 1e-5f * x[c];
            if (!near) { CHECK((x[c] < x[c - 1]) == (y[c] < y[c - 1])); }
        }
    }
}

// DefensiveKV's Triton kernel (D8): W_O of head id / batch instead of id mod heads; hidden sizes that are no multiple of the tile.
TEST_CASE("every KV head is weighted by its own query heads' W_O, for odd hidden sizes too", "[regression]") {
    for (const index_t hidden : {1, 17, 255, 321}) {
        layer_data layer = random_layer({.kv_heads = 4,
                                         .group = 2,
                                         .tokens = 30,
                                         .head_dim = 8,
                                         .value_dim = 8,
                                         .hidden = hidden,
                                         .queries = 2},
                                        1);
        // Only query head 5, of KV head 2, projects anything.
        const auto block = static_cast<std::ptrdiff_t>(8 * hidden);
        std::fill(layer.w.begin(), layer.w.begin() + 5 * block, 0.0f);
        std::fill(layer.w.begin() + 6 * block, layer.w.end(), 0.0f);
        const trace t = run(criticalkv(), layer.inputs(), {.budget = per_head(10)});
        for (std::size_t i = 0; i < 120; ++i) { CHECK((t.importance[i] > 0) == (i >= 60 && i < 90)); }
    }
}

// DefensiveKV's code: scores / scores.sum(-1) without a guard.
TEST_CASE("a head whose values are all zero gets zero importance, not NaN", "[regression]") {
    layer_data layer = of_heads(2);
    std::fill_n(layer.v.begin(), layer.v.size() / 2, 0.0f);
    const trace t = run(defensivekv({.first_at_most = 0.0}), layer.inputs(), thirty);
    CHECK(std::all_of(t.importance.begin(), t.importance.begin() + 92, [](float x) { return x == 0.0f; }));
    CHECK(t.plan.kept_tokens(0) == 8); // its window
    CHECK(t.plan.kept_tokens(1) == 52);
}

// CriticalKV, Alg. 1: an absolute epsilon of 1e-4 drowns scores of long contexts, and pass two ranks by the norm alone.
TEST_CASE("a relative epsilon keeps attention in the second pass, however small the scores", "[regression]") {
    // Even attention of 1e-5 each, but the first hundred tokens have ten times as much and the smallest norms.
    constexpr index_t tokens = 20000;
    std::vector<float> k(tokens, 0.0f);
    std::vector<float> v(tokens, 1.1f);
    std::fill_n(k.begin(), 100, std::log(10.0f));
    std::fill_n(v.begin(), 100, 1.0f);
    const std::vector<float> one{1.0f};
    const view keys(k.data(), {1, tokens, 1});
    const view values(v.data(), {1, tokens, 1});
    const auto in = kvtrim::layer(keys, values)
                        .with_queries(view(one.data(), {1, 1, 1}))
                        .with_output_projection(view(one.data(), {1, 1, 1}));
    const auto kept_of_first = [&](bool relative, float epsilon) {
        criticalkv_config c;
        c.attention.pool = pooling::none;
        c.first_ratio = 0;
        c.epsilon = epsilon;
        c.epsilon_relative = relative;
        const auto plan = run(criticalkv(c), in, {.budget = per_head(100)}).plan;
        return std::lower_bound(plan.row(0).begin(), plan.row(0).end(), 100) - plan.row(0).begin();
    };
    CHECK(kept_of_first(true, 1e-4f) == 100);
    CHECK(kept_of_first(true, 1.0f) == 100);
    CHECK(kept_of_first(false, 0.1f) == 0); // the symptom
}
