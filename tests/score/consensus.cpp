// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/score/consensus.hpp>

#include <kvtrim/policy/consensuskv.hpp>
#include <kvtrim/policy/criticalkv.hpp>
#include <kvtrim/policy/defensivekv.hpp>
#include <kvtrim/rerank/shared.hpp>
#include <kvtrim/score/given_scores.hpp>
#include <kvtrim/score/recency.hpp>

#include "support/checks.hpp"

#include <cmath>

using namespace kvtrim;
using namespace support;

namespace {

// importance of consensus over given scores [heads][tokens].
std::vector<float> scored(const oracle::matrix& rows, float lambda) {
    std::vector<float> values;
    for (const auto& row : rows) { values.insert(values.end(), row.begin(), row.end()); }
    const index_t heads = std::ssize(rows);
    const index_t tokens = std::ssize(rows[0]);
    const strided<const float, 2> given(values.data(), {heads, tokens});
    const std::vector<float> keys(static_cast<std::size_t>(heads * tokens));
    const auto in = layer(view(keys.data(), {heads, tokens, 1}));
    const eviction_policy policy{consensus<given_scores<strided<const float, 2>>>{{given}, lambda}, uniform{},
                                 by_importance{}};
    trace t = run(policy, in, {.budget = per_head(std::max<index_t>(1, tokens - 1))});
    REQUIRE(t.answer.ok());
    return t.importance;
}

} // namespace

TEST_CASE("consensus: a head's own share plus lambda times the layer's", "[score][oracle]") {
    support::random r(931);
    for (int i = 0; i < 100; ++i) {
        oracle::matrix rows(static_cast<std::size_t>(r.between(1, 5)));
        const index_t tokens = r.between(2, 50);
        for (auto& row : rows) {
            const double level = std::exp(2 * r.normal());
            for (index_t t = 0; t < tokens; ++t) {
                row.push_back(static_cast<float>(level * std::exp(r.normal())));
            }
        }
        const float lambda = r.one_of({0.0f, 0.25f, 0.5f, 3.0f});
        oracle::row expected;
        for (const auto& row : rows) {
            for (std::size_t c = 0; c < row.size(); ++c) {
                double layer_sum = 0;
                for (const auto& other : rows) { layer_sum += other[c] / oracle::sum(other); }
                expected.push_back(row[c] / oracle::sum(row) + static_cast<double>(lambda) * layer_sum);
            }
        }
        CAPTURE(i, tokens, lambda);
        CHECK(difference(scored(rows, lambda), expected, 1e-5) == "");
    }
}

TEST_CASE("consensus: scaling a head's scores changes nothing", "[score]") {
    const auto expected = scored({{1, 2, 5}, {3, 1, 0}}, 0.5f);
    CHECK(scored({{1024, 2048, 5120}, {3, 1, 0}}, 0.5f) == expected);
}

TEST_CASE("consensus: odd scores stay what they are and have no vote", "[score][odd]") {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    constexpr double nan = std::numeric_limits<double>::quiet_NaN();
    const auto got = scored({{1, infinity, 3}, {1, 1, nan}, {0, 0, 0}}, 1.0f);
    CHECK(got[0] == 0.25f + 0.75f);
    CHECK(got[1] == std::numeric_limits<float>::infinity());
    CHECK(got[2] == 0.75f + 0.75f);
    CHECK(got[3] == 0.5f + 0.75f);
    CHECK(got[4] == 0.5f + 0.5f);
    CHECK(std::isnan(got[5]));
    CHECK(got[6] == 0.75f); // a head without a vote follows the others
    CHECK(got[7] == 0.5f);
}

TEST_CASE("consensus: it wraps every scorer, under every allocator and reranker", "[score]") {
    const layer_data data = random_layer({.tokens = 120, .queries = 8}, 932);
    const auto in = data.inputs();
    const eviction_request request{.budget = per_head(40), .protect = {.window_tokens = 8}};
    const auto check = [&](const auto& policy) {
        const trace t = run(policy, in, request);
        INFO(t.answer.what());
        REQUIRE(t.answer.ok());
        CHECK(is_valid(t.plan, in));
        CHECK(t.plan.total_tokens() == 80);
        CHECK(keeps_protected(t.plan, in, request.protect));
    };
    check(eviction_policy{consensus{snapkv().scorer}, uniform{}, by_importance{}});
    check(eviction_policy{consensus{snapkv().scorer}, adaptive{}, by_importance{}});
    check(eviction_policy{consensus{criticalkv().scorer}, uniform{}, two_stage{}});
    check(eviction_policy{consensus{defensivekv().scorer}, adaptive{}, two_stage_by_mass{}});
    check(eviction_policy{consensus{snapkv().scorer, 0}, uniform{}, shared{}});
}

TEST_CASE("consensus: untold, the layer's sum weighs as in consensuskv", "[score]") {
    CHECK(consensus{snapkv().scorer}.lambda == consensuskv().scorer.lambda);
}

TEST_CASE("consensus: bad input", "[score][errors]") {
    const layer_data data = random_layer({.tokens = 40, .queries = 4}, 933);
    const eviction_request request{.budget = per_head(20), .protect = {.window_tokens = 4}};
    for (const float lambda :
         {-1.0f, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        require_refusal(eviction_policy{consensus{snapkv().scorer, lambda}, uniform{}, by_importance{}},
                        data.inputs(), request, errc::invalid_parameter);
    }
    const std::vector<std::int32_t> offsets{0, 10, 30};
    const std::vector<float> rows(30 * 4, 1.0f);
    const auto ragged_layer = layer(ragged<const float>(rows.data(), offsets, 4));
    require_refusal(eviction_policy{consensus{recency{}}, uniform{}, by_importance{}}, ragged_layer,
                    {.budget = per_head(5)}, errc::rows_differ);
}
