// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/triattention.hpp>

#include "support/checks.hpp"
#include "support/rotated.hpp"

#include <cmath>
#include <numeric>

using namespace kvtrim;
using namespace support;

namespace {

query_pair_means means_of(const layer_data& layer, const rope& r) {
    query_pair_means means(layer.shape.q_heads(), layer.shape.head_dim, r);
    growing_workspace memory;
    workspace scratch = memory.of_bytes(means.workspace_bytes());
    REQUIRE(means.add(layer.queries(), scratch).ok());
    return means;
}

// The paper's series of one query head: keys before RoPE, their positions, and the mean over offsets of cosines.
oracle::row series(const layer_data& unrotated, const rope& r, index_t q_head, double next, index_t octaves) {
    const index_t dim = unrotated.shape.head_dim, count = unrotated.shape.queries;
    const auto queries = unrotated.queries();
    std::vector<double> mean(static_cast<std::size_t>(dim)), length(static_cast<std::size_t>(r.pairs()));
    for (index_t q = 0; q < count; ++q) {
        for (index_t d = 0; d < dim; ++d) {
            mean[static_cast<std::size_t>(d)] +=
                static_cast<double>(queries(q_head, q, d)) / static_cast<double>(count);
        }
        for (index_t i = 0; i < r.pairs(); ++i) {
            length[static_cast<std::size_t>(i)] +=
                std::hypot(static_cast<double>(queries(q_head, q, r.first_channel(i))),
                           static_cast<double>(queries(q_head, q, r.second_channel(i)))) /
                static_cast<double>(count);
        }
    }
    oracle::row out;
    for (index_t t = 0; t < unrotated.shape.tokens; ++t) {
        const float* key = unrotated.keys().data_handle() +
                           (q_head / unrotated.shape.group * unrotated.shape.tokens + t) * dim;
        const double factor = static_cast<double>(r.attention_factor);
        double sum = 0;
        for (index_t d = r.rotary_dim(); d < dim; ++d) {
            sum += mean[static_cast<std::size_t>(d)] * static_cast<double>(key[d]);
        }
        for (index_t i = 0; i < r.pairs(); ++i) {
            const complex_pair q{mean[static_cast<std::size_t>(r.first_channel(i))],
                                 mean[static_cast<std::size_t>(r.second_channel(i))]};
            const complex_pair k = pair_of(key, r, i);
            double cosines = 0;
            for (index_t o = 0; o < octaves; ++o) {
                const double distance = next + std::exp2(static_cast<double>(o)) - static_cast<double>(t);
                cosines += std::cos(distance * r.frequency(i) + std::arg(q) - std::arg(k));
            }
            sum += factor * factor * std::abs(q) * std::abs(k) * cosines / static_cast<double>(octaves);
            sum += factor * factor * (length[static_cast<std::size_t>(i)] - std::abs(q)) * std::abs(k);
        }
        out.push_back(sum);
    }
    return out;
}

} // namespace

TEST_CASE(
    "triattention: scores equal the paper's series of unrotated keys, for random shapes, ropes and requests",
    "[score][oracle]") {
    support::random r(2604);
    std::vector<float> sinks;
    for (std::uint64_t seed = 0; seed < 40; ++seed) {
        layer_shape shape = random_shape(r);
        shape.tokens = std::min<index_t>(shape.tokens, 200);
        shape.head_dim = std::max<index_t>(4, std::min<index_t>(shape.head_dim, 64) / 4 * 4);
        const layer_data plain = random_layer(shape, 7100 + seed);
        const eviction_request request = random_request(r, shape, sinks);
        const std::vector<float> table = random_frequencies(r, shape.head_dim);
        const rope model = random_rope(r, table);
        const query_pair_means means = means_of(plain, model);
        const layer_data cached = rotated(plain, model);
        const index_t next = r.one_of({index_t{-1}, shape.tokens + 5, index_t{700}});
        const trig_series_score scorer{&means, model, next, r.one_of({1, 5, 17})};

        const layer_oracle slow(cached.inputs(), request);
        oracle::matrix expected;
        for (std::size_t g = 0; g < slow.heads(); ++g) {
            oracle::row best;
            for (std::size_t h = g * slow.group; h < (g + 1) * slow.group; ++h) {
                oracle::row own =
                    oracle::at(series(plain, model, static_cast<index_t>(h),
                                      static_cast<double>(next < 0 ? shape.tokens : next), scorer.octaves),
                               slow.candidates(g));
                const double count = static_cast<double>(std::max<std::size_t>(1, own.size()));
                const double mean = std::accumulate(own.begin(), own.end(), 0.0) / count;
                double squares = 0;
                for (const double x : own) { squares += (x - mean) * (x - mean); }
                best.resize(own.size(), -std::numeric_limits<double>::infinity());
                for (std::size_t t = 0; t < own.size(); ++t) {
                    const double z = own.size() < 2 ? 0 : (own[t] - mean) / std::sqrt(squares / count);
                    best[t] = std::max(best[t], z);
                }
            }
            expected.push_back(best);
        }
        score_memory scores = score_layer(scorer, kvtrim::layer(cached.keys()), request);
        CAPTURE(seed, shape.tokens, shape.head_dim, next);
        CHECK(difference(scores.importance_rows(), expected, 2e-3, 2e-3) == "");
    }
}

