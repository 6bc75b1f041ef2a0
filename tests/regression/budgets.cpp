// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Defects in how reference codes count, as symptoms.

#include "support/named_policies.hpp"

#include <kvtrim/allocate/blended.hpp>
#include <kvtrim/policy/defensivekv.hpp>
#include <kvtrim/policy/snapkv.hpp>
#include <kvtrim/rerank/chunked.hpp>
#include <kvtrim/score/given_scores.hpp>

using namespace kvtrim;
using namespace support;

namespace {

// Heads whose scores differ by orders of magnitude.
struct unequal_heads {
    std::vector<float> scores;
    layer_data layer = random_layer({.kv_heads = 4, .group = 1, .tokens = 100, .queries = 10}, 1);

    unequal_heads() {
        support::random r(5);
        for (const double level : {1e-6, 1.0, 1e3, 1e-3}) {
            for (int t = 0; t < 100; ++t) {
                scores.push_back(static_cast<float>(level * (0.5 + r.uniform())));
            }
        }
    }
    template <class Allocator>
    [[nodiscard]] trace cut(const Allocator& allocator, const eviction_request& request) const {
        const given_scores given{strided<const float, 2>(scores.data(), {4, 100})};
        return run(eviction_policy{given, allocator, by_importance{}}, layer.inputs(), request);
    }
};

} // namespace

// kvpress 8bb29b9, ScorerPress and others: int(n (1 - r)) is one short wherever the product falls below a whole number.
TEST_CASE("a tenth of a hundred tokens is ten, not nine", "[regression]") {
    CHECK(kept_tokens(100, 0.1) == 10);
    CHECK(kept_tokens(1000, 0.1) == 100);
    CHECK(kept_tokens(10, 0.1) == 1);
    CHECK(kept_tokens(5, 0.2) == 1);
    index_t short_by_one = 0;
    for (index_t n = 1; n <= 8192; ++n) {
        REQUIRE(kept_tokens(n, 0.2) == n / 5);
        REQUIRE(kept_tokens(n, 0.1) == n / 10);
        REQUIRE(kept_tokens(n, 0.7) == n * 7 / 10);
        short_by_one += kept_tokens_kvpress(n, 0.8) == n / 5 ? 0 : 1;
    }
    CHECK(short_by_one == 1638); // as published runs count
}

// kvpress#264: a budget that rounds to 0 empties the cache without a word.
TEST_CASE("a budget that rounds to nothing is refused", "[regression]") {
    const layer_data layer = random_layer({.tokens = 9, .queries = 2}, 1);
    for (const named_policy& policy : named_policies()) {
        const trace t = policy(layer.inputs(), {.budget = per_head(kept_tokens(9, 0.1))});
        CAPTURE(policy.name);
        CHECK(t.answer.code() == errc::budget_zero);
        CHECK(t.plan == made_before());
    }
}

// kvpress 8bb29b9, AdaKVPress: the safeguard int(k alpha) counts window tokens; at or below the window it protects nothing else.
TEST_CASE("Ada-KV's safeguard protects candidates also when it is smaller than the window", "[regression]") {
    const unequal_heads heads;
    // 30 candidates per head beside 40 window tokens; a safeguard of 0.2 is 6 of the 30.
    const trace t = heads.cut(adaptive{.safeguard_ratio = 0.2},
                              {.budget = per_head(70), .protect = {.window_tokens = 40}});
    CHECK(t.budgets == std::vector<index_t>{6, 48, 60, 6});
}

// kvpress#264: without a safeguard a whole head was masked; here its protected tokens stay in any case.
TEST_CASE("a head that wins no candidate keeps its protected tokens", "[regression]") {
    const unequal_heads heads;
    const trace t = heads.cut(adaptive{.safeguard_ratio = 0.0},
                              {.budget = per_head(30), .protect = {.sink_tokens = 4, .window_tokens = 10}});
    CHECK(t.budgets == std::vector<index_t>{0, 0, 64, 0});
    CHECK(t.plan.kept_tokens(0) == 14);
}

