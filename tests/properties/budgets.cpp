// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include "support/named_policies.hpp"
#include "support/policy_oracle.hpp"

#include <kvtrim/policy/snapkv.hpp>
#include <kvtrim/score/given_scores.hpp>

#include <cmath>

using namespace kvtrim;
using namespace support;

TEST_CASE("every policy keeps exactly the budget, ascending, with all protected tokens", "[properties]") {
    for_random_layers(
        401, 40, [](const layer_data& layer, const eviction_request& request, support::random&) {
            const auto in = layer.inputs();
            for (const named_policy& policy : named_policies()) {
                const trace t = policy(in, request);
                CAPTURE(policy.name);
                REQUIRE(t.answer.ok());
                CHECK(is_valid(t.plan, in));
                CHECK(keeps_protected(t.plan, in, request.protect));
                CHECK(t.plan.total_tokens() == policy.kept_of(request.budget.tokens, in, request.protect));
                const auto sets = kept_sets(t.plan);
                if (policy.one_set) { CHECK(std::count(sets.begin(), sets.end(), sets[0]) == in.kv_heads()); }
                if (!policy.across_heads) { // heads differ by one token at most
                    for (index_t g = 0; g < in.kv_heads(); ++g) {
                        CHECK(std::abs(t.plan.kept_tokens(g) * in.kv_heads() - request.budget.tokens) <
                              in.kv_heads());
                    }
                }
            }
        });
}

TEST_CASE("every policy answers with the same plan when it is asked again", "[properties]") {
    for_random_layers(402, 8, [](const layer_data& layer, const eviction_request& request, support::random&) {
        for (const named_policy& policy : named_policies()) {
            CAPTURE(policy.name);
            CHECK(policy(layer.inputs(), request).plan == policy(layer.inputs(), request).plan);
        }
    });
}

TEST_CASE("a larger budget keeps what a smaller one kept, with uniform budgets and one stage",
          "[properties]") {
    for_random_layers(403, 25, [](const layer_data& layer, eviction_request request, support::random&) {
        const auto in = layer.inputs();
        std::vector<oracle::token_set> before;
        const index_t least =
            std::max<index_t>(1, protected_tokens(in, request.protect) / layer.shape.kv_heads);
        for (index_t budget = least; budget <= layer.shape.tokens; budget += 1 + layer.shape.tokens / 9) {
            request.budget = per_head(budget);
            const auto kept = kept_sets(run(snapkv(), in, request).plan);
            for (std::size_t g = 0; g < before.size(); ++g) {
                CHECK(std::includes(kept[g].begin(), kept[g].end(), before[g].begin(), before[g].end()));
            }
            before = kept;
        }
    });
}

TEST_CASE("scores times a power of two give the same plan", "[properties]") {
    support::random r(404);
    for (int i = 0; i < 40; ++i) {
        const layer_data layer = random_layer({.kv_heads = 3, .tokens = r.between(5, 90), .queries = 1}, 1);
        std::vector<float> scores;
        for (index_t c = 0; c < 3 * layer.shape.tokens; ++c) {
            scores.push_back(static_cast<float>(r.uniform()));
        }
        const eviction_request request{.budget = over_all_heads(r.between(3, 3 * layer.shape.tokens - 1)),
                                       .protect = {.sink_tokens = 1}};
        const auto plans = [&](float factor) {
            std::vector<float> scaled = scores;
            for (float& x : scaled) { x *= factor; }
            const given_scores given{strided<const float, 2>(scaled.data(), {3, layer.shape.tokens})};
            const auto in = kvtrim::layer(layer.keys());
            return std::vector<keep_plan>{
                run(eviction_policy{given, uniform{}, by_importance{}}, in, request).plan,
                run(eviction_policy{given, adaptive{}, by_importance{}}, in, request).plan,
            };
        };
        CHECK(plans(1.0f) == plans(0x1p-60f));
        CHECK(plans(1.0f) == plans(0x1p40f));
    }
}
