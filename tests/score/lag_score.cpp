// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/score/lag_score.hpp>

#include "oracle/lag.hpp"
#include "support/checks.hpp"

#include <cmath>

using namespace kvtrim;
using namespace support;

namespace {

layer_data layer_without_queries(index_t tokens = 40) {
    return random_layer({.kv_heads = 2, .group = 1, .tokens = tokens, .head_dim = 8, .value_dim = 6}, 1);
}

std::vector<float> scores_of(const lag_score& scorer, const layer_data& layer,
                             const protection& protect = {}) {
    return score_layer(scorer, kvtrim::layer(layer.keys(), layer.values()),
                       {.budget = {}, .protect = protect})
        .importance;
}

} // namespace

TEST_CASE("lag_score: scores equal the formulas for random shapes, both ways of scoring", "[score][oracle]") {
    support::random r(531);
    std::vector<float> sinks;
    for (std::uint64_t seed = 0; seed < 80; ++seed) {
        const layer_data layer = random_layer(random_shape(r), 5300 + seed);
        const eviction_request request = random_request(r, layer.shape, sinks);
        const lag_score scorer{r.one_of({1, 2, 7, 16, 32, 128}), r.chance(0.5)};
        const layer_oracle slow(layer.inputs(), request);
        oracle::matrix expected;
        for (std::size_t g = 0; g < slow.heads(); ++g) {
            const std::size_t tokens = slow.keys[g].size();
            const std::size_t begin = std::min(slow.protect.prefix, tokens);
            const std::size_t end = std::max(begin, tokens - slow.setup.rollback_tokens);
            oracle::row scores =
                oracle::lag_scores(slow.keys[g], slow.values[g], begin, end,
                                   static_cast<std::size_t>(scorer.lag), scorer.cross_scoring);
            scores.resize(slow.candidates(g).size());
            expected.push_back(scores);
        }
        CAPTURE(seed, layer.shape.tokens, layer.shape.head_dim, scorer.lag, scorer.cross_scoring);
        score_memory got = score_layer(scorer, layer.inputs(), request);
        CHECK(difference(got.importance_rows(), expected) == "");
    }
}

TEST_CASE("lag_score: the last whole partition and the rest outrank every scored token, the newest most",
          "[score]") {
    const std::vector<float> s = scores_of({.lag = 8}, layer_without_queries(29));
    for (std::size_t t = 0; t < 16; ++t) { CHECK(s[t] < 1.0f); }
    for (std::size_t t = 16; t < 29; ++t) { CHECK(s[t] > (t == 16 ? 1.0f : s[t - 1])); }
    // Fewer tokens than two partitions: nothing to compare with, the newest first.
    const std::vector<float> few = scores_of({.lag = 8}, layer_without_queries(15));
    for (std::size_t t = 0; t < 15; ++t) { CHECK(few[t] > (t == 0 ? 1.0f : few[t - 1])); }
}

TEST_CASE("lag_score: partitions begin behind the protected prefix and do not depend on the window",
          "[score]") {
    const layer_data layer = layer_without_queries(40);
    const std::vector<float> open = scores_of({.lag = 8}, layer, {.sink_tokens = 3});
    const std::vector<float> windowed = scores_of({.lag = 8}, layer, {.sink_tokens = 3, .window_tokens = 10});
    for (std::size_t c = 0; c < 27; ++c) { CHECK(windowed[c] == open[c]); }
    layer_data shifted = layer_without_queries(37); // the same tokens without the sinks
    for (index_t g = 0; g < 2; ++g) {
        std::copy_n(layer.k.data() + (g * 40 + 3) * 8, 37 * 8, shifted.key(g, 0));
        std::copy_n(layer.v.data() + (g * 40 + 3) * 6, 37 * 6, shifted.value(g, 0));
    }
    CHECK(scores_of({.lag = 8}, shifted) == open);
}

TEST_CASE("lag_score: ranks fill each partition, equal tokens rank by index with the lower one higher",
          "[score][odd]") {
    layer_data layer = layer_without_queries(40);
    std::fill(layer.k.begin(), layer.k.end(), 1.0f);
    std::fill(layer.v.begin(), layer.v.end(), 2.0f);
    const std::vector<float> s = scores_of({.lag = 8}, layer);
    for (std::size_t t = 0; t < 32; ++t) { CHECK(s[t] == static_cast<float>(7 - t % 8) / 8); }
    for (const float x : scores_of({.lag = 8, .cross_scoring = true}, layer_without_queries(40))) {
        CHECK(x > 0.0f);
    }
}

TEST_CASE("lag_score: a channel that is constant in the next partition counts nothing, not 0/0",
          "[score][odd]") {
    layer_data layer = layer_without_queries(24);
    for (index_t g = 0; g < 2; ++g) {
        for (index_t t = 0; t < 24; ++t) { layer.key(g, t)[5] = 3.0f; }
    }
    for (const float x : scores_of({.lag = 8, .cross_scoring = true}, layer)) { CHECK(std::isfinite(x)); }
}

TEST_CASE("lag_score: a NaN or infinite element costs its own token the score and no other", "[score][odd]") {
    constexpr float infinity = std::numeric_limits<float>::infinity();
    for (const float odd : {std::numeric_limits<float>::quiet_NaN(), infinity, -infinity}) {
        layer_data layer = layer_without_queries(40);
        layer.key(0, 3)[2] = odd;    // scored against a clean partition
        layer.value(1, 12)[1] = odd; // is also in the reference of partition 0
        for (const bool cross : {false, true}) {
            const std::vector<float> s = scores_of({.lag = 8, .cross_scoring = cross}, layer);
            for (std::size_t i = 0; i < 80; ++i) {
                CAPTURE(i, odd, cross);
                CHECK(std::isnan(s[i]) == (i == 3 || i == 40 + 12));
            }
        }
    }
}

TEST_CASE("lag_score: bad input is named, a small workspace refused with nothing written",
          "[score][errors]") {
    const layer_data layer = layer_without_queries();
    CHECK(lag_score{.lag = 0}.validate(layer.inputs(), {}).code() == errc::invalid_parameter);
    CHECK(lag_score{.lag = -5}.validate(layer.inputs(), {}).code() == errc::invalid_parameter);
    const lag_score scorer{.lag = 8};
    score_memory memory(layer.inputs(), {});
    std::vector<std::byte> few(static_cast<std::size_t>(scorer.workspace_bytes(layer.inputs(), {}) / 2));
    workspace scratch(few);
    serial_executor ex;
    CHECK(scorer.score(layer.inputs(), {}, memory.get(), scratch, ex).code() == errc::workspace_too_small);
    CHECK(memory.is_untouched());
    // A lag beyond every prompt asks for no more memory than the prompt.
    CHECK(lag_score{.lag = index_t{1} << 60}.workspace_bytes(layer.inputs(), {}) < 100000);
}
