// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/kernels/query_tile_amx.hpp>

#include "support/cpu_levels.hpp"
#include "support/emulated_tiles.hpp"
#include "support/query_tiles.hpp"
#include "support/trapped_tiles.hpp"

#include <cmath>

// The first tests are those of the other tiles (query_tile.cpp), with emulated products. The last one tests that these are the
// processor's.

using namespace kvtrim;
using namespace support;

#if KVTRIM_HAS_X86

namespace {

using emulated_tile = kernels::amx::basic_query_tile<kernels::amx::basic_query_products<emulated_tiles>>;
using checks = query_tile_checks<emulated_tile>;

} // namespace

TEST_CASE("query_tile_amx: attention of random shapes equals the oracle, tiles in any order", "[kernels]") {
    if (!runs_bf16_vectors()) { return; }
    checks::random_shapes(81, 60);
}

TEST_CASE("query_tile_amx: a query sees itself and what came before it, within its window", "[kernels]") {
    if (!runs_bf16_vectors()) { return; }
    checks::masks();
}

TEST_CASE("query_tile_amx: a query that sees nothing gives 0 and -infinity, or its sink", "[kernels]") {
    if (!runs_bf16_vectors()) { return; }
    checks::nothing_visible();
}

TEST_CASE("query_tile_amx: keys may become visible late", "[kernels]") {
    if (!runs_bf16_vectors()) { return; }
    checks::late_keys();
}

TEST_CASE("query_tile_amx: very large and very negative logits", "[kernels]") {
    if (!runs_bf16_vectors()) { return; }
    checks::large_logits();
}

TEST_CASE("query_tile_amx: a NaN key counts for nothing and an infinite one takes all", "[kernels]") {
    if (!runs_bf16_vectors()) { return; }
    checks::broken_keys();
}

TEST_CASE("query_tile_amx: a NaN query sees nothing and disturbs no other", "[kernels]") {
    if (!runs_bf16_vectors()) { return; }
    checks::broken_queries();
}

TEST_CASE("query_tile_amx: many rescalings do not add up to an error", "[kernels]") {
    if (!runs_bf16_vectors()) { return; }
    checks::rising_logits();
}

TEST_CASE("query_tile_amx: a soft cap beyond all logits changes nothing", "[kernels]") {
    if (!runs_bf16_vectors()) { return; }
    checks::large_soft_caps();
}

TEST_CASE("query_tile_amx: head dimensions of models, whole steps of 32 or not", "[kernels]") {
    if (!runs_bf16_vectors()) { return; }
    support::random r(83);
    for (const index_t head_dim : {16, 32, 64, 80, 96, 128, 192}) {
        for (const index_t value_dim : {head_dim, index_t{128}}) {
            for (const index_t keys : {31, 256, 300}) { // part of a step, a whole tile, a tile and a piece
                tile_case c =
                    empty_tile_case(head_dim, value_dim, r.between(1, 32), keys, r.between(0, keys));
                for (auto* values : {&c.q, &c.k, &c.v}) {
                    for (float& x : *values) { x = static_cast<float>(r.normal()); }
                }
                c.rules.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
                CAPTURE(head_dim, value_dim, keys, c.queries, c.first_query);
                CHECK(checks::run(c, 2e-5, r.bits()) == "");
            }
        }
    }
}

TEST_CASE("query_tile_amx: it agrees with the portable version within the rounding of weights", "[kernels]") {
    if (!runs_bf16_vectors()) { return; }
    using plain_tile = kernels::KVTRIM_BASELINE::query_tile;
    support::random r(82);
    for (int n = 0; n < 30; ++n) {
        const tile_case c = as_stored<bf16>(random_tile_case(r, plain_tile::max_queries));
        support::random same(static_cast<std::uint64_t>(n)), order(static_cast<std::uint64_t>(n));
        const tile_result fast = attend_in_tiles<emulated_tile>(c, same);
        const tile_result plain = attend_in_tiles<plain_tile>(c, order);
        CHECK(difference(fast.out, oracle::row(plain.out.begin(), plain.out.end()), 1e-2, 1e-2) == "");
    }
}

// Each query wants one key only, so that nothing is rounded: what is left is where packing puts an element.
TEST_CASE("query_tile_amx: with one key that takes all, its value comes out", "[kernels]") {
    if (!runs_bf16_vectors()) { return; }
    support::random r(84);
    for (const index_t dim : {7, 15, 16, 17, 33, 64, 127, 128}) {
        tile_case c = empty_tile_case(dim, dim, 32, 128, 1000);
        for (float& x : c.v) { x = static_cast<float>(r.normal()); }
        // Key t is its number in binary, as -1 and 1; query i looks for key 4 i.
        const auto digit = [](index_t t, index_t d) { return (t >> (d % 7)) % 2 == 0 ? -1.0f : 1.0f; };
        for (index_t d = 0; d < dim; ++d) {
            for (index_t t = 0; t < 128; ++t) { c.key(t)[d] = digit(t, d); }
            for (index_t i = 0; i < 32; ++i) { c.query(i)[d] = 256 * digit(4 * i, d); }
        }
        c = as_stored<bf16>(c);
        const tile_result got = attend_in_tiles<emulated_tile>(c, r);
        for (index_t i = 0; i < 32; ++i) {
            CAPTURE(dim, i);
            const std::span<const float> row(got.out.data() + i * dim, static_cast<std::size_t>(dim));
            CHECK(difference(row, oracle::row(c.value(4 * i), c.value(4 * i) + dim), 1e-6, 0) == "");
        }
    }
}

#if defined(__linux__)
// To the bit, by the processor where there is AMX; elsewhere its instructions are decoded and emulated.
TEST_CASE("query_tile_amx: the instructions of its tiles give what the emulated ones give", "[kernels]") {
    if (!runs_bf16_tile_instructions()) { return; }
    const trapped_tiles scope;
    support::random r(85);
    for (int n = 0; n < 60; ++n) {
        const tile_case c = random_tile_case(r, emulated_tile::max_queries);
        support::random same(static_cast<std::uint64_t>(n)), order(static_cast<std::uint64_t>(n));
        const tile_result got = attend_in_tiles<kernels::amx::query_tile>(c, same);
        const tile_result emulated = attend_in_tiles<emulated_tile>(c, order);
        CAPTURE(n, c.head_dim, c.value_dim, c.queries, c.keys());
        CHECK(got.out == emulated.out);
        CHECK(got.log_sum_exp == emulated.log_sum_exp);
    }
}
#endif

#endif // KVTRIM_HAS_X86
