// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/kernels/row_mover.hpp>

#include <kvtrim/compact/compact_in_place.hpp>
#include <kvtrim/compact/compact_to_flat.hpp>

#include "support/checks.hpp"

#include <numeric>
#include <vector>

using namespace kvtrim;
using namespace support;

namespace {

std::vector<unsigned char> random_bytes(support::random& r, index_t count) {
    std::vector<unsigned char> bytes(static_cast<std::size_t>(count));
    for (unsigned char& b : bytes) { b = static_cast<unsigned char>(r.bits()); }
    return bytes;
}

} // namespace

TEST_CASE("row_mover: rows of any size and alignment, above the bound and below, apart and within one buffer",
          "[kernels]") {
    support::random r(71);
    for (int n = 0; n < 200; ++n) {
        const index_t row = r.one_of({64, 128, 256, 512, 1, 24, 96, 100});
        const index_t rows = r.between(0, 40);
        const index_t skew = r.one_of({0, 16, 1, 8}); // of the destination, against what the allocator gives
        const index_t total = r.chance(0.7) ? kernels::streamed_bytes : 0;
        const std::vector<unsigned char> source = random_bytes(r, row * rows);
        std::vector<std::size_t> kept;
        for (index_t i = 0; i < rows; ++i) {
            if (r.chance(0.4)) { kept.push_back(static_cast<std::size_t>(i * row)); }
        }
        std::vector<unsigned char> expected;
        for (const std::size_t at : kept) {
            const auto begin = source.begin() + static_cast<std::ptrdiff_t>(at);
            expected.insert(expected.end(), begin, begin + row);
        }
        std::vector<unsigned char> apart(static_cast<std::size_t>(skew + row * rows + 64), 0xee);
        std::vector<unsigned char> within(static_cast<std::size_t>(skew));
        within.insert(within.end(), source.begin(), source.end());
        {
            const kernels::row_mover mover(row, total);
            const auto at = [&](std::vector<unsigned char>& bytes, std::size_t offset) {
                return bytes.data() + static_cast<std::size_t>(skew) + offset;
            };
            const auto size = static_cast<std::size_t>(row);
            mover.move(kept.size(), [&](std::size_t i) {
                return kernels::row_move{source.data() + kept[i], at(apart, i * size)};
            });
            mover.move(kept.size(), [&](std::size_t i) {
                return kernels::row_move{at(within, kept[i]), at(within, i * size)};
            });
        }
        CAPTURE(n, row, rows, skew, total);
        CHECK(std::equal(expected.begin(), expected.end(), apart.begin() + skew));
        CHECK(std::all_of(apart.end() - 64, apart.end(), [](unsigned char b) { return b == 0xee; }));
        CHECK(std::equal(expected.begin(), expected.end(), within.begin() + skew));
    }
}

TEST_CASE("compaction: caches that are written past the caches keep the same rows in every form",
          "[compact]") {
    constexpr index_t tokens = 11000, dim = 128;
    std::vector<bf16> cache(static_cast<std::size_t>(2 * tokens * dim));
    for (std::size_t i = 0; i < cache.size(); ++i) {
        cache[i] = {static_cast<std::uint16_t>(i * 40503u >> 3)};
    }
    std::vector<oracle::token_set> sets(2);
    for (std::size_t t = 0; t < static_cast<std::size_t>(tokens); ++t) {
        if (t % 10 != 3) { sets[0].push_back(t); }
        if (t % 7 != 0) { sets[1].push_back(t); }
    }
    const keep_plan plan = plan_of(sets);
    std::vector<std::uint16_t> expected;
    for (index_t g = 0; g < 2; ++g) {
        for (const auto t : plan.row(g)) {
            for (index_t d = 0; d < dim; ++d) {
                expected.push_back(cache[static_cast<std::size_t>((g * tokens + t) * dim + d)].bits);
            }
        }
    }
    REQUIRE(plan.total_tokens() * dim * 2 > kernels::streamed_bytes);
    const auto is_expected = [&](const bf16* rows, std::size_t first, std::size_t end) {
        return std::equal(expected.begin() + static_cast<std::ptrdiff_t>(first),
                          expected.begin() + static_cast<std::ptrdiff_t>(end), rows,
                          [](std::uint16_t bits, bf16 x) { return bits == x.bits; });
    };
    const std::size_t head = sets[0].size() * dim, all = expected.size();

    std::vector<bf16> gathered(all);
    REQUIRE(gather(strided<const bf16, 3>(cache.data(), {2, tokens, dim}), plan, std::span(gathered)).ok());
    CHECK(is_expected(gathered.data(), 0, all));

    std::vector<bf16> flat = cache;
    REQUIRE(compact_to_flat(strided<bf16, 3>(flat.data(), {2, tokens, dim}), plan).ok());
    CHECK(is_expected(flat.data(), 0, all));

    REQUIRE(compact_in_place(strided<bf16, 3>(cache.data(), {2, tokens, dim}), plan).ok());
    CHECK(is_expected(cache.data(), 0, head));
    CHECK(is_expected(cache.data() + tokens * dim, head, all));
}
