// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Defects of the first pass in DefensiveKV's and kvpress' CriticalKV code, as symptoms.

#include "support/checks.hpp"

#include <kvtrim/policy/criticalkv.hpp>
#include <kvtrim/policy/defensivekv.hpp>

#include <cmath>

using namespace kvtrim;
using namespace support;

namespace {

// One head whose last query sees exactly these attention weights: keys are logits.
struct weighted_layer {
    std::vector<float> k, v, q{1.0f}, w{1.0f};

    explicit weighted_layer(const std::vector<double>& attention) {
        for (const double a : attention) {
            k.push_back(static_cast<float>(std::log(a)));
            v.push_back(1.0f);
        }
    }
    [[nodiscard]] auto inputs() const {
        const auto tokens = static_cast<index_t>(k.size());
        const view keys(k.data(), {1, tokens, 1});
        const view values(v.data(), {1, tokens, 1});
        return kvtrim::layer(keys, values)
            .with_queries(view(q.data(), {1, 1, 1}))
            .with_output_projection(view(w.data(), {1, 1, 1}));
    }
};

index_t forced(const trace& t) {
    return std::count(t.selected.begin(), t.selected.end(), std::numeric_limits<float>::infinity());
}

// The authors' rule, without the library's own cap on pass one.
constexpr defensivekv_config uncapped(double attention_mass = 0.9) {
    defensivekv_config c;
    c.attention_mass = attention_mass;
    c.first_at_most = 1.0;
    return c;
}

// A request that makes the window the last `window` tokens, with a budget in tokens.
eviction_request request_of(index_t budget, index_t window) {
    return {.budget = per_head(budget), .protect = {.window_tokens = window}};
}

} // namespace

// D1 (policy/defensivekv.hpp lists these): the reference takes the attention on the tokens before the window for the window's own.
TEST_CASE("defensivekv: the mass on the window is the window's own, not that of the tokens before it",
          "[regression]") {
    // The window holds 0.5; the two tokens before it 0.02.
    const weighted_layer layer({0.2, 0.15, 0.08, 0.03, 0.02, 0.01, 0.01, 0.3, 0.2});
    const trace t = run(defensivekv(uncapped(0.8)), layer.inputs(), request_of(8, 2));
    CHECK(t.protected_mass[0] == Approx(0.5).epsilon(1e-5));
    CHECK(forced(t) == 2); // 0.5 + 0.2 + 0.15
}

// D1: one scalar for all heads there; each head has its own window mass.
TEST_CASE("defensivekv: each KV head has a window mass of its own", "[regression]") {
    const layer_data layer = random_layer({.kv_heads = 3, .group = 2, .tokens = 200, .queries = 8}, 4);
    const eviction_request request = request_of(80, 8);
    const trace t = run(defensivekv(uncapped()), layer.inputs(), request);
    const layer_oracle slow(layer.inputs(), request);
    for (std::size_t g = 0; g < 3; ++g) {
        CHECK(static_cast<double>(t.protected_mass[g]) ==
              Approx(oracle::protected_mass(slow.attention, 2, g, slow.protect)).epsilon(1e-4));
    }
    CHECK(t.protected_mass[0] != Approx(t.protected_mass[1]).epsilon(0.01));
}

// D2: the reference normalises the cumulative mass to the pre-window part but not the threshold.
TEST_CASE("defensivekv: the cumulative mass counts in units of the whole attention", "[regression]") {
    // In units of the candidates' 0.5 the first two would be 0.8: above 0.9 - 0.5.
    const weighted_layer layer({0.2, 0.2, 0.04, 0.03, 0.03, 0.3, 0.2});
    const trace t = run(defensivekv(uncapped(0.93)), layer.inputs(), request_of(6, 2));
    CHECK(forced(t) == 3); // 0.5 + 0.2 + 0.2 + 0.04
}

// D3: argmax of cumsum >= threshold leaves the crossing token out: 0.74 to 0.84 covered, not 0.9.
TEST_CASE("defensivekv: pass one and the window cover the threshold whenever the limit allows",
          "[regression]") {
    for (std::uint64_t seed = 0; seed < 20; ++seed) {
        const layer_data layer = random_layer({.kv_heads = 2, .group = 2, .tokens = 150, .queries = 8}, seed);
        const eviction_request request = request_of(149, 8);
        const trace t = run(defensivekv(uncapped()), layer.inputs(), request);
        for (std::size_t g = 0; g < 2; ++g) {
            double covered = static_cast<double>(t.protected_mass[g]);
            double least = 1;
            for (auto i = static_cast<std::size_t>(t.offsets[g]);
                 i < static_cast<std::size_t>(t.offsets[g + 1]); ++i) {
                if (t.selected[i] != std::numeric_limits<float>::infinity()) { continue; }
                covered += static_cast<double>(t.attention[i]);
                least = std::min(least, static_cast<double>(t.attention[i]));
            }
            CHECK(covered >= 0.9 - 1e-6);
            CHECK(covered - least < 0.9); // and no token more than that takes
        }
    }
}

// DefensiveKV 9251b95: a threshold that rounding keeps out of reach made argmax return 0: no pass one at all.
TEST_CASE("defensivekv: a threshold that is never reached forces as many tokens as the limit allows",
          "[regression]") {
    const weighted_layer layer({0.2, 0.2, 0.1, 0.1, 0.1, 0.3});
    eviction_request request = request_of(4, 1);
    const std::vector<float> sink{0.0f}; // half of the attention goes to no token
    request.attention.sink_logits = sink;
    CHECK(forced(run(defensivekv(uncapped(1.0)), layer.inputs(), request)) == 3);
}

