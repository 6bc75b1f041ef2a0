// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/baselines.hpp>
#include <kvtrim/score/given_scores.hpp>

#include "support/policy_oracle.hpp"
#include "support/rotated.hpp"

#include <set>

using namespace kvtrim;
using namespace support;

namespace {

// All queries of a prompt, as h2o and observed_attention need them.
layer_shape whole_prompt(support::random& r) {
    layer_shape s = policy_shape(r);
    s.tokens = std::min<index_t>(s.tokens, 150);
    s.queries = s.tokens;
    return s;
}

} // namespace

TEST_CASE("streaming_llm: the sinks and the newest tokens stay", "[policy][paper]") {
    const layer_data layer = random_layer({.kv_heads = 2, .tokens = 20}, 1);
    const eviction_request request{.budget = per_head(8), .protect = {.sink_tokens = 4}};
    const trace t = run(streaming_llm(), kvtrim::layer(layer.keys()), request);
    CHECK(kept_sets(t.plan) == std::vector<oracle::token_set>(2, {0, 1, 2, 3, 16, 17, 18, 19}));
}

TEST_CASE("h2o, observed_attention: the kept tokens are the oracle's, from all queries of the prompt",
          "[policy][oracle]") {
    comparison count;
    support::random r(231);
    for (int i = 0; i < 30; ++i) {
        const layer_data layer = random_layer(whole_prompt(r), 6000 + static_cast<std::uint64_t>(i));
        eviction_request request{};
        request.protect.window_tokens = r.between(1, std::max<index_t>(1, layer.shape.tokens / 3));
        request.attention.sliding_window = r.chance(0.5) ? r.between(2, layer.shape.tokens) : 0;
        const index_t budget = random_budget(r, layer.inputs(), request.protect);
        if (budget == 0) { continue; }
        request.budget = over_all_heads(budget);
        CAPTURE(i, layer.shape.tokens, request.attention.sliding_window, budget);
        const auto with = [&](const oracle::snapkv_setup& setup) {
            return [&, setup](const layer_oracle& slow, std::size_t total, oracle::near_ties& ties) {
                const auto scores = slow.snapkv(setup);
                return best_of_rows(scores, oracle::uniform_budgets(oracle::lengths(scores), total), ties);
            };
        };
        constexpr auto none = oracle::pool_kind::none;
        compare_with_oracle(h2o(), layer, request, count,
                            with({.pool = none, .queries = oracle::query_average::sum}));
        compare_with_oracle(
            h2o(group_reduction::maximum), layer, request, count,
            with({.pool = none, .group = oracle::reduction::maximum, .queries = oracle::query_average::sum}));
        compare_with_oracle(observed_attention(), layer, request, count,
                            with({.pool = none, .queries = oracle::query_average::lifetime}));
    }
    CHECK(count.compared >= 70);
}

// VeloxQuant#141: a sum grows with every query that sees a token, so a new token is below all others.
TEST_CASE("h2o: a request that protects no new tokens is refused, for the prompt would stay for ever",
          "[policy]") {
    // Every query pays the same to every token that it sees.
    constexpr index_t tokens = 40, budget = 10;
    const std::vector<float> k(tokens, 0.0f), q(tokens, 1.0f);
    const auto in =
        kvtrim::layer(view(k.data(), {1, tokens, 1})).with_queries(view(q.data(), {1, tokens, 1}));
    keep_plan plan = support::made_before();
    growing_workspace memory;
    const auto answer = [&](const eviction_request& request) {
        return h2o().plan(in, request, plan, memory);
    };
    CHECK(answer({.budget = per_head(budget)}) == status(errc::invalid_parameter, "", budget / 2));
    CHECK(answer({.budget = per_head(budget), .protect = {.sink_tokens = 4}}) ==
          status(errc::invalid_parameter, "", budget / 2));
    CHECK(answer({.budget = per_head(1)}) == status(errc::invalid_parameter, "", 1));
    CHECK(plan == support::made_before());
    CHECK(answer({.budget = per_head(tokens)}).ok()); // nothing leaves
    const trace paper =
        run(h2o(), in, {.budget = per_head(budget), .protect = {.window_tokens = budget / 2}});
    CHECK(kept_sets(paper.plan)[0] == oracle::token_set{0, 1, 2, 3, 4, 35, 36, 37, 38, 39});
}

