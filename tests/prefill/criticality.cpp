// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/prefill/criticality.hpp>

#include "support/random_prompt.hpp"

using namespace kvtrim;
using namespace support;

namespace {

struct bounds {
    std::vector<float> high, low;
    block_bounds view;

    template <class Rows>
    bounds(const Rows& rows, index_t rows_per_block)
        : high(zeros(extent(rows, 0) * block_count(extent(rows, 1), rows_per_block) * extent(rows, 2))),
          low(high), view{high, low, block_count(extent(rows, 1), rows_per_block), extent(rows, 2)} {
        growing_workspace memory;
        serial_executor ex;
        workspace scratch = memory.of_bytes(block_bounds_bytes(ex, extent(rows, 0), extent(rows, 2)));
        if (!compute_block_bounds(rows, extent(rows, 1), rows_per_block, 0, view, scratch, ex).ok()) {
            throw std::logic_error("bounds");
        }
    }
};

template <class Estimator>
std::vector<float> logits_of(const Estimator& estimator, const criticality_options& options,
                             const bounds& queries, const bounds& keys, index_t group, index_t kv_head) {
    const index_t segments = queries.view.blocks, blocks = keys.view.blocks;
    std::vector<float> logits = zeros(segments * blocks);
    std::vector<float> spare = zeros(block_logits_floats(estimator, segments, blocks, keys.view.head_dim));
    block_logits(estimator, options, queries.view, keys.view, group, kv_head, 0, segments, blocks,
                 logits.data(), spare.data());
    return logits;
}

// A third party's estimate: the mean key against the middle of the queries.
struct mean_of_bounds {
    static index_t spare_floats(index_t, index_t, index_t) { return 0; }
    void estimate(const bounds_rows& segments, const bounds_rows& blocks, float* out, float*) const {
        for (index_t s = 0; s < segments.blocks; ++s) {
            for (index_t b = 0; b < blocks.blocks; ++b, ++out) {
                *out = 0;
                for (index_t d = 0; d < blocks.head_dim; ++d) {
                    const float q =
                        segments.maximum[s * blocks.head_dim + d] + segments.minimum[s * blocks.head_dim + d];
                    const float k =
                        blocks.maximum[b * blocks.head_dim + d] + blocks.minimum[b * blocks.head_dim + d];
                    *out += q * k / 4;
                }
            }
        }
    }
};
static_assert(block_estimator<mean_of_bounds>);

} // namespace

TEST_CASE("block_bounds: elementwise maxima and minima of any view, the last block shorter",
          "[prefill][oracle]") {
    support::random r(831);
    for (int i = 0; i < 60; ++i) {
        const layer_data data = random_layer(
            {.kv_heads = r.between(1, 3), .tokens = r.between(1, 90), .head_dim = r.one_of({1, 7, 16, 33})},
            8310 + static_cast<std::uint64_t>(i));
        const view rows = data.keys();
        const index_t per_block = r.one_of({1, 4, 16, 40, 100});
        const auto check = [&](const auto& source) {
            const bounds got(source, per_block);
            for (index_t h = 0; h < rows.extent(0); ++h) {
                for (index_t b = 0; b < got.view.blocks; ++b) {
                    for (index_t d = 0; d < rows.extent(2); ++d) {
                        float high = -std::numeric_limits<float>::infinity(), low = -high;
                        for (index_t t = b * per_block; t < std::min((b + 1) * per_block, rows.extent(1));
                             ++t) {
                            high = std::max(high, rows(h, t, d));
                            low = std::min(low, rows(h, t, d));
                        }
                        CHECK(got.view.rows(h, b, 1).maximum[d] == high);
                        CHECK(got.view.rows(h, b, 1).minimum[d] == low);
                    }
                }
            }
        };
        check(rows);
        check(store(rows, r.one_of({layout::token_major, layout::transposed, layout::reversed})).get());
        check(generic_view{rows});
        check(decoding_source(rows));
    }
}

TEST_CASE("block_bounds: NaN counts as absent, and earlier blocks are left alone", "[prefill][odd]") {
    constexpr float nan = std::numeric_limits<float>::quiet_NaN();
    const std::vector<float> rows{1, nan, nan, nan, -2, nan};
    const view v(rows.data(), {1, 3, 2});
    const bounds got(v, 3);
    constexpr float infinity = std::numeric_limits<float>::infinity();
    CHECK(got.high == std::vector<float>{1, -infinity});
    CHECK(got.low == std::vector<float>{-2, infinity});

    const std::vector<float> more{1, 2, 3, 4, 5};
    std::vector<float> high(3, -7), low(3, -7);
    serial_executor ex;
    growing_workspace memory;
    workspace scratch = memory.of_bytes(block_bounds_bytes(ex, 1, 1));
    REQUIRE(compute_block_bounds(view(more.data(), {1, 5, 1}), 5, 2, 1, {high, low, 3, 1}, scratch, ex).ok());
    CHECK(high == std::vector<float>{-7, 4, 5});
    CHECK(low == std::vector<float>{-7, 3, 5});
    workspace none(std::span<std::byte>{});
    CHECK(compute_block_bounds(view(more.data(), {1, 5, 1}), 5, 2, 0, {high, low, 3, 1}, none, ex).code() ==
          errc::workspace_too_small);
    CHECK(high == std::vector<float>{-7, 4, 5});
    CHECK(violation_of([&] {
              static_cast<void>(compute_block_bounds(view(more.data(), {1, 5, 1}), 5, 1, 0, {high, low, 3, 1},
                                                     scratch, ex));
          }) == "compute_block_bounds: the bounds must have the shape of the rows");
}

