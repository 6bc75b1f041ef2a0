// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/plan/cache_lengths.hpp>

#include "support/checks.hpp"

using namespace kvtrim;
using namespace support;

TEST_CASE(
    "count_lengths: tokens and what is protected add up over heads and layers, and the longest head is any's",
    "[plan]") {
    const layer_data layer = random_layer({.kv_heads = 2, .group = 1, .tokens = 40}, 1);
    const protection protect{.sink_tokens = 4, .window_tokens = 3};
    const auto check = [&](const std::vector<index_t>& first, const std::vector<index_t>& second,
                           index_t longest) {
        const ragged_cache a(layer.keys(), first), b(layer.keys(), second);
        const std::vector layers{kvtrim::layer(a.get()), kvtrim::layer(b.get())};
        const cache_lengths all = count_lengths(std::span(layers), protect);
        CHECK(all.longest == longest);
        CHECK(all.tokens == first[0] + first[1] + second[0] + second[1]);
        CHECK(all.protected_tokens == 3 * 7 + 5); // of a head of 5 all are
    };
    check({5, 40}, {20, 30}, 40);
    check({20, 30}, {40, 5}, 40);
    check({20, 5}, {30, 39}, 39);
    const std::vector<decltype(kvtrim::layer(layer.keys()))> none;
    CHECK(count_lengths(std::span(none), protect).longest == 0);
}
