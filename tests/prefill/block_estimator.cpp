// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/prefill/block_estimator.hpp>

#include "support/prefill.hpp"
#include "support/special_floats.hpp"

#include <cmath>
#include <limits>
#include <vector>

using namespace kvtrim;
using namespace support;

namespace {

constexpr float largest = std::numeric_limits<float>::max();

// A third party's estimator: the block whose largest key is the largest, whatever the queries.
struct largest_key {
    static index_t spare_floats(index_t, index_t, index_t) { return 0; }
    void estimate(const bounds_rows& segments, const bounds_rows& blocks, float* out, float*) const {
        for (index_t s = 0; s < segments.blocks; ++s) {
            for (index_t b = 0; b < blocks.blocks; ++b) {
                float sum = 0;
                for (index_t d = 0; d < blocks.head_dim; ++d) {
                    sum += std::max(blocks.maximum[b * blocks.head_dim + d],
                                    -blocks.minimum[b * blocks.head_dim + d]);
                }
                *out++ = sum;
            }
        }
    }
};

static_assert(block_estimator<mid_query> && block_estimator<corner_query> && block_estimator<largest_key>);
static_assert(!block_estimator<int>);
struct without_spare {
    void estimate(const bounds_rows&, const bounds_rows&, float*, float*) const {}
};
static_assert(!block_estimator<without_spare>);

// Bounds of all queries per segment and of all keys per block, as the library makes them.
struct bounded {
    const layer_data& layer;
    index_t segment, block;
    std::vector<float> q_high, q_low, k_high, k_low;

    bounded(const layer_data& l, index_t segment_tokens, index_t block_tokens)
        : layer(l), segment(segment_tokens), block(block_tokens) {
        const auto fill = [](const view& v, index_t per_block, std::vector<float>& high,
                             std::vector<float>& low) {
            high = low = zeros(v.extent(0) * block_count(v.extent(1), per_block) * v.extent(2));
            serial_executor ex;
            growing_workspace memory;
            workspace scratch = memory.of_bytes(block_bounds_bytes(ex, v.extent(0), v.extent(2)));
            REQUIRE(compute_block_bounds(v, v.extent(1), per_block, 0,
                                         {high, low, block_count(v.extent(1), per_block), v.extent(2)},
                                         scratch, ex)
                        .ok());
        };
        fill(layer.queries(), segment, q_high, q_low);
        fill(layer.keys(), block, k_high, k_low);
    }
    [[nodiscard]] index_t segments() const { return block_count(layer.shape.queries, segment); }
    [[nodiscard]] index_t blocks() const { return block_count(layer.shape.tokens, block); }

    // Logits of segments [first, first + count) and the first `blocks` blocks.
    template <class Estimator>
    std::vector<float> logits(const Estimator& estimator, const criticality_options& options, index_t kv_head,
                              index_t first, index_t count, index_t blocks_used) {
        const index_t dim = layer.shape.head_dim;
        const auto size = static_cast<std::size_t>(count * blocks_used);
        const auto spare_size =
            static_cast<std::size_t>(block_logits_floats(estimator, count, blocks_used, dim));
        std::vector<float> out(size + 8, 4242.0f), spare(spare_size + 8, 4242.0f);
        block_logits(estimator, options, {q_high, q_low, segments(), dim}, {k_high, k_low, blocks(), dim},
                     layer.shape.group, kv_head, first, count, blocks_used, out.data(), spare.data());
        CHECK(std::count(out.begin() + static_cast<std::ptrdiff_t>(size), out.end(), 4242.0f) == 8);
        CHECK(std::count(spare.begin() + static_cast<std::ptrdiff_t>(spare_size), spare.end(), 4242.0f) == 8);
        out.resize(size);
        return out;
    }
};

layer_shape random_small_shape(support::random& r) {
    return {.kv_heads = r.between(1, 3),
            .group = r.between(1, 5),
            .tokens = r.between(1, 70),
            .head_dim = r.one_of({1, 5, 8, 16, 33})};
}

} // namespace

