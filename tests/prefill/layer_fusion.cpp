// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/prefill/layer_fusion.hpp>

#include "support/prefill.hpp"

#include <limits>
#include <vector>

using namespace kvtrim;
using namespace support;

namespace {

constexpr segment_grid grid{.segment_tokens = 8, .block_tokens = 4, .first_token = 8, .end_token = 30};
constexpr index_t kv_heads = 2;

// Estimates of a layer, [kv_heads][segments][allowed blocks].
using estimates = std::vector<std::vector<std::vector<float>>>;

estimates random_estimates(std::uint64_t seed, const segment_grid& of = grid) {
    support::random r(seed);
    estimates result(kv_heads);
    for (auto& head : result) {
        for (index_t s = 0; s < of.segments(); ++s) {
            head.emplace_back(static_cast<std::size_t>(of.allowed_blocks(s)));
            for (float& x : head.back()) { x = static_cast<float>(r.uniform()); }
        }
    }
    return result;
}

estimates fuse(layer_fusion& state, index_t layer, estimates rows, const fusion_options& options = {},
               const segment_grid& of = grid) {
    if (!state.begin_layer(layer, of, kv_heads, options).ok()) {
        throw std::logic_error("begin_layer failed");
    }
    for (index_t g = 0; g < kv_heads; ++g) {
        for (index_t s = of.segments(); s-- > 0;) { // in any order
            const auto head = static_cast<std::size_t>(g);
            if (!state.fuse(g, s, rows[head][static_cast<std::size_t>(s)]).ok()) {
                throw std::logic_error("fuse failed");
            }
        }
    }
    return rows;
}

// weight * previous + (1 - weight) * own
estimates mix(const estimates& previous, const estimates& own, double weight) {
    estimates result = own;
    for (std::size_t g = 0; g < own.size(); ++g) {
        for (std::size_t s = 0; s < own[g].size(); ++s) {
            for (std::size_t b = 0; b < own[g][s].size(); ++b) {
                result[g][s][b] = static_cast<float>(weight * static_cast<double>(previous[g][s][b]) +
                                                     (1 - weight) * static_cast<double>(own[g][s][b]));
            }
        }
    }
    return result;
}

bool near(const estimates& a, const estimates& b) {
    for (std::size_t g = 0; g < a.size(); ++g) {
        for (std::size_t s = 0; s < a[g].size(); ++s) {
            const oracle::row expected(b[g][s].begin(), b[g][s].end());
            if (!difference(a[g][s], expected, 1e-5).empty()) { return false; }
        }
    }
    return a.size() == b.size();
}

} // namespace

TEST_CASE("layer_fusion: over layers it is the recursion, from the first fused layer on", "[prefill]") {
    for (const double weight : {0.25, 0.9}) {
        for (const index_t first_fused : {0, 1, 2, 4}) {
            const fusion_options options{.previous_weight = weight, .first_fused_layer = first_fused};
            layer_fusion state;
            estimates previous;
            for (index_t l = 0; l < 6; ++l) {
                const estimates own = random_estimates(static_cast<std::uint64_t>(l));
                const estimates expected = l > 0 && l >= first_fused ? mix(previous, own, weight) : own;
                const estimates got = fuse(state, l, own, options);
                CAPTURE(weight, first_fused, l);
                CHECK(near(got, expected));
                if (l < first_fused || l == 0) { CHECK(got == own); }
                previous = expected;
            }
        }
    }
}

TEST_CASE("layer_fusion: interleaved requests do not touch each other", "[prefill]") {
    layer_fusion mine, yours, alone;
    for (index_t l = 0; l < 5; ++l) {
        const estimates own = random_estimates(static_cast<std::uint64_t>(l));
        const estimates got = fuse(mine, l, own);
        static_cast<void>(fuse(yours, l, random_estimates(static_cast<std::uint64_t>(100 + l))));
        CHECK(got == fuse(alone, l, own));
    }
}

TEST_CASE("layer_fusion: a copy goes on by itself", "[prefill]") {
    layer_fusion state;
    static_cast<void>(fuse(state, 2, random_estimates(1)));
    layer_fusion copy = state;
    const estimates expected = fuse(state, 3, random_estimates(2));
    static_cast<void>(fuse(state, 4, random_estimates(3)));
    CHECK(fuse(copy, 3, random_estimates(2)) == expected);
}

TEST_CASE("layer_fusion: what does not follow is not mixed", "[prefill]") {
    const estimates own = random_estimates(5);
    const auto begun = [] {
        layer_fusion state;
        static_cast<void>(fuse(state, 2, random_estimates(4)));
        return state;
    };
    layer_fusion follows = begun();
    CHECK_FALSE(fuse(follows, 3, own) == own);
    layer_fusion skips = begun();
    CHECK(fuse(skips, 4, own) == own); // a layer between was dense
    CHECK_FALSE(fuse(skips, 5, random_estimates(12)) == random_estimates(12));
    layer_fusion repeats = begun();
    CHECK(fuse(repeats, 2, own) == own);
    layer_fusion restarts = begun();
    CHECK(fuse(restarts, 0, own) == own);
    layer_fusion cleared = begun();
    cleared.reset();
    CHECK(fuse(cleared, 3, own) == own);
    CHECK_FALSE(fuse(cleared, 4, random_estimates(12)) == random_estimates(12));
    layer_fusion first;
    CHECK(fuse(first, 3, own) == own);
}