// The same code: threshold - window mass at or below zero.
TEST_CASE("defensivekv: a window that holds the whole mass leaves pass one empty", "[regression]") {
    const weighted_layer layer({0.01, 0.01, 0.02, 0.46, 0.5});
    CHECK(forced(run(defensivekv(uncapped()), layer.inputs(), request_of(4, 2))) == 0);
}

// D4: int(m (1 - r) - w) with m already without the window is about w (1 - r) too small.
TEST_CASE("defensivekv: pass one may take all that the window leaves of the budget", "[regression]") {
    std::vector<double> even(100, 1.0);
    const weighted_layer layer(even);
    CHECK(forced(run(defensivekv(uncapped()), layer.inputs(), request_of(50, 20))) == 30);
}

// D5: a negative limit is a slice end there: nearly every token is forced and all tie.
TEST_CASE("defensivekv: a budget that the window uses up forces nothing", "[regression]") {
    const layer_data layer =
        random_layer({.kv_heads = 2, .group = 1, .tokens = 1000, .head_dim = 8, .queries = 64}, 9);
    const trace none = run(defensivekv(uncapped()), layer.inputs(), request_of(64, 64));
    CHECK(forced(none) == 0);
    CHECK(none.plan.kept_tokens(0) == 64);
    const trace two = run(defensivekv(uncapped()), layer.inputs(), request_of(66, 64)); // 0.934 evicted
    CHECK(forced(two) <= 4);
    CHECK(two.plan.total_tokens() == 132);
}

// D7: forced tokens and the window get the layer's maximum and tie with its best token.
TEST_CASE("defensivekv: a token of pass one is never dropped for one that scores higher", "[regression]") {
    for (std::uint64_t seed = 0; seed < 20; ++seed) {
        layer_data layer = random_layer({.kv_heads = 3, .group = 2, .tokens = 120, .queries = 8}, seed);
        for (index_t t = 0; t < 120; t += 3) { // what is attended need not be worth much
            for (index_t g = 0; g < 3; ++g) { std::fill_n(layer.value(g, t), 16, 0.0f); }
        }
        const trace t = run(defensivekv(uncapped()), layer.inputs(), request_of(30, 8));
        for (index_t g = 0; g < 3; ++g) {
            const auto row = t.plan.row(g);
            for (index_t c = 0; c < 112; ++c) {
                const float score =
                    t.selected[static_cast<std::size_t>(t.offsets[static_cast<std::size_t>(g)] + c)];
                if (score == std::numeric_limits<float>::infinity()) {
                    CHECK(std::binary_search(row.begin(), row.end(), c));
                }
            }
        }
    }
}

// DefensiveKV, Sec. 4: pass one takes nearly the whole budget where attention is flat; the cap is the way out.
TEST_CASE("defensivekv: a cap leaves a part of the budget to the worst-case score", "[regression]") {
    const weighted_layer layer(std::vector<double>(100, 1.0));
    CHECK(forced(run(defensivekv(), layer.inputs(), request_of(50, 20))) == 15);
    CHECK(forced(run(defensivekv({.first_at_most = 0.2}), layer.inputs(), request_of(50, 20))) == 6);
}

// kvpress 8bb29b9, CriticalAdaKVPress: it multiplies "forced" by the norm: the best token of a head was pruned, its value being zero.
TEST_CASE("criticalkv: the most attended token stays although its value is zero", "[regression]") {
    for (std::uint64_t seed = 0; seed < 10; ++seed) {
        layer_data layer = random_layer({.kv_heads = 2, .group = 2, .tokens = 100, .queries = 8}, seed);
        const eviction_request request = request_of(30, 8);
        criticalkv_config unpooled;
        unpooled.attention.pool = pooling::none;
        const trace scored = run(criticalkv(unpooled), layer.inputs(), request);
        std::vector<index_t> best;
        for (index_t g = 0; g < 2; ++g) {
            const auto row = std::span(scored.attention).subspan(static_cast<std::size_t>(92 * g), 92);
            best.push_back(std::max_element(row.begin(), row.end()) - row.begin());
            std::fill_n(layer.value(g, best.back()), 16, 0.0f);
        }
        const trace plain = run(criticalkv(unpooled), layer.inputs(), request);
        const trace ada =
            run(ada_criticalkv(unpooled, adaptive{.safeguard_ratio = 0.2}), layer.inputs(), request);
        for (std::size_t g = 0; g < 2; ++g) {
            const auto in_plan = [&](const trace& t) {
                const auto row = t.plan.row(static_cast<index_t>(g));
                return std::binary_search(row.begin(), row.end(), best[g]);
            };
            CHECK(in_plan(plain));
            CHECK(in_plan(ada));
        }
    }
}

// kvpress 8bb29b9, CriticalKVPress: padded window tokens use up pass one; with a pass-one budget below the window it takes nothing else.
TEST_CASE("criticalkv: the window does not use up pass one", "[regression]") {
    const layer_data layer = random_layer({.kv_heads = 1, .group = 1, .tokens = 200, .queries = 32}, 3);
    CHECK(forced(run(criticalkv(), layer.inputs(), request_of(52, 32))) ==
          10); // half of the 20 beside the window
}

// kvpress 8bb29b9, CriticalKVPress: int((1 - r) n ratio) is not a fraction of the rounded kept count: 0.1 x 100 x 0.5 is 5, not 4.
TEST_CASE("criticalkv: pass one is its share of the rounded budget", "[regression]") {
    const layer_data layer = random_layer({.kv_heads = 1, .group = 1, .tokens = 100, .queries = 1}, 3);
    const index_t budget = kept_tokens(100, 0.1);
    CHECK(budget == 10);
    CHECK(forced(run(criticalkv(), layer.inputs(), request_of(budget, 0))) == 5);
    CHECK(forced(run(criticalkv({.first_ratio = 0.3}), layer.inputs(), request_of(budget, 0))) == 3);
}
