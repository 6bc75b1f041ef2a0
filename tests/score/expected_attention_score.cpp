// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/score/expected_attention_score.hpp>

#include "oracle/expected_attention.hpp"
#include "support/checks.hpp"
#include "support/rotated.hpp"

#include <cmath>

using namespace kvtrim;
using namespace support;

namespace {

// Statistics of a layer's queries, which stand for the whole prompt's before RoPE.
query_statistics statistics_of(const layer_data& layer, index_t skip) {
    query_statistics statistics(layer.shape.q_heads(), layer.shape.head_dim, skip);
    growing_workspace memory;
    workspace scratch = memory.of_bytes(statistics.workspace_bytes());
    REQUIRE(statistics.add(layer.queries(), scratch).ok());
    return statistics;
}

oracle::rotation to_oracle(const rope& r) {
    return {oracle::row(r.inverse_frequencies.begin(), r.inverse_frequencies.end()),
            r.pairing == rope_pairing::interleaved, static_cast<double>(r.attention_factor)};
}

layer_data long_window_layer() {
    return random_layer({.kv_heads = 2, .group = 2, .tokens = 40, .head_dim = 8, .queries = 30}, 1);
}

} // namespace

TEST_CASE("expected_attention: scores equal the formulas for random shapes, ropes and requests",
          "[score][oracle]") {
    support::random r(521);
    std::vector<float> sinks;
    for (std::uint64_t seed = 0; seed < 60; ++seed) {
        layer_shape shape = random_shape(r);
        shape.tokens = std::min<index_t>(shape.tokens, 280);
        shape.head_dim = std::min<index_t>(shape.head_dim, 64);
        shape.queries = std::min(shape.queries, shape.tokens);
        const layer_data layer = random_layer(shape, 5200 + seed);
        const eviction_request request = random_request(r, shape, sinks);
        query_statistics statistics = statistics_of(layer, r.between(0, 3));
        statistics.positions = r.one_of({shape.tokens, shape.queries, index_t{5000}});
        const std::vector<float> table = random_frequencies(r, shape.head_dim);
        const rope model = random_rope(r, table);
        const expected_attention_score scorer{&statistics, model, r.one_of({1, 7, 64}), r.chance(0.6)};

        const layer_oracle slow(layer.inputs(), request);
        oracle::matrix expected;
        for (std::size_t g = 0; g < slow.heads(); ++g) {
            std::vector<oracle::moments> moments;
            oracle::row sink_logits;
            for (std::size_t h = g * slow.group; h < (g + 1) * slow.group; ++h) {
                moments.push_back(oracle::query_moments(slow.queries[h],
                                                        static_cast<std::size_t>(statistics.skip_positions),
                                                        static_cast<std::size_t>(shape.head_dim)));
                if (!sinks.empty()) { sink_logits.push_back(static_cast<double>(sinks[h])); }
            }
            const oracle::expectation e{static_cast<std::size_t>(statistics.positions),
                                        static_cast<std::size_t>(scorer.future_positions),
                                        scorer.use_covariance,
                                        static_cast<std::size_t>(request.protect.sink_tokens)};
            expected.push_back(oracle::at(oracle::expected_attention(moments, slow.keys[g], to_oracle(model),
                                                                     e, slow.setup, sink_logits),
                                          slow.candidates(g)));
        }
        CAPTURE(seed, shape.tokens, shape.head_dim, shape.queries, scorer.future_positions,
                scorer.use_covariance, model.pairs(), statistics.positions);
        score_memory got = score_layer(scorer, kvtrim::layer(layer.keys()), request);
        CHECK(difference(got.importance_rows(), expected, 2e-4) == "");
    }
}

TEST_CASE("expected_attention: without rotation and spread it is the attention of the mean query",
          "[score]") {
    layer_data layer = long_window_layer();
    layer.shape.queries = 1; // the first query of each head is its mean
    std::vector<float> first;
    for (index_t h = 0; h < 4; ++h) {
        const float* q = layer.q.data() + h * 30 * 8;
        first.insert(first.end(), q, q + 8);
    }
    layer.q = first;
    const query_statistics statistics = statistics_of(layer, 0);
    score_memory got = score_layer(expected_attention_score{&statistics, {}, 512}, layer.inputs(), {});
    const layer_oracle slow(layer.inputs(), {});
    CHECK(difference(got.importance_rows(), slow.snapkv({.pool = oracle::pool_kind::none})) == "");
}

