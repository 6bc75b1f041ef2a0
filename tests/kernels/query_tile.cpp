// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/kernels/query_tile.hpp>

#include <kvtrim/kernels/with_query_tile.hpp>

#include "support/cpu_levels.hpp"
#include "support/query_tiles.hpp"

using namespace kvtrim;
using namespace support;

namespace {

// Calls fn<Tile>() for the tile of floats of each level of this machine. That of bf16 is tested in query_tile_amx.cpp.
template <class Fn>
void for_each_float_tile(Fn fn) {
    at_each_cpu_level([&] { kernels::with_float_query_tile(fn); });
}

} // namespace

TEST_CASE("query_tile: attention of random shapes equals the oracle, tiles in any order", "[kernels]") {
    for_each_float_tile([]<class Tile>() { query_tile_checks<Tile>::random_shapes(81, 60); });
}

TEST_CASE("query_tile: a query sees itself and what came before it, within its window", "[kernels]") {
    for_each_float_tile([]<class Tile>() { query_tile_checks<Tile>::masks(); });
}

TEST_CASE("query_tile: a query that sees nothing gives 0 and -infinity, or its sink", "[kernels]") {
    for_each_float_tile([]<class Tile>() { query_tile_checks<Tile>::nothing_visible(); });
}

TEST_CASE("query_tile: keys may become visible late", "[kernels]") {
    for_each_float_tile([]<class Tile>() { query_tile_checks<Tile>::late_keys(); });
}

TEST_CASE("query_tile: very large and very negative logits", "[kernels]") {
    for_each_float_tile([]<class Tile>() { query_tile_checks<Tile>::large_logits(); });
}

TEST_CASE("query_tile: a NaN key counts for nothing and an infinite one takes all", "[kernels]") {
    for_each_float_tile([]<class Tile>() { query_tile_checks<Tile>::broken_keys(); });
}

TEST_CASE("query_tile: a NaN query sees nothing and disturbs no other", "[kernels]") {
    for_each_float_tile([]<class Tile>() { query_tile_checks<Tile>::broken_queries(); });
}

TEST_CASE("query_tile: a value of NaN or infinity reaches only those that see it, in its channel",
          "[kernels]") {
    for_each_float_tile([]<class Tile>() { query_tile_checks<Tile>::odd_values(); });
}

TEST_CASE("query_tile: many rescalings do not add up to an error", "[kernels]") {
    for_each_float_tile([]<class Tile>() { query_tile_checks<Tile>::rising_logits(); });
}

TEST_CASE("query_tile: a soft cap beyond all logits changes nothing", "[kernels]") {
    for_each_float_tile([]<class Tile>() { query_tile_checks<Tile>::large_soft_caps(); });
}

TEST_CASE("query_tile: every level agrees with the portable one", "[kernels]") {
    for_each_float_tile([]<class Tile>() {
        using plain_tile = kernels::KVTRIM_BASELINE::query_tile;
        support::random r(82);
        for (int n = 0; n < 30; ++n) {
            const tile_case c = random_tile_case(r, std::min(Tile::max_queries, plain_tile::max_queries));
            support::random same(static_cast<std::uint64_t>(n)), order(static_cast<std::uint64_t>(n));
            const tile_result fast = attend_in_tiles<Tile>(c, same);
            const tile_result plain = attend_in_tiles<plain_tile>(c, order);
            CHECK(difference(fast.out, oracle::row(plain.out.begin(), plain.out.end()), 2e-5, 2e-5) == "");
        }
    });
}
