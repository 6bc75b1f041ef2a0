// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/kernels/query_tile_avx2.hpp>

#include "support/cpu_levels.hpp"
#include "support/query_tiles.hpp"

using namespace kvtrim;
using namespace support;

#if KVTRIM_HAS_X86

namespace {

// Printed, so that a log shows what was not tested.
bool runs_here() {
    if (best_cpu_level() >= cpu_level::avx2) { return true; }
    WARN("no AVX2 on this machine: not tested");
    return false;
}

} // namespace

using checks = query_tile_checks<kernels::query_tile_avx2>;

TEST_CASE("query_tile_avx2: attention of random shapes equals the oracle, tiles in any order", "[kernels]") {
    if (!runs_here()) { return; }
    checks::random_shapes(81, 60);
}

TEST_CASE("query_tile_avx2: a query sees itself and what came before it, within its window", "[kernels]") {
    if (!runs_here()) { return; }
    checks::masks();
}

TEST_CASE("query_tile_avx2: a query that sees nothing gives 0 and -infinity, or its sink", "[kernels]") {
    if (!runs_here()) { return; }
    checks::nothing_visible();
}

TEST_CASE("query_tile_avx2: keys may become visible late", "[kernels]") {
    if (!runs_here()) { return; }
    checks::late_keys();
}

TEST_CASE("query_tile_avx2: very large and very negative logits", "[kernels]") {
    if (!runs_here()) { return; }
    checks::large_logits();
}

TEST_CASE("query_tile_avx2: a NaN key counts for nothing and an infinite one takes all", "[kernels]") {
    if (!runs_here()) { return; }
    checks::broken_keys();
}

TEST_CASE("query_tile_avx2: a NaN query sees nothing and disturbs no other", "[kernels]") {
    if (!runs_here()) { return; }
    checks::broken_queries();
}

TEST_CASE("query_tile_avx2: a value of NaN or infinity reaches only those that see it, in its channel",
          "[kernels]") {
    if (!runs_here()) { return; }
    checks::odd_values();
}

TEST_CASE("query_tile_avx2: many rescalings do not add up to an error", "[kernels]") {
    if (!runs_here()) { return; }
    checks::rising_logits();
}

TEST_CASE("query_tile_avx2: a soft cap beyond all logits changes nothing", "[kernels]") {
    if (!runs_here()) { return; }
    checks::large_soft_caps();
}

TEST_CASE("query_tile_avx2: it agrees with the portable version", "[kernels]") {
    if (!runs_here()) { return; }
    support::random r(82);
    for (int n = 0; n < 30; ++n) {
        const tile_case c = random_tile_case(r, kernels::query_tile_avx2::max_queries);
        support::random same(static_cast<std::uint64_t>(n)), order(static_cast<std::uint64_t>(n));
        const tile_result fast = attend_in_tiles<kernels::query_tile_avx2>(c, same);
        const tile_result plain = attend_in_tiles<kernels::query_tile>(c, order);
        CHECK(difference(fast.out, oracle::row(plain.out.begin(), plain.out.end()), 2e-5, 2e-5) == "");
    }
}

#endif // KVTRIM_HAS_X86