TEST_CASE("corner_query: no query of a segment scores a key of the block higher", "[prefill][paper]") {
    support::random r(832);
    for (int i = 0; i < 60; ++i) {
        const layer_shape shape{.kv_heads = r.between(1, 2),
                                .group = r.between(1, 3),
                                .tokens = r.between(1, 60),
                                .head_dim = r.one_of({1, 8, 33}),
                                .queries = r.between(1, 30)};
        layer_shape own = shape;
        own.queries = std::min(shape.queries, shape.tokens);
        const layer_data data = random_layer(own, 8320 + static_cast<std::uint64_t>(i));
        const index_t per_segment = r.between(1, 12), per_block = r.between(1, 12);
        const bounds queries(data.queries(), per_segment), keys(data.keys(), per_block);
        for (index_t g = 0; g < shape.kv_heads; ++g) {
            const auto most = logits_of(corner_query{}, {.scale = 1, .group = group_reduction::maximum},
                                        queries, keys, shape.group, g);
            for (index_t h = g * shape.group; h < (g + 1) * shape.group; ++h) {
                // One query head alone: its own bound.
                const bounds one(
                    view(data.q.data() + h * own.queries * shape.head_dim, {1, own.queries, shape.head_dim}),
                    per_segment);
                const bounds one_key(view(data.k.data() + g * shape.tokens * shape.head_dim,
                                          {1, shape.tokens, shape.head_dim}),
                                     per_block);
                const auto alone = logits_of(corner_query{}, {.scale = 1}, one, one_key, 1, 0);
                for (index_t q = 0; q < own.queries; ++q) {
                    for (index_t t = 0; t < shape.tokens; ++t) {
                        double logit = 0;
                        for (index_t d = 0; d < shape.head_dim; ++d) {
                            logit += static_cast<double>(data.queries()(h, q, d)) *
                                     static_cast<double>(data.keys()(g, t, d));
                        }
                        const auto at =
                            static_cast<std::size_t>(q / per_segment * keys.view.blocks + t / per_block);
                        const double slack = 1e-5 * (1 + std::abs(logit));
                        CHECK(static_cast<double>(alone[at]) >= logit - slack);
                        CHECK(static_cast<double>(most[at]) >= logit - slack);
                        if (per_segment == 1 && per_block == 1) {
                            CHECK(std::abs(static_cast<double>(alone[at]) - logit) <= slack);
                        }
                    }
                }
            }
        }
    }
}

TEST_CASE("block_logits: scale and the group's reduction", "[prefill]") {
    const layer_data data =
        random_layer({.kv_heads = 1, .group = 2, .tokens = 24, .head_dim = 16, .queries = 8}, 833);
    const bounds queries(data.queries(), 4), keys(data.keys(), 8);
    const auto unscaled = logits_of(mid_query{}, {.scale = 1}, queries, keys, 2, 0);
    const auto scaled = logits_of(mid_query{}, {}, queries, keys, 2, 0);
    const auto most =
        logits_of(mid_query{}, {.scale = 1, .group = group_reduction::maximum}, queries, keys, 2, 0);
    const auto sum = logits_of(mid_query{}, {.scale = 1, .group = group_reduction::sum}, queries, keys, 2, 0);
    for (std::size_t i = 0; i < unscaled.size(); ++i) {
        CHECK(scaled[i] == Approx(unscaled[i] / 4));
        CHECK(sum[i] == Approx(2 * unscaled[i]));
        CHECK(most[i] >= unscaled[i] - 1e-5f);
    }
}

TEST_CASE("block_logits: an estimator of a third party", "[prefill]") {
    const layer_data data =
        random_layer({.kv_heads = 1, .group = 1, .tokens = 6, .head_dim = 4, .queries = 2}, 834);
    const bounds queries(data.queries(), 1),
        keys(data.keys(), 1); // blocks of one: every estimate is the product
    const auto got = logits_of(mean_of_bounds{}, {.scale = 1}, queries, keys, 1, 0);
    for (index_t q = 0; q < 2; ++q) {
        for (index_t t = 0; t < 6; ++t) {
            float logit = 0;
            for (index_t d = 0; d < 4; ++d) { logit += data.queries()(0, q, d) * data.keys()(0, t, d); }
            CHECK(got[static_cast<std::size_t>(q * 6 + t)] == Approx(logit));
        }
    }
}
