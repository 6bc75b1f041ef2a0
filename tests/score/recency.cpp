// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/score/recency.hpp>

#include "support/checks.hpp"

#include <set>

using namespace kvtrim;
using namespace support;

namespace {

constexpr eviction_request middle_of_recency{.budget = {}, .protect = {.sink_tokens = 3, .window_tokens = 5}};

} // namespace

TEST_CASE("recency: a later token scores higher, in heads of any length", "[score]") {
    const layer_data layer = random_layer({.kv_heads = 2, .tokens = 50}, 1);
    const ragged_cache keys(layer.keys(), {50, 9});
    score_memory scores = score_layer(recency{}, kvtrim::layer(keys.get()), middle_of_recency);
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
