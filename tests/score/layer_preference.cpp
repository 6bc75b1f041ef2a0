// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/score/layer_preference.hpp>

#include "support/checks.hpp"

#include <cmath>

using namespace kvtrim;
using namespace support;

TEST_CASE("layer_preference: it equals the formula on random layers and requests", "[score][oracle]") {
    support::random r(951);
    for (int i = 0; i < 40; ++i) {
        layer_shape shape = random_shape(r);
        shape.tokens = std::min<index_t>(shape.tokens, 200);
        shape.queries = std::min(shape.queries, shape.tokens);
        const layer_data data = random_layer(shape, 9510 + static_cast<std::uint64_t>(i));
        std::vector<float> sinks;
        const eviction_request request = random_request(r, shape, sinks);
        const layer_oracle truth(data.inputs(), request);
        const layer_preference spread{.tau1 = r.one_of({1.0, 1.6}), .tau2 = r.one_of({0.6, 2.0})};
        double entropy = 0, variance = 0;
        for (std::size_t h = 0; h < truth.attention.size(); ++h) {
            const oracle::matrix& rows = truth.attention[h];
            const auto queries = static_cast<double>(rows.size());
            for (const std::size_t t : truth.candidates(h / truth.group)) {
                double mean = 0, squares = 0;
                for (const auto& row : rows) { mean += row[t] / queries; }
                for (const auto& row : rows) {
                    squares += (row[t] - mean) * (row[t] - mean);
                    entropy -= row[t] * std::log(row[t] + 1e-10);
                }
                variance += rows.size() > 1 ? squares / (queries - 1) : 0;
            }
        }
        double got = -1;
        growing_workspace memory;
        const status s = spread.measure(data.inputs(), request, got, memory);
        CAPTURE(i, s.what());
        REQUIRE(s.ok());
        // A negative entropy (weights of exactly 1) has no root: the library's answer is what std::pow gives.
        if (entropy <= 1e-6 || variance <= 1e-9) { continue; }
        const double expected = std::pow(entropy, 1 / spread.tau1) * std::pow(variance, 1 / spread.tau2);
        CHECK(std::abs(got - expected) <= 2e-3 * expected);
    }
}

TEST_CASE("layer_preference: bad input leaves the preference as it was", "[score][errors]") {
    const layer_data data = random_layer({.tokens = 40, .queries = 4}, 952);
    const eviction_request request{.budget = per_head(20), .protect = {.window_tokens = 4}};
    double preference = 7;
    growing_workspace memory;
    const auto answer = [&](const layer_preference& p) {
        return p.measure(data.inputs(), request, preference, memory);
    };
    CHECK(answer({.tau1 = 0}).code() == errc::invalid_parameter);
    CHECK(answer({.tau2 = -1}).code() == errc::invalid_parameter);
    workspace none(std::span<std::byte>{});
    const status s = layer_preference{}.measure(data.inputs(), request, preference, none);
    CHECK(s.code() == errc::workspace_too_small);
    CHECK(s.needed() == layer_preference{}.workspace_bytes(data.inputs(), request));
    CHECK(preference == 7);
}

TEST_CASE("layer_preference: what its workspace held before does not matter", "[score]") {
    const layer_data data = random_layer({.tokens = 40, .queries = 4}, 953);
    const eviction_request request{.budget = per_head(20), .protect = {.window_tokens = 4}};
    double expected = -1;
    growing_workspace memory;
    REQUIRE(layer_preference{}.measure(data.inputs(), request, expected, memory).ok());
    for (const std::byte before : {std::byte{0x01}, std::byte{0xff}}) {
        const index_t size = layer_preference{}.workspace_bytes(data.inputs(), request) + 64;
        std::vector<std::byte> bytes(static_cast<std::size_t>(size), before);
        workspace scratch(bytes);
        double got = -1;
        CHECK(layer_preference{}.measure(data.inputs(), request, got, scratch).ok());
        CHECK(got == expected);
    }
}
