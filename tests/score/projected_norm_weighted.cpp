// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/score/projected_norm_weighted.hpp>

#include <kvtrim/aggregate/mean_attention.hpp>
#include <kvtrim/aggregate/worst_case_attention.hpp>
#include <kvtrim/score/given_scores.hpp>
#include <kvtrim/score/key_norm_score.hpp>
#include <kvtrim/score/recency.hpp>
#include <kvtrim/score/window_attention.hpp>

#include "support/checks.hpp"

#include <cmath>

using namespace kvtrim;
using namespace support;

namespace {

using mean_weighted = projected_norm_weighted<window_attention<mean_attention>>;

} // namespace

TEST_CASE("projected_norm_weighted: scores equal (s + epsilon) * norm for every field and random shapes",
          "[score][oracle]") {
    support::random r(41);
    std::vector<float> sinks;
    for (std::uint64_t seed = 0; seed < 60; ++seed) {
        layer_shape shape = random_shape(r);
        shape.tokens = std::min<index_t>(shape.tokens, 280);
        shape.queries = std::min(shape.queries, shape.tokens);
        const layer_data layer = random_layer(shape, 4000 + seed);
        const eviction_request request = random_request(r, shape, sinks);
        mean_weighted scorer;
        scorer.epsilon = r.one_of({0.0f, 1e-4f, 0.01f});
        scorer.epsilon_relative = r.chance(0.5);
        scorer.scope = r.one_of({norm_scope::raw, norm_scope::per_head, norm_scope::per_token});

        const layer_oracle slow(layer.inputs(), request);
        const oracle::matrix attention = slow.snapkv();
        oracle::matrix norms = slow.norms();
        if (scorer.scope == norm_scope::per_head) { norms = oracle::per_head(norms); }
        if (scorer.scope == norm_scope::per_token) { norms = oracle::per_token(norms); }
        const oracle::matrix expected =
            oracle::weighted(attention, norms, static_cast<double>(scorer.epsilon), scorer.epsilon_relative);

        CAPTURE(seed, shape.tokens, scorer.epsilon, scorer.epsilon_relative, static_cast<int>(scorer.scope));
        score_memory fast = score_layer(scorer, layer.inputs(), request);
        CHECK(difference(fast.importance_rows(), expected) == "");
        CHECK(difference(fast.attention_rows(), attention) == "");
    }
}

TEST_CASE(
    "projected_norm_weighted: with a scorer that writes attention inside, attention is that scorer's own",
    "[score][oracle]") {
    const layer_data layer = small_layer();
    const eviction_request request{.budget = {}, .protect = {.window_tokens = 4}};
    projected_norm_weighted<window_attention<worst_case_attention>> scorer;
    scorer.epsilon = 0;
    scorer.scope = norm_scope::per_head;
    const layer_oracle slow(layer.inputs(), request);
    oracle::matrix worst;
    oracle::matrix mean;
    for (std::size_t g = 0; g < 2; ++g) {
        const auto scores = oracle::worst_case(slow.attention, 2, g, slow.candidates(g), 5, 1.0);
        worst.push_back(scores.aggregated);
        mean.push_back(scores.attention);
    }
    score_memory fast = score_layer(scorer, layer.inputs(), request);
    CHECK(difference(fast.importance_rows(), oracle::weighted(worst, oracle::per_head(slow.norms()), 0)) ==
          "");
    CHECK(difference(fast.attention_rows(), mean) == "");
    CHECK(difference(fast.protected_mass, {oracle::protected_mass(slow.attention, 2, 0, slow.protect),
                                           oracle::protected_mass(slow.attention, 2, 1, slow.protect)}) ==
          "");
}

TEST_CASE("projected_norm_weighted: it weights any scorer, also one without a workspace", "[score]") {
    const layer_data layer = small_layer();
    projected_norm_weighted<recency> scorer;
    scorer.epsilon = 0;
    score_memory fast = score_layer(scorer, layer.inputs(), {});
    const layer_oracle slow(layer.inputs(), {});
    CHECK(fast.attention == score_layer(recency{}, layer.inputs(), {}).importance);
    CHECK(static_cast<double>(fast.importance[0]) == Approx(-40.0 * slow.norms()[0][0]).epsilon(1e-4));
}

TEST_CASE("projected_norm_weighted: with one KV head the per-token scope makes every norm 1", "[score]") {
    const layer_data layer = random_layer(
        {.kv_heads = 1, .group = 2, .tokens = 40, .head_dim = 8, .value_dim = 8, .queries = 4}, 1);
    mean_weighted scorer;
    scorer.epsilon = 0;
    scorer.scope = norm_scope::per_token;
    const score_memory fast = score_layer(scorer, layer.inputs(), {});
    CHECK(fast.importance == fast.attention);
}

TEST_CASE("projected_norm_weighted: a scope without any norm weighs 0, not 0/0", "[score][odd]") {
    layer_data layer = small_layer();
    std::fill(layer.w.begin(), layer.w.end(), 0.0f);
    for (const norm_scope scope : {norm_scope::raw, norm_scope::per_head, norm_scope::per_token}) {
        mean_weighted scorer;
        scorer.scope = scope;
        const score_memory fast = score_layer(scorer, layer.inputs(), {});
        CHECK(fast.importance == std::vector<float>(80, 0.0f));
        CHECK(fast.attention[0] > 0.0f);
    }
}

