// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/score/key_norm_score.hpp>

#include "support/checks.hpp"

#include <cmath>

using namespace kvtrim;
using namespace support;

TEST_CASE("key_norm, key_diff: scores equal the formulas for random shapes", "[score][oracle]") {
    support::random r(31);
    std::vector<float> sinks;
    for (std::uint64_t seed = 0; seed < 80; ++seed) {
        const layer_data layer = random_layer(random_shape(r), 3000 + seed);
        const eviction_request request = random_request(r, layer.shape, sinks);
        const layer_oracle slow(layer.inputs(), request);
        oracle::matrix norms;
        oracle::matrix differences;
        for (std::size_t g = 0; g < slow.heads(); ++g) {
            norms.push_back(oracle::at(oracle::key_norms(slow.keys[g]), slow.candidates(g)));
            differences.push_back(oracle::at(oracle::key_differences(slow.keys[g]), slow.candidates(g)));
        }
        const auto keys_only = kvtrim::layer(layer.keys());
        score_memory norm = score_layer(key_norm_score{}, keys_only, request);
        score_memory diff = score_layer(key_diff_score{}, keys_only, request);
        CAPTURE(seed, layer.shape.tokens, layer.shape.head_dim);
        CHECK(difference(norm.importance_rows(), norms) == "");
        CHECK(difference(diff.importance_rows(), differences, 1e-4, 1e-6) == "");
    }
}

TEST_CASE("key_diff: the average key is that of all tokens, protected ones included", "[score]") {
    // Nine protected keys along x, one candidate along x, one along y.
    std::vector<float> k;
    for (int t = 0; t < 9; ++t) { k.insert(k.end(), {1.0f, 0.0f}); }
    k.insert(k.end(), {2.0f, 0.0f, 0.0f, 2.0f});
    const view keys(k.data(), {1, 11, 2});
    const eviction_request request{.budget = {}, .protect = {.sink_tokens = 9}};
    const score_memory scores = score_layer(key_diff_score{}, kvtrim::layer(keys), request);
    CHECK(scores.importance[0] == Approx(-10 / std::sqrt(101.0)));
    CHECK(scores.importance[1] == Approx(-1 / std::sqrt(101.0)));
}

TEST_CASE("key_norm, key_diff: zero and NaN keys have defined scores and leave others alone",
          "[score][odd]") {
    layer_data layer = random_layer({.kv_heads = 1, .group = 1, .tokens = 20, .head_dim = 8}, 3);
    std::fill_n(layer.key(0, 4), 8, 0.0f);
    const auto diff_before = score_layer(key_diff_score{}, layer.inputs(), {}).importance;
    layer.key(0, 4)[1] = std::numeric_limits<float>::quiet_NaN();
    const auto norm = score_layer(key_norm_score{}, layer.inputs(), {}).importance;
    const auto diff = score_layer(key_diff_score{}, layer.inputs(), {}).importance;
    CHECK(diff_before[4] == 0.0f);
    CHECK(std::isnan(norm[4]));
    CHECK(std::isnan(diff[4]));
    for (std::size_t t = 0; t < 20; ++t) {
        if (t != 4) { CHECK(diff[t] == diff_before[t]); }
    }
    std::fill(layer.k.begin(), layer.k.end(), 0.0f);
    CHECK(score_layer(key_diff_score{}, layer.inputs(), {}).importance == std::vector<float>(20, 0.0f));
    CHECK(score_layer(key_norm_score{}, layer.inputs(), {}).importance == std::vector<float>(20, 0.0f));
}

TEST_CASE("key_diff: an infinite, NaN or overflowing key changes no other score and ranks last",
          "[score][odd]") {
    constexpr float infinity = std::numeric_limits<float>::infinity();
    constexpr float nan = std::numeric_limits<float>::quiet_NaN();
    layer_data layer = random_layer({.kv_heads = 1, .group = 1, .tokens = 20, .head_dim = 8}, 3);
    for (const index_t t : {4, 9, 15}) { std::fill_n(layer.key(0, t), 8, 0.0f); } // take no part in the mean
    const auto before = score_layer(key_diff_score{}, layer.inputs(), {}).importance;
    layer.key(0, 4)[1] = nan;
    layer.key(0, 9)[2] = -infinity;
    std::fill_n(layer.key(0, 15), 8, 1e30f);
    const auto after = score_layer(key_diff_score{}, layer.inputs(), {}).importance;
    for (std::size_t t = 0; t < 20; ++t) {
        CAPTURE(t);
        if (t == 4 || t == 9 || t == 15) {
            CHECK(std::isnan(after[t]));
        } else {
            CHECK(after[t] == before[t]);
        }
    }
    const auto norm = score_layer(key_norm_score{}, layer.inputs(), {}).importance;
    CHECK(std::isnan(norm[4]));
    CHECK(norm[9] == -infinity);
    CHECK(norm[15] == -infinity);
}

TEST_CASE("key_norm, key_diff: a workspace that is too small is refused with nothing written",
          "[score][errors]") {
    const layer_data layer = random_layer({}, 4);
    score_memory memory(layer.inputs(), {});
    serial_executor ex;
    std::vector<std::byte> bytes(1000);
    workspace small(bytes);
    const status norm = key_norm_score{}.score(layer.inputs(), {}, memory.get(), small, ex);
    const status diff = key_diff_score{}.score(layer.inputs(), {}, memory.get(), small, ex);
    CHECK(norm.code() == errc::workspace_too_small);
    CHECK(norm.needed() == key_norm_score{}.workspace_bytes(layer.inputs(), eviction_request{}));
    CHECK(diff.code() == errc::workspace_too_small);
    CHECK(memory.is_untouched());
}
