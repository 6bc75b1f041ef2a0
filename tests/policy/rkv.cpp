// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/rkv.hpp>

#include "oracle/redundancy.hpp"
#include "support/policy_oracle.hpp"

using namespace kvtrim;
using namespace support;

TEST_CASE("rkv: the kept tokens are the oracle's", "[policy][oracle]") {
    comparison count;
    int close_to_border = 0;
    for_random_layers(
        271, 40, [&](const layer_data& layer, const eviction_request& request, support::random& r) {
            const rkv_config config{.importance_share = r.one_of({0.07f, 0.3f}),
                                    .search_tokens = r.one_of({0, 50})};
            const oracle::snapkv_setup attention{
                .pool = oracle::pool_kind::maximum, .kernel = 7, .group = oracle::reduction::maximum};
            bool close = false;
            const layer_oracle whole(layer.inputs(), request);
            oracle::matrix scores = whole.snapkv(attention);
            for (std::size_t g = 0; g < scores.size(); ++g) {
                const auto all =
                    oracle::key_redundancy(whole.keys[g], whole.keys[g].size() - whole.setup.rollback_tokens,
                                           0.5, static_cast<std::size_t>(config.search_tokens));
                close = close || all.close_to_border;
                scores[g] = oracle::less_redundant(scores[g], whole.candidates(g), all.values,
                                                   static_cast<double>(config.importance_share));
            }
            if (close) {
                ++close_to_border;
                return;
            }
            compare_with_oracle(rkv(config), layer, request, count,
                                [&](const layer_oracle&, std::size_t total, oracle::near_ties& ties) {
                                    return best_of_rows(
                                        scores, oracle::uniform_budgets(oracle::lengths(scores), total),
                                        ties);
                                });
        });
    CHECK(count.compared + close_to_border >= 25);
    CHECK(count.compared >= 20);
}

TEST_CASE("rkv: of a thought that is repeated, the newest copy stays", "[policy]") {
    // Four copies of six keys at right angles, all attended alike, then a window that resembles none.
    layer_data layer =
        random_layer({.kv_heads = 1, .group = 1, .tokens = 28, .head_dim = 32, .queries = 4}, 3);
    std::fill(layer.k.begin(), layer.k.end(), 0.0f);
    for (index_t t = 0; t < 28; ++t) { layer.key(0, t)[t < 24 ? t % 6 : t] = 3.0f; }
    std::fill(layer.q.begin(), layer.q.end(), 0.0f);
    const eviction_request request{.budget = per_head(10), .protect = {.window_tokens = 4}};
    const auto kept = kept_sets(run(rkv(), layer.inputs(), request).plan)[0];
    CHECK(kept == oracle::token_set{18, 19, 20, 21, 22, 23, 24, 25, 26, 27});
}

TEST_CASE("rkv: bad input is named with the plan untouched", "[policy][errors]") {
    const layer_data layer = random_layer({}, 1);
    require_refusal(rkv({.importance_share = 2}), layer.inputs(), {.budget = per_head(20)},
                    errc::invalid_parameter);
}