TEST_CASE("mid_query, corner_query: logits of random layers equal the oracle", "[prefill]") {
    support::random r(111);
    for (int n = 0; n < 40; ++n) {
        const layer_data layer = random_prompt(random_small_shape(r), r.bits());
        bounded b(layer, r.between(1, 30), r.between(1, 12));
        const criticality_options options{
            .scale = r.chance(0.5) ? 0.0f : static_cast<float>(2 * r.uniform() + 0.01),
            .group = r.one_of({group_reduction::mean, group_reduction::maximum, group_reduction::sum})};
        const index_t first = r.between(0, b.segments() - 1);
        const index_t count = r.between(1, b.segments() - first);
        const index_t whole = layer.shape.tokens / b.block; // the oracle knows whole blocks only
        if (whole == 0) { continue; }
        const index_t blocks = r.between(1, whole);
        const index_t g = r.between(0, layer.shape.kv_heads - 1);
        oracle::prefill_setup setup;
        setup.block = static_cast<std::size_t>(b.block);
        setup.scale = static_cast<double>(options.scale);
        setup.group = to_oracle(options.group);
        const auto queries = to_oracle(layer.queries());
        const auto keys = to_oracle(layer.keys())[static_cast<std::size_t>(g)];
        for (const bool corner : {false, true}) {
            setup.corner = corner;
            oracle::row expected;
            for (index_t s = first; s < first + count; ++s) {
                const auto begin = static_cast<std::size_t>(s * b.segment);
                const auto end = std::min(begin + static_cast<std::size_t>(b.segment), queries[0].size());
                const oracle::row logits =
                    oracle::block_logits(setup, queries, keys, static_cast<std::size_t>(g),
                                         static_cast<std::size_t>(layer.shape.group), begin, end,
                                         static_cast<std::size_t>(blocks));
                expected.insert(expected.end(), logits.begin(), logits.end());
            }
            const auto got = corner ? b.logits(corner_query{}, options, g, first, count, blocks)
                                    : b.logits(mid_query{}, options, g, first, count, blocks);
            CAPTURE(n, corner, options.scale, layer.shape.group);
            CHECK(difference(got, expected, 1e-4, 1e-4) == "");
        }
    }
}

TEST_CASE("corner_query: no key of a block scores higher with any query of the segment", "[prefill]") {
    support::random r(112);
    for (int n = 0; n < 40; ++n) {
        const layer_data layer = random_prompt(random_small_shape(r), r.bits());
        const index_t group = layer.shape.group;
        bounded b(layer, r.between(1, 30), r.between(1, 12));
        const auto queries = to_oracle(layer.queries());
        const auto keys = to_oracle(layer.keys());
        for (index_t g = 0; g < layer.shape.kv_heads; ++g) {
            const auto bound = b.logits(corner_query{}, {.scale = 1, .group = group_reduction::maximum}, g, 0,
                                        b.segments(), b.blocks());
            double worst = -1;
            for (std::size_t h = static_cast<std::size_t>(g * group);
                 h < static_cast<std::size_t>((g + 1) * group); ++h) {
                for (std::size_t i = 0; i < queries[h].size(); ++i) {
                    for (std::size_t t = 0; t < queries[h].size(); ++t) {
                        const auto& key = keys[static_cast<std::size_t>(g)][t];
                        const auto place = static_cast<index_t>(i) / b.segment * b.blocks() +
                                           static_cast<index_t>(t) / b.block;
                        // What float rounding may take away from the sum.
                        const double slack = 1e-5 * (1 + std::abs(oracle::dot(queries[h][i], key)));
                        worst =
                            std::max(worst, oracle::dot(queries[h][i], key) - slack -
                                                static_cast<double>(bound[static_cast<std::size_t>(place)]));
                    }
                }
            }
            CHECK(worst <= 0);
        }
    }
}

TEST_CASE("corner_query, mid_query: of one query and one key they are its product", "[prefill]") {
    const layer_data layer = random_prompt({.kv_heads = 1, .group = 1, .tokens = 9, .head_dim = 12}, 7);
    bounded b(layer, 1, 1);
    const auto queries = to_oracle(layer.queries());
    const auto keys = to_oracle(layer.keys());
    for (const bool corner : {false, true}) {
        const auto got = corner ? b.logits(corner_query{}, {.scale = 1}, 0, 0, 9, 9)
                                : b.logits(mid_query{}, {.scale = 1}, 0, 0, 9, 9);
        oracle::row expected;
        for (const auto& query : queries[0]) {
            for (const auto& key : keys[0]) { expected.push_back(oracle::dot(query, key)); }
        }
        CHECK(difference(got, expected, 1e-5, 1e-5) == "");
    }
}

TEST_CASE("block_logits: the scale is 1 / sqrt(head_dim) unless given", "[prefill]") {
    const layer_data layer = random_prompt({.kv_heads = 1, .group = 2, .tokens = 20, .head_dim = 16}, 8);
    bounded b(layer, 10, 5);
    const auto scaled = b.logits(mid_query{}, {}, 0, 0, 2, 4);
    const auto plain = b.logits(mid_query{}, {.scale = 1}, 0, 0, 2, 4);
    const auto quarter = b.logits(mid_query{}, {.scale = 0.25f}, 0, 0, 2, 4);
    for (std::size_t i = 0; i < plain.size(); ++i) { CHECK(4 * scaled[i] == Approx(plain[i]).epsilon(1e-5)); }
    CHECK(scaled == quarter);
}

