// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/score/given_scores.hpp>

#include <kvtrim/allocate/uniform.hpp>
#include <kvtrim/policy/eviction_policy.hpp>
#include <kvtrim/rerank/by_importance.hpp>

#include "support/checks.hpp"

using namespace kvtrim;
using namespace support;

namespace {

constexpr eviction_request middle_of_given{.budget = {}, .protect = {.sink_tokens = 3, .window_tokens = 5}};

} // namespace

TEST_CASE("given_scores: the engine's own scores are taken as they are", "[score]") {
    const layer_data layer = random_layer({.kv_heads = 2, .tokens = 50}, 1);
    std::vector<bf16> stored;
    for (int i = 0; i < 2 * 60; ++i) {
        stored.push_back(element_traits<bf16>::from_float(static_cast<float>(i)));
    }
    const strided<const bf16, 2> wider(stored.data(), {2, 60});
    const auto scores = score_layer(given_scores{wider}, layer.inputs(), middle_of_given).importance;
    for (std::size_t c = 0; c < 42; ++c) {
        CHECK(scores[c] == static_cast<float>(3 + c));
        CHECK(scores[42 + c] == static_cast<float>(63 + c));
    }
}

TEST_CASE("given_scores: scores are read by their strides, token by token where heads lie side by side",
          "[score]") {
    const layer_data layer = random_layer({.kv_heads = 2, .tokens = 50}, 1);
    std::vector<float> stored;
    for (int i = 0; i < 2 * 50; ++i) { stored.push_back(static_cast<float>(i)); }
    const strided<const float, 2> by_token(stored.data(), {2, 50}, {1, 2});
    const auto scores = score_layer(given_scores{by_token}, layer.inputs(), middle_of_given).importance;
    for (std::size_t c = 0; c < 42; ++c) {
        CHECK(scores[c] == static_cast<float>(2 * (3 + c)));
        CHECK(scores[42 + c] == static_cast<float>(2 * (3 + c) + 1));
    }
}

TEST_CASE("given_scores: scores of another shape are refused, with nothing written", "[score][errors]") {
    const layer_data layer = random_layer({.kv_heads = 2, .tokens = 50}, 1);
    const std::vector<float> floats(200);
    const strided<const float, 2> one_head(floats.data(), {1, 50});
    const strided<const float, 2> too_short(floats.data(), {2, 49});
    const strided<const float, 2> missing(nullptr, {2, 50});
    score_memory memory(layer.inputs(), middle_of_given.protect);
    for (const auto& scores : {one_head, too_short, missing}) {
        CHECK(score_directly(given_scores{scores}, layer.inputs(), middle_of_given, memory.get()).code() ==
              errc::invalid_parameter);
        require_refusal(eviction_policy{given_scores{scores}, uniform{}, by_importance{}}, layer.inputs(),
                        {.budget = per_head(20)}, errc::invalid_parameter, scores.extent(0) == 0 ? 0 : 50);
    }
    CHECK(memory.is_untouched());
}
