// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/lagkv.hpp>

#include "oracle/lag.hpp"
#include "support/policy_oracle.hpp"

using namespace kvtrim;
using namespace support;

TEST_CASE("lagkv: the kept tokens are the oracle's", "[policy][oracle]") {
    comparison count;
    for_random_layers(
        261, 40, [&](const layer_data& layer, const eviction_request& request, support::random& r) {
            const lag_score score{r.one_of({4, 16}), r.chance(0.5)};
            compare_with_oracle(
                lagkv(score), layer, request, count,
                [&](const layer_oracle& slow, std::size_t total, oracle::near_ties& ties) {
                    oracle::matrix scores;
                    for (std::size_t g = 0; g < slow.heads(); ++g) {
                        const std::size_t tokens = slow.keys[g].size();
                        const std::size_t begin = std::min(slow.protect.prefix, tokens);
                        scores.push_back(
                            oracle::lag_scores(slow.keys[g], slow.values[g], begin,
                                               std::max(begin, tokens - slow.setup.rollback_tokens),
                                               static_cast<std::size_t>(score.lag), score.cross_scoring));
                        scores.back().resize(slow.candidates(g).size());
                    }
                    return best_of_rows(scores, oracle::uniform_budgets(oracle::lengths(scores), total),
                                        ties);
                });
        });
    CHECK(count.compared >= 25);
}

TEST_CASE("lagkv: a prompt too short for two partitions keeps its sinks and newest tokens", "[policy]") {
    const layer_data layer = random_layer({.kv_heads = 2, .tokens = 20}, 1);
    const trace t = run(lagkv(), layer.inputs(), {.budget = per_head(8), .protect = {.sink_tokens = 4}});
    CHECK(kept_sets(t.plan) == std::vector<oracle::token_set>(2, {0, 1, 2, 3, 16, 17, 18, 19}));
}

TEST_CASE("lagkv: a partition of no tokens is refused with the plan untouched", "[policy][errors]") {
    const layer_data layer = random_layer({}, 1);
    require_refusal(lagkv({.lag = 0}), layer.inputs(), {.budget = per_head(8)}, errc::invalid_parameter);
}