TEST_CASE("block_logits: another estimator takes part", "[prefill]") {
    const layer_data layer = random_prompt({.kv_heads = 2, .group = 2, .tokens = 24, .head_dim = 4}, 9);
    bounded b(layer, 12, 4);
    for (index_t g = 0; g < 2; ++g) {
        const auto got = b.logits(largest_key{}, {.scale = 1, .group = group_reduction::mean}, g, 0, 2, 6);
        oracle::row expected;
        for (int s = 0; s < 2; ++s) {
            for (std::size_t k = 0; k < 6; ++k) {
                const auto keys = to_oracle(layer.keys())[static_cast<std::size_t>(g)];
                const auto high = oracle::maximum_of(keys, 4 * k, 4 * k + 4);
                const auto low = oracle::minimum_of(keys, 4 * k, 4 * k + 4);
                double sum = 0;
                for (std::size_t d = 0; d < 4; ++d) { sum += std::max(high[d], -low[d]); }
                expected.push_back(sum);
            }
        }
        CHECK(difference(got, expected, 1e-5) == "");
    }
}

TEST_CASE("block_logits: odd numbers leave finite logits or masked ones", "[prefill]") {
    for (const float odd : {not_a_number, infinity, -infinity, largest, -largest}) {
        for (const bool in_key : {false, true}) {
            layer_data layer = random_prompt({.kv_heads = 1, .group = 2, .tokens = 20, .head_dim = 4}, 10);
            (in_key ? layer.key(0, 7)[1] : layer.q[4 * 7 + 1]) = odd;
            bounded b(layer, 5, 5);
            CAPTURE(odd, in_key);
            for (const bool corner : {false, true}) {
                for (const auto group : {group_reduction::mean, group_reduction::maximum}) {
                    const criticality_options options{.group = group};
                    const auto got = corner ? b.logits(corner_query{}, options, 0, 0, 4, 4)
                                            : b.logits(mid_query{}, options, 0, 0, 4, 4);
                    const layer_data clean =
                        random_prompt({.kv_heads = 1, .group = 2, .tokens = 20, .head_dim = 4}, 10);
                    bounded c(clean, 5, 5);
                    const auto expected = corner ? c.logits(corner_query{}, options, 0, 0, 4, 4)
                                                 : c.logits(mid_query{}, options, 0, 0, 4, 4);
                    for (std::size_t i = 0; i < got.size(); ++i) {
                        CHECK(got[i] == got[i]);
                        CHECK(got[i] < infinity);
                        const bool affected = in_key ? i % 4 == 1 : i / 4 == 1;
                        if (!affected) { CHECK(got[i] == expected[i]); }
                    }
                }
            }
        }
    }
}

TEST_CASE("mid_query, corner_query: a channel that is NaN only in a segment or a block adds nothing to it",
          "[prefill]") {
    const auto logits_with = [](float channel, bool of_queries, bool corner) {
        layer_data layer = random_prompt({.kv_heads = 1, .group = 1, .tokens = 20, .head_dim = 4}, 11);
        auto& rows = of_queries ? layer.q : layer.k;
        for (index_t t = 5; t < 10; ++t) { rows[static_cast<std::size_t>(4 * t + 2)] = channel; }
        bounded b(layer, 5, 5);
        return corner ? b.logits(corner_query{}, {}, 0, 0, 4, 4) : b.logits(mid_query{}, {}, 0, 0, 4, 4);
    };
    for (const bool of_queries : {false, true}) {
        for (const bool corner : {false, true}) {
            CAPTURE(of_queries, corner);
            CHECK(logits_with(not_a_number, of_queries, corner) == logits_with(0, of_queries, corner));
        }
    }
}

TEST_CASE("mid_query: extreme queries do not overflow where their middle does not", "[prefill]") {
    layer_data layer = random_prompt({.kv_heads = 1, .group = 1, .tokens = 4, .head_dim = 2}, 12);
    layer.q = {largest, largest, largest, largest, largest, largest, largest, largest};
    layer.k = {1e-30f, 0, 0, 1e-30f, 1e-30f, 0, 0, 1e-30f};
    bounded b(layer, 4, 2);
    for (const float x : b.logits(mid_query{}, {.scale = 1}, 0, 0, 1, 2)) {
        CHECK(x == Approx(2 * static_cast<double>(largest) * 1e-30));
    }
}

TEST_CASE("criticality_options: a scale that is negative or not finite is refused", "[prefill]") {
    CHECK(criticality_options{}.validate().ok());
    CHECK(criticality_options{.scale = 1}.validate().ok());
    for (const float wrong : {-1.0f, infinity, -infinity, not_a_number}) {
        CHECK(criticality_options{.scale = wrong}.validate().code() == errc::invalid_parameter);
    }
}
