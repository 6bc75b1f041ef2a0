// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/kernels/query_tile.hpp>

#include "support/cpu_levels.hpp"
#include "support/query_tiles.hpp"

using namespace kvtrim;
using namespace support;

namespace {

using checks = query_tile_checks<kernels::query_tile>;

} // namespace

TEST_CASE("query_tile: attention of random shapes equals the oracle, tiles in any order", "[kernels]") {
    checks::random_shapes(81, 60);
}

TEST_CASE("query_tile: a query sees itself and what came before it, within its window", "[kernels]") {
    checks::masks();
}

TEST_CASE("query_tile: a query that sees nothing gives 0 and -infinity, or its sink", "[kernels]") {
    checks::nothing_visible();
}

TEST_CASE("query_tile: keys may become visible late", "[kernels]") {
    checks::late_keys();
}

TEST_CASE("query_tile: very large and very negative logits", "[kernels]") {
    checks::large_logits();
}

TEST_CASE("query_tile: a NaN key counts for nothing and an infinite one takes all", "[kernels]") {
    checks::broken_keys();
}

TEST_CASE("query_tile: a NaN query sees nothing and disturbs no other", "[kernels]") {
    checks::broken_queries();
}

TEST_CASE("query_tile: a value of NaN or infinity reaches only those that see it, in its channel",
          "[kernels]") {
    checks::odd_values();
}

TEST_CASE("query_tile: many rescalings do not add up to an error", "[kernels]") {
    checks::rising_logits();
}

TEST_CASE("query_tile: a soft cap beyond all logits changes nothing", "[kernels]") {
    checks::large_soft_caps();
}