// AdaKV efe4e2e, snapkv_utils.py: round() per head misses the total; a budget above a head's length is clipped and lost.
TEST_CASE("head budgets sum to the request, and a full head's surplus goes to the others", "[regression]") {
    const unequal_heads heads;
    const eviction_request request{.budget = over_all_heads(333), .protect = {.window_tokens = 10}};
    for (const double floor : {0.0, 0.2, 0.5, 0.77}) {
        const trace t = heads.cut(blended{.floor_ratio = floor}, request);
        CHECK(t.plan.total_tokens() == 333);
        for (index_t g = 0; g < 4; ++g) { CHECK(t.plan.kept_tokens(g) <= 100); }
    }
    CHECK(heads.cut(adaptive{}, request).plan.total_tokens() == 333);
}

// AdaKV efe4e2e, snapkv_utils.py: normalize divides by a sum of scores that may be 0.
TEST_CASE("a head without any score does not turn head budgets into NaN", "[regression]") {
    unequal_heads heads;
    std::fill_n(heads.scores.begin() + 100, 100, 0.0f);
    const blended weighted{.floor_ratio = 0.2, .weight_by_kept_mass = true};
    const trace t = heads.cut(weighted, {.budget = per_head(30)});
    CHECK(t.plan.total_tokens() == 120);
    CHECK(t.budgets[1] == 6); // its even share of the floor
}

// int(n (1 - r) H) in DefensiveKV 9251b95, H int(n (1 - r)) in kvpress 8bb29b9.
TEST_CASE("a budget over all heads is met to the token, not rounded per head", "[regression]") {
    const unequal_heads heads;
    for (const index_t total : {101, 102, 103}) {
        CHECK(heads.cut(uniform{}, {.budget = over_all_heads(total)}).plan.total_tokens() == total);
        CHECK(heads.cut(adaptive{}, {.budget = over_all_heads(total)}).plan.total_tokens() == total);
    }
}

// kvpress 8bb29b9, chunkkv_press.py: it keeps whole chunks only: 180 of 199 tokens with chunks of 20, 40 of 99 with chunks of 96.
TEST_CASE("chunks do not make the kept count drift", "[regression]") {
    const layer_data layer = random_layer({.kv_heads = 2, .group = 2, .tokens = 1000, .queries = 8}, 1);
    for (const index_t chunk : {20, 96}) {
        const auto kept = [&](const auto& allocator, const auto& reranker) {
            const eviction_policy policy{window_attention{mean_attention{}}, allocator, reranker};
            return run(policy, layer.inputs(), {.budget = per_head(99)}).plan.total_tokens();
        };
        CHECK(kept(uniform{}, chunked{.chunk_tokens = chunk}) == 198);
        CHECK(kept(uniform{}, chunked_per_head{.chunk_tokens = chunk}) == 198);
        CHECK(kept(adaptive{}, chunked_per_head{.chunk_tokens = chunk}) == 198);
    }
}

// SnapKV's and kvpress' pooling: an even kernel makes the output one longer, and a reshape raises.
TEST_CASE("an even pooling kernel is refused before anything is computed", "[regression]") {
    const layer_data layer = random_layer({}, 1);
    const eviction_request request{.budget = per_head(20)};
    require_refusal(snapkv({.kernel_tokens = 6}), layer.inputs(), request, errc::invalid_parameter);
    require_refusal(defensivekv({.attention = {.kernel_tokens = 6}}), layer.inputs(), request,
                    errc::invalid_parameter);
}

// DefensiveKV 9251b95: a prompt no longer than the window fails an assertion.
TEST_CASE("a prompt shorter than the observation window is kept whole or named", "[regression]") {
    const layer_data layer = random_layer({.tokens = 20, .queries = 20}, 1);
    const view keys(layer.k.data(), {2, 12, 16});
    const auto in = kvtrim::layer(keys).with_queries(layer.queries());
    CHECK(run(snapkv(), in, {.budget = per_head(12)}).plan.total_tokens() == 24);
    require_refusal(snapkv(), in, {.budget = per_head(11)}, errc::window_exceeds_tokens, 20);
}