TEST_CASE("layer_fusion: another chunk, prompt or number of heads is not mixed", "[prefill]") {
    for (const segment_grid& other : {segment_grid{8, 4, 16, 38}, segment_grid{8, 4, 8, 29},
                                      segment_grid{8, 2, 8, 30}, segment_grid{16, 4, 16, 38}}) {
        layer_fusion state;
        static_cast<void>(fuse(state, 2, random_estimates(6)));
        const estimates own = random_estimates(7, other);
        CHECK(fuse(state, 3, own, {}, other) == own);
        CHECK_FALSE(fuse(state, 4, random_estimates(8, other), {}, other) == random_estimates(8, other));
    }
    layer_fusion state;
    static_cast<void>(fuse(state, 2, random_estimates(9)));
    REQUIRE(state.begin_layer(3, grid, 1, {}).ok());
    std::vector<float> row{0.5f, 0.25f};
    REQUIRE(state.fuse(0, 0, row).ok());
    CHECK(row == std::vector<float>{0.5f, 0.25f});
}

TEST_CASE("layer_fusion: what was NaN before is forgotten where nothing is mixed", "[prefill]") {
    layer_fusion state;
    estimates broken = random_estimates(10);
    for (auto& head : broken) {
        for (auto& row : head) { std::fill(row.begin(), row.end(), std::numeric_limits<float>::quiet_NaN()); }
    }
    static_cast<void>(fuse(state, 3, broken));
    const estimates own = random_estimates(11);
    CHECK(fuse(state, 1, own) == own);
    CHECK(near(fuse(state, 2, own), own));
}

TEST_CASE("layer_fusion: it keeps a float per head and allowed block", "[prefill]") {
    layer_fusion state;
    CHECK(state.bytes() == 0);
    REQUIRE(state.begin_layer(0, grid, kv_heads, {}).ok());
    CHECK(state.bytes() == kv_heads * grid.allowed_before(grid.segments()) * 4);
    layer_fusion llama;
    const segment_grid long_prompt{.first_token = 0, .end_token = 131072};
    REQUIRE(llama.begin_layer(0, long_prompt, 8, {}).ok());
    CHECK(llama.bytes() < index_t{17} << 20); // "16 MiB"
}

TEST_CASE("fusion_options: a weight of 0 is off, one of 1 or more or NaN is refused", "[prefill]") {
    CHECK(fusion_options{}.is_on());
    CHECK(fusion_options{}.validate().ok());
    CHECK_FALSE(fusion_options{.previous_weight = 0}.is_on());
    CHECK(fusion_options{.previous_weight = 0}.validate().ok());
    for (const double wrong : {1.0, -0.1, 2.0, std::numeric_limits<double>::quiet_NaN()}) {
        CHECK(fusion_options{.previous_weight = wrong}.validate().code() == errc::ratio_out_of_range);
    }
}

TEST_CASE(
    "layer_fusion: a layer, grid or row that cannot be is refused, and the state mixes on as if not asked",
    "[prefill][errors]") {
    constexpr index_t most = std::numeric_limits<index_t>::max();
    const estimates before = random_estimates(12);
    layer_fusion state;
    std::vector<float> row(2, 0.5f);
    CHECK(state.fuse(0, 0, row).code() == errc::invalid_parameter); // no layer is open
    static_cast<void>(fuse(state, 2, before));
    const index_t bytes = state.bytes();
    const auto begin = [&](index_t layer, const segment_grid& of, index_t heads,
                           const fusion_options& options = {}) {
        return state.begin_layer(layer, of, heads, options).code();
    };
    CHECK(begin(-1, grid, kv_heads) == errc::invalid_parameter);
    CHECK(begin(-most - 1, grid, kv_heads) == errc::invalid_parameter);
    CHECK(begin(3, {8, 3, 8, 30}, kv_heads) == errc::invalid_parameter);
    CHECK(begin(3, grid, -1) == errc::invalid_parameter);
    CHECK(begin(3, grid, most) == errc::index_overflow);
    CHECK(begin(3, {1, 1, 0, most}, 1) == errc::index_overflow);
    CHECK(begin(3, grid, kv_heads, {.previous_weight = 1}) == errc::ratio_out_of_range);
    const index_t segments = grid.segments();
    for (const auto& [head, segment] : std::vector<std::pair<index_t, index_t>>{
             {-1, 0}, {kv_heads, 0}, {most, 0}, {0, -1}, {0, segments}, {0, most}}) {
        CHECK(state.fuse(head, segment, row).code() == errc::invalid_parameter);
    }
    std::vector<float> longer(static_cast<std::size_t>(grid.allowed_blocks(1)) + 1, 0.5f);
    const status s = state.fuse(0, 1, longer);
    CHECK(s.code() == errc::invalid_parameter);
    CHECK(s.needed() == grid.allowed_blocks(1));
    CHECK(longer == std::vector<float>(longer.size(), 0.5f));
    CHECK(row == std::vector<float>(2, 0.5f));
    CHECK(state.bytes() == bytes);
    const estimates own = random_estimates(13);
    CHECK(near(fuse(state, 3, own), mix(before, own, 0.25)));

    layer_fusion last;
    static_cast<void>(fuse(last, most, before)); // no layer follows it
    CHECK(fuse(last, 0, own) == own);
}
