// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/score/value_norm_weighted.hpp>

#include <kvtrim/score/random_score.hpp>
#include <kvtrim/score/recency.hpp>

#include "support/checks.hpp"

#include <cmath>

using namespace kvtrim;
using namespace support;

TEST_CASE("value_norm_weighted: scores equal (s + epsilon) * || v ||_2 for random shapes",
          "[score][oracle]") {
    support::random r(511);
    std::vector<float> sinks;
    for (std::uint64_t seed = 0; seed < 40; ++seed) {
        const layer_data layer = random_layer(random_shape(r), 5100 + seed);
        const eviction_request request = random_request(r, layer.shape, sinks);
        const value_norm_weighted<random_score> scorer{{seed}, r.one_of({0.0f, 0.02f})};
        const auto in = kvtrim::layer(layer.keys(), layer.values());
        score_memory bare = score_layer(random_score{seed}, in, request);
        const layer_oracle slow(layer.inputs(), request);
        oracle::matrix expected;
        for (std::size_t g = 0; g < slow.heads(); ++g) {
            oracle::row row;
            for (const std::size_t t : slow.candidates(g)) {
                const float s = bare.importance_rows().row(static_cast<index_t>(g))[row.size()];
                const oracle::row& v = slow.values[g][t];
                row.push_back((static_cast<double>(s) + static_cast<double>(scorer.epsilon)) *
                              std::sqrt(oracle::dot(v, v)));
            }
            expected.push_back(row);
        }
        CAPTURE(seed, layer.shape.tokens, layer.shape.value_dim);
        score_memory got = score_layer(scorer, in, request);
        CHECK(difference(got.importance_rows(), expected) == "");
    }
}

TEST_CASE("value_norm_weighted: bad input is named, a small workspace refused with nothing written",
          "[score][errors]") {
    const layer_data layer = random_layer({}, 1);
    for (const float epsilon :
         {-1.0f, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        const value_norm_weighted<recency> scorer{{}, epsilon};
        CHECK(scorer.validate(layer.inputs(), {}).code() == errc::invalid_parameter);
    }
    const value_norm_weighted<recency> scorer;
    score_memory memory(layer.inputs(), {});
    workspace none({});
    serial_executor ex;
    const status s = scorer.score(layer.inputs(), {}, memory.get(), none, ex);
    CHECK(s.code() == errc::workspace_too_small);
    CHECK(s.needed() == scorer.workspace_bytes(layer.inputs(), {}));
    CHECK(memory.is_untouched());
}