TEST_CASE("triattention: a key that is not finite ranks last and leaves the others' scores alone",
          "[score][odd]") {
    const std::vector<float> table = rope_frequencies(4);
    const rope model{table};
    layer_data layer =
        random_layer({.kv_heads = 1, .group = 2, .tokens = 20, .head_dim = 8, .queries = 9}, 5);
    const query_pair_means means = means_of(layer, model);
    const trig_series_score scorer{&means, model};
    std::fill_n(layer.key(0, 7), 8, std::numeric_limits<float>::quiet_NaN());
    const auto scores = score_layer(scorer, kvtrim::layer(layer.keys()), {}).importance;
    CHECK(std::isnan(scores[7]));
    layer.key(0, 7)[0] = std::numeric_limits<float>::infinity();
    CHECK(score_layer(scorer, kvtrim::layer(layer.keys()), {}).importance[6] == scores[6]);
    std::fill(layer.k.begin(), layer.k.end(), 1.0f);
    const auto alike = score_layer(scorer, kvtrim::layer(layer.keys()), {}).importance;
    CHECK(alike == std::vector<float>(20, alike[0]));
    CHECK(std::isfinite(alike[0]));
}

TEST_CASE("query_pair_means: any cut into chunks gives the same, and a query that is not finite is left out",
          "[score]") {
    const std::vector<float> table = rope_frequencies(4);
    const rope model{table};
    const layer_data layer =
        random_layer({.kv_heads = 2, .group = 2, .tokens = 30, .head_dim = 8, .queries = 30}, 6);
    const query_pair_means whole = means_of(layer, model);
    query_pair_means parts(4, 8, model);
    growing_workspace memory;
    workspace scratch = memory.of_bytes(parts.workspace_bytes());
    const auto q = layer.queries();
    std::vector<float> odd(4 * 8, 1.0f);
    for (std::size_t h = 0; h < 4; ++h) { odd[h * 8 + 3] = std::numeric_limits<float>::infinity(); }
    REQUIRE(parts.add(view(q.data_handle(), {4, 11, 8}, {30 * 8, 8, 1}), scratch).ok());
    REQUIRE(parts.add(view(odd.data(), {4, 1, 8}), scratch).ok());
    REQUIRE(parts.add(view(q.data_handle() + 11 * 8, {4, 19, 8}, {30 * 8, 8, 1}), scratch).ok());
    CHECK(parts.counts == whole.counts);
    CHECK(parts.sums == whole.sums);
    CHECK(parts.length_sums == whole.length_sums);
}

TEST_CASE("triattention: wrong shapes and numbers are refused, and nothing is written", "[score][errors]") {
    const std::vector<float> table = rope_frequencies(4);
    const rope model{table};
    const layer_data layer = random_layer({.kv_heads = 2, .group = 2, .tokens = 30, .head_dim = 8}, 6);
    const query_pair_means means = means_of(layer, model), three(3, 8, model), wide(4, 16, model);
    const auto in = kvtrim::layer(layer.keys());
    const auto answer = [&](const trig_series_score& s) { return s.validate(in, {}).code(); };
    CHECK(answer({&means, model}) == errc::ok);
    CHECK(answer({nullptr, model}) == errc::invalid_parameter);
    CHECK(answer({&three, model}) == errc::heads_not_divisible);
    CHECK(answer({&wide, model}) == errc::invalid_parameter);
    CHECK(answer({&means, rope{std::span(table).first(2)}}) == errc::invalid_parameter);
    CHECK(answer({&means, rope{table, 1, rope_pairing::interleaved}}) == errc::invalid_parameter);
    CHECK(answer({&means, model, -2}) == errc::invalid_parameter);
    CHECK(answer({&means, model, 0, 0}) == errc::invalid_parameter);
    CHECK(answer({&means, model, 0, 63}) == errc::invalid_parameter);
    query_pair_means broken = means;
    broken.counts[0] = -1;
    CHECK(answer({&broken, model}) == errc::invalid_parameter);
    for (const auto sums : {&query_pair_means::sums, &query_pair_means::length_sums}) {
        broken = means;
        (broken.*sums)[0] = std::numeric_limits<double>::quiet_NaN();
        CHECK(broken.validate().code() == errc::invalid_parameter);
    }
    CHECK_FALSE(query_pair_means(4, 6, model).validate().ok());
    query_pair_means mine(4, 8, model);
    growing_workspace memory;
    workspace scratch = memory.of_bytes(mine.workspace_bytes());
    CHECK(mine.add(view(layer.k.data(), {2, 5, 8}), scratch).code() == errc::invalid_parameter);
    CHECK(mine.counts == std::vector<index_t>(4));
}
