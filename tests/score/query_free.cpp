// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/score/query_free.hpp>

#include <kvtrim/allocate/uniform.hpp>
#include <kvtrim/rerank/by_importance.hpp>

#include "support/checks.hpp"

#include <set>

using namespace kvtrim;
using namespace support;

namespace {

constexpr eviction_request middle{.budget = {}, .protect = {.sink_tokens = 3, .window_tokens = 5}};

} // namespace

TEST_CASE("recency: a later token scores higher, in heads of any length", "[score]") {
    const layer_data layer = random_layer({.kv_heads = 2, .tokens = 50}, 1);
    const ragged_cache keys(layer.keys(), {50, 9});
    score_memory scores = score_layer(recency{}, kvtrim::layer(keys.get()), middle);
    CHECK(scores.offsets == std::vector<index_t>{0, 42, 43});
    for (std::size_t c = 1; c < 42; ++c) { CHECK(scores.importance[c] > scores.importance[c - 1]); }
}

TEST_CASE("recency: the newest tokens stay apart in a cache longer than 2^24", "[score][odd]") {
    struct long_cache {
        [[nodiscard]] index_t extent(std::size_t r) const {
            return r == 0 ? 1 : r == 1 ? index_t{1} << 25 : 1;
        }
        void load_rows(index_t, index_t, index_t, float*) const {}
    };
    const eviction_request all_but_ten{.budget = {}, .protect = {.sink_tokens = (index_t{1} << 25) - 10}};
    const score_memory scores = score_layer(recency{}, kvtrim::layer(long_cache{}), all_but_ten);
    CHECK(std::set<float>(scores.importance.begin(), scores.importance.end()).size() == 10);
}

TEST_CASE("random_score: seeded, at least 0 and below 1, spread evenly, different for heads and seeds",
          "[score]") {
    const layer_data layer = random_layer({.kv_heads = 2, .tokens = 4000, .head_dim = 1}, 1);
    const auto keys = kvtrim::layer(layer.keys());
    const auto scores = score_layer(random_score{7}, keys, middle).importance;
    CHECK(scores == score_layer(random_score{7}, keys, middle).importance);
    CHECK(scores != score_layer(random_score{8}, keys, middle).importance);
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
    const auto some = score_layer(random_score{7}, layer.inputs(), middle).importance;
    CHECK(std::equal(some.begin(), some.begin() + 42, all.begin() + 3));
    CHECK(std::equal(some.begin() + 42, some.end(), all.begin() + 53));
}

TEST_CASE("given_scores: the engine's own scores are taken as they are", "[score]") {
    const layer_data layer = random_layer({.kv_heads = 2, .tokens = 50}, 1);
    std::vector<bf16> stored;
    for (int i = 0; i < 2 * 60; ++i) {
        stored.push_back(element_traits<bf16>::from_float(static_cast<float>(i)));
    }
    const strided<const bf16, 2> wider(stored.data(), {2, 60});
    const auto scores = score_layer(given_scores{wider}, layer.inputs(), middle).importance;
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
    const auto scores = score_layer(given_scores{by_token}, layer.inputs(), middle).importance;
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
    score_memory memory(layer.inputs(), middle.protect);
    for (const auto& scores : {one_head, too_short, missing}) {
        CHECK(score_directly(given_scores{scores}, layer.inputs(), middle, memory.get()).code() ==
              errc::invalid_parameter);
        require_refusal(eviction_policy{given_scores{scores}, uniform{}, by_importance{}}, layer.inputs(),
                        {.budget = per_head(20)}, errc::invalid_parameter, scores.extent(0) == 0 ? 0 : 50);
    }
    CHECK(memory.is_untouched());
}