TEST_CASE("expected_attention: frequency 0 turns nothing, and a whole turn per position neither", "[score]") {
    const layer_data layer = long_window_layer();
    const query_statistics statistics = statistics_of(layer, 0);
    const std::vector<float> none(4, 0.0f);
    const auto still =
        score_layer(expected_attention_score{&statistics, {none}}, layer.inputs(), {}).importance;
    const auto without =
        score_layer(expected_attention_score{&statistics, {}}, layer.inputs(), {}).importance;
    CHECK(still == without);
    const std::vector<float> whole(4, 6.2831853f); // 2 pi as a float: 1.7e-7 off per position
    const auto turned =
        score_layer(expected_attention_score{&statistics, {whole}}, layer.inputs(), {}).importance;
    CHECK(difference(turned, oracle::row(without.begin(), without.end()), 1e-3) == "");
}

TEST_CASE("expected_attention: a NaN key scores 0 and costs no other token its score", "[score][odd]") {
    layer_data layer = long_window_layer();
    const query_statistics statistics = statistics_of(layer, 4);
    const std::vector<float> table = rope_frequencies(4);
    const expected_attention_score scorer{&statistics, {table}};
    layer.key(0, 7)[3] = std::numeric_limits<float>::quiet_NaN();
    const auto got = score_layer(scorer, layer.inputs(), {}).importance;
    CHECK(got[7] == 0.0f);
    double sum = 0;
    for (std::size_t t = 0; t < 40; ++t) {
        CHECK(std::isfinite(got[t]));
        sum += static_cast<double>(got[t]);
    }
    CHECK(sum == Approx(1.0));
}

TEST_CASE("expected_attention: statistics without a query score all tokens alike", "[score][odd]") {
    const layer_data layer = long_window_layer();
    const query_statistics none(4, 8);
    const auto got = score_layer(expected_attention_score{&none, {}}, layer.inputs(), {}).importance;
    CHECK(got == std::vector<float>(80, got[0]));
    CHECK(got[0] == Approx(1.0f / 40));
}

TEST_CASE("expected_attention: bad input is named", "[score][errors]") {
    const layer_data layer = long_window_layer();
    const query_statistics statistics = statistics_of(layer, 4);
    const expected_attention_score good{&statistics};
    CHECK(good.validate(layer.inputs(), {}).ok());
    expected_attention_score bad = good;
    bad.future_positions = 0;
    CHECK(bad.validate(layer.inputs(), {}).code() == errc::invalid_parameter);
    bad = good;
    bad.rope.attention_factor = -1;
    CHECK(bad.validate(layer.inputs(), {}).code() == errc::invalid_parameter);
    CHECK(good.validate(layer.inputs(), {.budget = {}, .attention = {.scale = -1}}).code() ==
          errc::invalid_parameter);
    const query_statistics three(3, 8);
    CHECK(expected_attention_score{&three}.validate(layer.inputs(), {}).code() == errc::heads_not_divisible);
    const auto no_heads = kvtrim::layer(view(layer.k.data(), {0, 40, 8}));
    CHECK(good.validate(no_heads, {}).ok());
}

TEST_CASE("expected_attention: missing or foreign statistics are refused", "[score][errors]") {
    const layer_data layer = long_window_layer();
    score_memory memory(layer.inputs(), {});
    const auto code = [&](const expected_attention_score& scorer) {
        const status s = scorer.validate(layer.inputs(), {});
        CHECK(score_directly(scorer, layer.inputs(), {}, memory.get()) == s);
        CHECK(scorer.workspace_bytes(layer.inputs(), {}) == 0);
        return s.code();
    };
    CHECK(code({}) == errc::invalid_parameter);
    const query_statistics narrow(4, 6);
    CHECK(code({&narrow}) == errc::invalid_parameter);
    const query_statistics statistics(4, 8);
    const std::vector<float> five(5, 1.0f);
    CHECK(code({&statistics, {five}}) == errc::invalid_parameter);
    CHECK(memory.is_untouched());
}

TEST_CASE("expected_attention: a workspace that is too small is refused with nothing written",
          "[score][errors]") {
    const layer_data layer = long_window_layer();
    const query_statistics statistics = statistics_of(layer, 4);
    const expected_attention_score scorer{&statistics};
    score_memory memory(layer.inputs(), {});
    std::vector<std::byte> few(static_cast<std::size_t>(scorer.workspace_bytes(layer.inputs(), {}) / 2));
    workspace scratch(few);
    serial_executor ex;
    CHECK(scorer.score(layer.inputs(), {}, memory.get(), scratch, ex).code() == errc::workspace_too_small);
    CHECK(memory.is_untouched());
}