TEST_CASE("observed_attention: new tokens that are attended to stay, without a protected window",
          "[policy]") {
    constexpr index_t tokens = 40;
    const std::vector<float> q(tokens, 1.0f);
    std::vector<float> asked(tokens, 0.0f);
    std::fill(asked.end() - 3, asked.end(), 5.0f);
    const auto late =
        kvtrim::layer(view(asked.data(), {1, tokens, 1})).with_queries(view(q.data(), {1, tokens, 1}));
    const trace means = run(observed_attention(), late, {.budget = per_head(3)});
    CHECK(kept_sets(means.plan)[0] == oracle::token_set{37, 38, 39});
    // Their sums are the smallest: with the newest token protected, the other two leave.
    const trace sums = run(h2o(), late, {.budget = per_head(3), .protect = {.window_tokens = 1}});
    CHECK(kept_sets(sums.plan)[0] == oracle::token_set{0, 1, 39});
}

TEST_CASE("tova: one set for all heads, by the last query's attention", "[policy][oracle]") {
    comparison count;
    for_random_layers(
        232, 40, [&](const layer_data& layer, const eviction_request& request, support::random&) {
            compare_with_oracle(tova(), layer, request, count,
                                [&](layer_oracle slow, std::size_t total, oracle::near_ties& ties) {
                                    for (auto& head : slow.queries) {
                                        head.erase(head.begin(), head.end() - 1);
                                    }
                                    slow.attention = oracle::attention(slow.queries, slow.keys, slow.setup);
                                    const auto scores = slow.snapkv({.pool = oracle::pool_kind::none});
                                    // The remainder of an uneven budget is kept by no head.
                                    return column_sets(slow.heads(),
                                                       oracle::shared(scores, total / slow.heads(),
                                                                      oracle::head_reduction::sum, ties));
                                });
        });
    CHECK(count.compared >= 35);
}

TEST_CASE("a tenth of the budget reserved at both boundaries of the context stays whatever the scores say",
          "[policy][paper]") { // arXiv:2605.18053
    const index_t tokens = 300, budget = 60, tenth = kept_tokens(budget, 0.1);
    const layer_data layer = random_layer({.kv_heads = 3, .tokens = tokens, .queries = 4}, 5);
    const eviction_request request{.budget = per_head(budget),
                                   .protect = {.sink_tokens = tenth, .window_tokens = tenth}};
    std::vector<float> least_at_the_ends(static_cast<std::size_t>(3 * tokens));
    for (index_t g = 0; g < 3; ++g) {
        for (index_t t = 0; t < tokens; ++t) {
            least_at_the_ends[static_cast<std::size_t>(g * tokens + t)] =
                static_cast<float>(std::min(t, tokens - 1 - t));
        }
    }
    const given_scores by_middle{strided<const float, 2>(least_at_the_ends.data(), {3, tokens})};
    const auto check = [&](const auto& policy, const char* name) {
        const trace t = run(policy, layer.inputs(), request);
        CAPTURE(name);
        for (const oracle::token_set& row : kept_sets(t.plan)) {
            REQUIRE(row.size() >= 12);
            for (std::size_t i = 0; i < 6; ++i) {
                CHECK(row[i] == i);
                CHECK(row[row.size() - 1 - i] == static_cast<std::size_t>(tokens) - 1 - i);
            }
        }
        CHECK(t.plan.total_tokens() == 3 * budget);
        return t;
    };
    check(snapkv(), "snapkv");
    check(ada_snapkv(), "ada_snapkv");
    check(h2o(), "h2o");
    check(kvtrim::random(), "random");
    const trace t = check(eviction_policy{by_middle, uniform{}, by_importance{}}, "by the middle");
    const auto row = t.plan.row(0); // without the reserve the ends would have gone first
    CHECK(row[6] == 126);
    CHECK(row[53] == 173);
}

