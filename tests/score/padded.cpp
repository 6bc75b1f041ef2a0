// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/score/padded.hpp>

#include <kvtrim/aggregate/mean_attention.hpp>
#include <kvtrim/score/key_norm_score.hpp>
#include <kvtrim/score/recency.hpp>
#include <kvtrim/score/window_attention.hpp>

#include "support/checks.hpp"

using namespace kvtrim;
using namespace support;

TEST_CASE("padded: the window gets the maximum over all heads plus 1, the rest its own scores",
          "[score][oracle]") {
    support::random r(51);
    std::vector<float> sinks;
    for (std::uint64_t seed = 0; seed < 20; ++seed) {
        layer_shape shape = random_shape(r);
        shape.tokens = std::min<index_t>(shape.tokens, 100);
        shape.queries = std::min(shape.queries, shape.tokens);
        const layer_data layer = random_layer(shape, 5000 + seed);
        eviction_request request = random_request(r, shape, sinks);
        request.protect = {};
        padded<window_attention<mean_attention>> scorer;
        scorer.window_tokens = r.one_of({index_t{0}, index_t{1}, shape.queries});
        REQUIRE(scorer.validate(layer.inputs(), request).ok());

        layer_oracle slow(layer.inputs(), request);
        slow.protect.suffix = static_cast<std::size_t>(scorer.window_tokens);
        oracle::matrix expected = slow.snapkv();
        double padding = -1e300;
        for (const auto& head : expected) {
            for (const double x : head) { padding = std::max(padding, x); }
        }
        if (padding == -1e300) { padding = 0; }
        for (auto& head : expected) { head.resize(static_cast<std::size_t>(shape.tokens), padding + 1); }
        CAPTURE(seed, shape.tokens, scorer.window_tokens);
        CHECK(difference(score_layer(scorer, layer.inputs(), request).importance_rows(), expected) == "");
    }
}

TEST_CASE("padded: a window as long as the cache is padded everywhere", "[score][odd]") {
    const layer_data layer = random_layer({.kv_heads = 2, .tokens = 10}, 1);
    padded<recency> scorer;
    scorer.window_tokens = 25;
    CHECK(score_layer(scorer, layer.inputs(), {}).importance == std::vector<float>(20, 1.0f));
}

TEST_CASE("padded: it refuses a request with protected tokens and what its scorer refuses",
          "[score][errors]") {
    const layer_data layer = random_layer({.queries = 4}, 1);
    const auto in = layer.inputs();
    padded<window_attention<mean_attention>> scorer;
    for (const protection& p : {protection{.sink_tokens = 1}, protection{.pinned_tokens = 1},
                                protection{.window_tokens = 1}, protection{.rollback_tokens = 1}}) {
        CHECK(scorer.validate(in, {.budget = per_head(9), .protect = p}).code() == errc::invalid_parameter);
    }
    scorer.window_tokens = -1;
    CHECK(scorer.validate(in, {.budget = per_head(9)}).code() == errc::invalid_parameter);
    scorer.window_tokens = 4;
    scorer.scorer.aggregator.kernel_tokens = 6;
    CHECK(scorer.validate(in, {.budget = per_head(9)}).code() == errc::invalid_parameter);
    scorer.scorer.aggregator.kernel_tokens = 5;
    const view few(layer.k.data(), {2, 3, 16});
    CHECK(scorer.validate(kvtrim::layer(few).with_queries(layer.queries()), {.budget = per_head(2)}).code() ==
          errc::window_exceeds_tokens);
}

TEST_CASE("padded: a workspace that is too small is refused with nothing written", "[score][errors]") {
    const layer_data layer = random_layer({}, 1);
    padded<key_norm_score> scorer;
    scorer.window_tokens = 4;
    const eviction_request request{};
    serial_executor ex;
    for (const index_t bytes : {index_t{0}, scorer.workspace_bytes(layer.inputs(), request) / 2}) {
        score_memory memory(layer.inputs(), {});
        std::vector<std::byte> few(static_cast<std::size_t>(bytes));
        workspace scratch(few);
        const status s = scorer.score(layer.inputs(), request, memory.get(), scratch, ex);
        CHECK(s.code() == errc::workspace_too_small);
        CHECK(s.needed() == scorer.workspace_bytes(layer.inputs(), request));
        CHECK(memory.is_untouched());
    }
}
