// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/score/replayed.hpp>

#include <kvtrim/policy/replay.hpp>

#include "support/checks.hpp"

#include <cmath>

using namespace kvtrim;
using namespace support;

TEST_CASE("replayed: candidates get the state's scores, own sums divided by how often a row was looked at",
          "[score]") {
    const layer_data layer = random_layer({.kv_heads = 2, .group = 2, .tokens = 90, .queries = 90}, 7);
    const eviction_request request{.budget = {}, .protect = {.sink_tokens = 3, .window_tokens = 9}};
    growing_workspace memory;
    for (const token_loss loss : {token_loss::output_square_sum, token_loss::output_maximum}) {
        replay_scores scores(2, 90, loss);
        REQUIRE(scores.add_own(layer.inputs(), {}, 10, memory).ok());
        score_memory plain = score_layer(replayed{}, scores, request);
        score_memory own = score_layer(replayed{10}, scores, request);
        for (index_t g = 0; g < 2; ++g) {
            for (index_t t = 3; t < 81; ++t) {
                const auto c = static_cast<std::size_t>(t - 3);
                CHECK(plain.importance_rows().row(g)[c] == scores.score(g, t));
                const float observers = loss == token_loss::output_maximum
                                            ? 1.0f
                                            : static_cast<float>(std::max<index_t>(1, 80 - t));
                CHECK(own.importance_rows().row(g)[c] == Approx(scores.score(g, t) / std::sqrt(observers)));
            }
        }
    }
}

TEST_CASE("replayed: a table of another cache is refused with nothing written", "[score][errors]") {
    const replay_scores scores(2, 50);
    score_memory other(oracle::matrix{oracle::row(50, 0.0), oracle::row(49, 0.0)});
    const std::vector<float> before = other.importance;
    CHECK(!score_directly(replayed{}, scores, {}, other.get()).ok());
    CHECK(other.importance == before);
}

TEST_CASE("dropkv: a layer's heads compete by what their outputs lose, as all layers' do", "[policy]") {
    const layer_data layer = random_layer({.kv_heads = 2, .group = 2, .tokens = 70, .queries = 8}, 8);
    const eviction_request request{.budget = per_head(20), .protect = {.window_tokens = 8}};
    growing_workspace memory;
    keep_plan one;
    REQUIRE(dropkv().plan(layer.inputs(), request, one, memory).ok());
    CHECK(one.total_tokens() == 40);
    const std::vector<inputs> layers{layer.inputs(), layer.inputs()};
    std::vector<keep_plan> plans(2);
    REQUIRE(layer_dropkv().plan(std::span(layers), request, std::span(plans), memory).ok());
    CHECK(kept_sets(plans[0]) == kept_sets(one));
    CHECK(kept_sets(plans[1]) == kept_sets(one));
}

TEST_CASE("profiled, layer_afar: one table deals out, or all rows compete, and scores decide inside each row",
          "[policy]") {
    std::vector<replay_scores> layers;
    growing_workspace memory;
    for (std::uint64_t l = 0; l < 2; ++l) {
        const layer_data layer =
            random_layer({.kv_heads = 2, .group = 2, .tokens = 90, .queries = 90}, 20 + l);
        layers.emplace_back(2, 90, token_loss::output_square_sum);
        REQUIRE(layers.back().add_own(layer.inputs(), {}, 10, memory).ok());
    }
    score_memory known(oracle::matrix{oracle::row(90, 9.0), oracle::row(90, 1.0), oracle::row(90, 1.0),
                                      oracle::row(90, 9.0)});
    row_profile table;
    REQUIRE(table.add(known.importance_rows()).ok());
    const eviction_request request{.budget = per_head(30), .protect = {.window_tokens = 10}};
    std::vector<keep_plan> plans(2);
    REQUIRE(profiled(table.budgets(), 10)
                .plan(std::span<const replay_scores>(layers), request, std::span(plans), memory)
                .ok());
    CHECK(plans[0].kept_tokens(0) == 50);
    CHECK(plans[0].kept_tokens(1) == 10);
    CHECK(plans[1].kept_tokens(0) == 10);
    CHECK(plans[1].kept_tokens(1) == 50);
    REQUIRE(
        layer_afar(10).plan(std::span<const replay_scores>(layers), request, std::span(plans), memory).ok());
    CHECK(plans[0].total_tokens() + plans[1].total_tokens() == 120);
}