TEST_CASE("projected_norm_weighted: a NaN or infinite value costs no other token its weight, in any scope",
          "[score][odd]") {
    constexpr float infinity = std::numeric_limits<float>::infinity();
    constexpr float nan = std::numeric_limits<float>::quiet_NaN();
    for (const norm_scope scope : {norm_scope::raw, norm_scope::per_head, norm_scope::per_token}) {
        mean_weighted scorer;
        scorer.scope = scope;
        layer_data layer = small_layer();
        // A zero value adds nothing to any sum: the others then score as they do among themselves.
        std::fill_n(layer.value(0, 5), 8, 0.0f);
        std::fill_n(layer.value(1, 7), 8, 0.0f);
        const std::vector<float> among_themselves = score_layer(scorer, layer.inputs(), {}).importance;
        layer.value(0, 5)[2] = nan;
        layer.value(1, 7)[2] = infinity;
        const std::vector<float> got = score_layer(scorer, layer.inputs(), {}).importance;
        for (std::size_t i = 0; i < 80; ++i) {
            CAPTURE(static_cast<int>(scope), i);
            if (i == 5) {
                CHECK(std::isnan(got[i]));
            } else if (i == 40 + 7) {
                CHECK(got[i] == infinity);
            } else {
                CHECK(got[i] == among_themselves[i]);
            }
        }
    }
}

TEST_CASE("projected_norm_weighted: where all values are NaN or infinite, so are the scores",
          "[score][odd]") {
    for (const norm_scope scope : {norm_scope::raw, norm_scope::per_head, norm_scope::per_token}) {
        mean_weighted scorer;
        scorer.scope = scope;
        layer_data layer = small_layer();
        for (float& x : layer.v) { x = std::numeric_limits<float>::infinity(); }
        std::fill(layer.w.begin(), layer.w.end(), 1.0f);
        const std::vector<float> infinite = score_layer(scorer, layer.inputs(), {}).importance;
        CHECK(infinite == std::vector<float>(80, std::numeric_limits<float>::infinity()));
        for (float& x : layer.v) { x = std::numeric_limits<float>::quiet_NaN(); }
        for (const float x : score_layer(scorer, layer.inputs(), {}).importance) { CHECK(std::isnan(x)); }
    }
}

TEST_CASE("projected_norm_weighted: a score that is not finite stays out of a relative epsilon",
          "[score][odd]") {
    const layer_data layer = small_layer();
    std::vector<float> given(80, 1.0f);
    given[3] = std::numeric_limits<float>::quiet_NaN();
    given[4] = std::numeric_limits<float>::infinity();
    const strided<const float, 2> view(given.data(), {2, 40});
    const projected_norm_weighted<given_scores<strided<const float, 2>>> relative{{view}, 0.5f, true};
    const projected_norm_weighted<given_scores<strided<const float, 2>>> absolute{{view}, 0.5f, false};
    const auto got = score_layer(relative, layer.inputs(), {}).importance;
    const auto expected = score_layer(absolute, layer.inputs(), {}).importance;
    for (std::size_t i = 0; i < 80; ++i) {
        if (i != 3) { CHECK(got[i] == expected[i]); }
    }
    CHECK(std::isnan(got[3]));
}

TEST_CASE("projected_norm_weighted: bad input is named", "[score][errors]") {
    const layer_data layer = small_layer();
    const eviction_request request{.budget = per_head(10)};
    CHECK(mean_weighted{}.validate(layer.inputs(), request).ok());
    for (const float epsilon :
         {-1.0f, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        mean_weighted scorer;
        scorer.epsilon = epsilon;
        CHECK(scorer.validate(layer.inputs(), request).code() == errc::invalid_parameter);
    }
    mean_weighted even;
    even.scorer.aggregator.kernel_tokens = 2;
    CHECK(even.validate(layer.inputs(), request).code() == errc::invalid_parameter);
    const view three(layer.w.data(), {3, 8, 24});
    CHECK(mean_weighted{}.validate(layer.inputs().with_output_projection(three), request).code() ==
          errc::heads_not_divisible);

    mean_weighted per_token;
    per_token.scope = norm_scope::per_token;
    for (const std::vector<index_t>& lengths : {std::vector<index_t>{40, 30}, std::vector<index_t>{30, 40}}) {
        const ragged_cache keys(layer.keys(), lengths);
        const ragged_cache values(layer.values(), lengths);
        const auto in = kvtrim::layer(keys.get(), values.get())
                            .with_queries(layer.queries())
                            .with_output_projection(layer.projection());
        CHECK(per_token.validate(in, request).code() == errc::rows_differ);
        CHECK(mean_weighted{}.validate(in, request).ok());
    }
    const ragged_cache keys(layer.keys(), {40, 40}), values(layer.values(), {40, 40});
    const auto equal_heads = kvtrim::layer(keys.get(), values.get())
                                 .with_queries(layer.queries())
                                 .with_output_projection(layer.projection());
    CHECK(per_token.validate(equal_heads, request).ok());
}

TEST_CASE("projected_norm_weighted: a workspace that is too small is refused with nothing written",
          "[score][errors]") {
    const layer_data layer = small_layer();
    const eviction_request request{};
    const mean_weighted scorer;
    serial_executor ex;
    for (const index_t bytes :
         {index_t{0}, index_t{200}, scorer.workspace_bytes(layer.inputs(), request) / 2}) {
        score_memory memory(layer.inputs(), {});
        std::vector<std::byte> few(static_cast<std::size_t>(bytes));
        workspace scratch(few);
        const status s = scorer.score(layer.inputs(), request, memory.get(), scratch, ex);
        CHECK(s.code() == errc::workspace_too_small);
        CHECK(s.needed() == scorer.workspace_bytes(layer.inputs(), request));
        CHECK(memory.is_untouched());
    }
}
