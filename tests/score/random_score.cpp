// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/score/random_score.hpp>

#include "support/checks.hpp"

using namespace kvtrim;
using namespace support;

namespace {

constexpr eviction_request middle_of_random{.budget = {}, .protect = {.sink_tokens = 3, .window_tokens = 5}};

} // namespace

TEST_CASE("random_score: seeded, at least 0 and below 1, spread evenly, different for heads and seeds",
          "[score]") {
    const layer_data layer = random_layer({.kv_heads = 2, .tokens = 4000, .head_dim = 1}, 1);
    const auto keys = kvtrim::layer(layer.keys());
    const auto scores = score_layer(random_score{7}, keys, middle_of_random).importance;
    CHECK(scores == score_layer(random_score{7}, keys, middle_of_random).importance);
    CHECK(scores != score_layer(random_score{8}, keys, middle_of_random).importance);
    CHECK(!std::equal(scores.begin(), scores.begin() + 3992, scores.begin() + 3992));
    double total = 0;
    for (const float x : scores) {
        CHECK((x >= 0.0f && x < 1.0f));
        total += static_cast<double>(x);
    }
    CHECK(total / static_cast<double>(scores.size()) == Approx(0.5).margin(0.02));
}

TEST_CASE("random_score: a token's score does not depend on what is protected", "[score]") {
    const layer_data layer = random_layer({.kv_heads = 2, .tokens = 50}, 1);
    const auto all = score_layer(random_score{7}, layer.inputs(), {}).importance;
    const auto some = score_layer(random_score{7}, layer.inputs(), middle_of_random).importance;
    CHECK(std::equal(some.begin(), some.begin() + 42, all.begin() + 3));
    CHECK(std::equal(some.begin() + 42, some.end(), all.begin() + 53));
}