TEST_CASE("key_norm, key_diff: the kept tokens are the oracle's", "[policy][oracle]") {
    comparison count;
    for_random_layers(
        233, 40, [&](const layer_data& layer, const eviction_request& request, support::random&) {
            const auto by = [](oracle::row (*score)(const oracle::matrix&)) {
                return [score](const layer_oracle& slow, std::size_t total, oracle::near_ties& ties) {
                    oracle::matrix scores;
                    for (std::size_t g = 0; g < slow.heads(); ++g) {
                        scores.push_back(oracle::at(score(slow.keys[g]), slow.candidates(g)));
                    }
                    return best_of_rows(scores, oracle::uniform_budgets(oracle::lengths(scores), total),
                                        ties);
                };
            };
            compare_with_oracle(key_norm(), layer, request, count, by(oracle::key_norms));
            compare_with_oracle(key_diff(), layer, request, count, by(oracle::key_differences));
        });
    CHECK(count.compared >= 65);
}

TEST_CASE("key_diff_before_rope: the kept tokens are key_diff's of the keys before their rotation",
          "[policy][oracle]") {
    comparison count;
    for_random_layers(
        235, 30, [&](const layer_data& layer, const eviction_request& request, support::random& r) {
            const std::vector<float> table = rope_frequencies(layer.shape.head_dim / 2);
            const rope model{.inverse_frequencies = table,
                             .pairing = r.chance(0.5) ? rope_pairing::half_split : rope_pairing::interleaved};
            const auto by_plain_keys = [&](const layer_oracle&, std::size_t total, oracle::near_ties& ties) {
                const layer_oracle plain(layer.inputs(), request);
                oracle::matrix scores;
                for (std::size_t g = 0; g < plain.heads(); ++g) {
                    scores.push_back(oracle::at(oracle::key_differences(plain.keys[g]), plain.candidates(g)));
                }
                return best_of_rows(scores, oracle::uniform_budgets(oracle::lengths(scores), total), ties);
            };
            compare_with_oracle(key_diff_before_rope(model), rotated(layer, model), request, count,
                                by_plain_keys);
        });
    CHECK(count.compared >= 20);
}

TEST_CASE("random: a seed is a plan, another seed is another", "[policy]") {
    const layer_data layer = random_layer({.kv_heads = 3, .tokens = 200}, 1);
    const auto in = kvtrim::layer(layer.keys());
    const eviction_request request{.budget = per_head(50)};
    CHECK(run(kvtrim::random(1), in, request).plan == run(kvtrim::random(1), in, request).plan);
    CHECK_FALSE(run(kvtrim::random(1), in, request).plan == run(kvtrim::random(2), in, request).plan);
    const auto sets = kept_sets(run(kvtrim::random(1), in, request).plan);
    CHECK(std::set<oracle::token_set>(sets.begin(), sets.end()).size() == 3);
}

TEST_CASE("sliding windows: eviction behind the live window leaves the next query what it sees, or all stays",
          "[policy]") {
    support::random r(641);
    const layer_data layer = random_layer({.tokens = 90, .queries = 6}, 641);
    const auto in = layer.inputs();
    for (int i = 0; i < 20; ++i) {
        eviction_request request{};
        request.protect = {.sink_tokens = r.between(0, 2), .window_tokens = r.between(0, 8)};
        request.protect.rollback_tokens = r.between(0, 3);
        request.attention.sliding_window = r.between(1, 60);
        const index_t oldest = 90 - request.protect.rollback_tokens - request.attention.sliding_window + 1;
        request.budget = per_head(r.between(75, 80));
        CAPTURE(i, request.attention.sliding_window, request.protect.rollback_tokens);
        for (const trace& t : {run(key_norm(), in, keeping_live_window(request)),
                               run(snapkv(), in, keeping_live_window(request))}) {
            REQUIRE(t.answer.ok());
            for (index_t g = 0; g < in.kv_heads(); ++g) {
                const auto row = t.plan.row(g);
                REQUIRE(std::ssize(row) == request.budget.tokens);
                REQUIRE(std::count_if(row.begin(), row.end(), [&](index_t kept) { return kept >= oldest; }) ==
                        90 - oldest);
            }
        }
        const trace all = run(snapkv(), in, keeping_all(request));
        REQUIRE(all.answer.ok());
        REQUIRE(all.importance.empty()); // nothing was scored
        REQUIRE(all.plan.kept().size() == static_cast<std::size_t>(90 * in.kv_heads()));
        request.budget = per_head(90 - oldest - 1);
        if (request.budget.tokens > 0) {
            REQUIRE(run(snapkv(), in, keeping_live_window(request)).answer.code() ==
                    errc::budget_below_protection);
        }
    }
}
