// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/cache/rope.hpp>

#include "support/catch.hpp"

#include <limits>
#include <vector>

using namespace kvtrim;

TEST_CASE("rope: both pairings reach every rotary channel once and no other", "[core]") {
    const std::vector<float> frequencies{1.0f, 0.5f, 0.25f};
    for (const rope_pairing pairing : {rope_pairing::half_split, rope_pairing::interleaved}) {
        const rope r{.inverse_frequencies = frequencies, .pairing = pairing};
        CHECK(r.rotary_dim() == 6);
        std::vector<int> seen(6, 0);
        for (index_t i = 0; i < r.pairs(); ++i) {
            ++seen[static_cast<std::size_t>(r.first_channel(i))];
            ++seen[static_cast<std::size_t>(r.second_channel(i))];
        }
        CHECK(seen == std::vector<int>(6, 1));
    }
    CHECK(rope{.inverse_frequencies = frequencies}.second_channel(1) == 4);
    CHECK(rope{.inverse_frequencies = frequencies, .pairing = rope_pairing::interleaved}.second_channel(1) ==
          3);
}

TEST_CASE("rope: a table or factor that is not finite is bad input, an empty table is none",
          "[core][errors]") {
    CHECK(valid_rope(rope{}).ok());
    for (const float odd :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        const std::vector<float> frequencies{1.0f, odd};
        CHECK(valid_rope({.inverse_frequencies = frequencies}).code() == errc::invalid_parameter);
        CHECK(valid_rope({.attention_factor = odd}).code() == errc::invalid_parameter);
    }
    CHECK(valid_rope({.attention_factor = 0.0f}).code() == errc::invalid_parameter);
    CHECK(valid_rope({.attention_factor = -1.0f}).code() == errc::invalid_parameter);
}
