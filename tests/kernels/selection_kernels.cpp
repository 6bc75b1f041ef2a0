// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/kernels/selection_kernels.hpp>

#include "support/cpu_levels.hpp"
#include "support/random_layer.hpp"
#include "support/special_floats.hpp"

#include <limits>
#include <vector>

namespace {

using namespace kvtrim;
using support::infinity;

// Any bits at all, many equal, some zeros and NaNs of both signs; a length around the vector width.
std::vector<float> any_floats(support::random& r) {
    std::vector<float> row(static_cast<std::size_t>(r.between(0, 70)));
    for (float& x : row) {
        const auto bits = static_cast<std::uint32_t>(r.between(0, 0xffffffffll));
        x = std::bit_cast<float>(r.chance(0.5) ? bits & 0x81800000u : bits);
        if (r.chance(0.1)) { x = r.one_of({0.0f, -0.0f, infinity, -infinity}); }
    }
    return row;
}

} // namespace

TEST_CASE("ordered_bits: the order of floats, with one zero, and NaN below all", "[kernels]") {
    const std::vector<float> ascending{-infinity, -2.0f, -1e-40f, 0.0f, 1e-40f, 1.0f, infinity};
    for (std::size_t i = 0; i + 1 < ascending.size(); ++i) {
        CHECK(ordered_bits(ascending[i]) < ordered_bits(ascending[i + 1]));
    }
    CHECK(ordered_bits(-0.0f) == ordered_bits(0.0f));
    CHECK(ordered_bits(std::numeric_limits<float>::quiet_NaN()) == 0);
    CHECK(ordered_bits(-std::numeric_limits<float>::quiet_NaN()) == 0);
    CHECK(ordered_bits(-infinity) > 0);
}

TEST_CASE("ordered_bits: every level counts, compares and writes the same", "[kernels]") {
    support::at_each_cpu_level([] {
        support::random r(31);
        for (int run = 0; run < 300; ++run) {
            const std::vector<float> row = any_floats(r);
            const float at =
                row.empty() ? 0.0f : row[static_cast<std::size_t>(r.between(0, std::ssize(row) - 1))];
            const std::uint32_t border = ordered_bits(at);
            CAPTURE(run, row.size(), border);

            kernels::key_histogram histogram;
            const std::uint32_t width = r.one_of({0u, 1u, 2047u, 2048u, 1u << 20, 0xffffffffu});
            const std::uint32_t low = width == 0xffffffffu ? 0 : border - std::min(border, width / 3);
            const kernels::key_range range{low, low + std::min(0xffffffffu - low, width)};
            kernels::count_keys(row, range, histogram);
            index_t above_range = 0;
            kernels::above_and_equal expected{0, 0};
            std::vector<index_t> counts(2048);
            for (const float x : row) {
                const std::uint32_t bits = ordered_bits(x);
                expected.above += bits > border ? 1 : 0;
                expected.equal += bits == border ? 1 : 0;
                above_range += bits > range.high ? 1 : 0;
                if (bits < range.low || bits > range.high) { continue; }
                std::uint32_t bucket = 0;
                while (range.bucket(bucket).high < bits) { ++bucket; }
                ++counts[bucket];
            }
            bool right = true;
            for (std::uint32_t d = 0; d < 2048; ++d) { right = right && histogram.count(d) == counts[d]; }
            CHECK(right);
            CHECK(histogram.above == above_range);
            CHECK(range.last_bucket() < 2048);
            CHECK(range.bucket(range.last_bucket()).high == range.high);

            const kernels::above_and_equal got = kernels::compare(row, border);
            CHECK(got.above == expected.above);
            CHECK(got.equal == expected.equal);

            top_k_cut cut{border, r.between(0, expected.equal + 1)};
            std::vector<std::int32_t> chosen;
            index_t ties = cut.ties;
            for (std::size_t c = 0; c < row.size(); ++c) {
                const std::uint32_t bits = ordered_bits(row[c]);
                const bool tie = bits == border && ties-- > 0;
                if (bits > border || tie) { chosen.push_back(7 + static_cast<std::int32_t>(c)); }
            }
            std::vector<std::int32_t> out(chosen.size() + 16, -1);
            const auto* end = kernels::write_above(row, cut, 7, out.data());
            CHECK(end == out.data() + chosen.size());
            CHECK(std::equal(chosen.begin(), chosen.end(), out.begin()));
            CHECK(std::all_of(out.end() - 16, out.end(), [](std::int32_t x) { return x == -1; }));
            CHECK(cut.ties == std::max<index_t>(0, ties));
        }
    });
}
