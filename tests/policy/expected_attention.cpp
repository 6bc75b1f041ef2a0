// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/expected_attention.hpp>

#include <kvtrim/allocate/adaptive.hpp>

#include "support/policy_oracle.hpp"

using namespace kvtrim;
using namespace support;

TEST_CASE("expected_attention: sinks stay, tokens that the mean query wants stay, small values go",
          "[policy]") {
    // Queries along x, no rotation; keys along x are wanted, every third value is tiny.
    const index_t tokens = 30;
    std::vector<float> q(static_cast<std::size_t>(tokens * 2), 0.0f);
    for (std::size_t i = 0; i < q.size(); i += 2) { q[i] = 2.0f; }
    query_statistics statistics(1, 2);
    growing_workspace memory;
    workspace scratch = memory.of_bytes(statistics.workspace_bytes());
    REQUIRE(statistics.add(view(q.data(), {1, tokens, 2}), scratch).ok());
    std::vector<float> k(static_cast<std::size_t>(tokens * 2), 0.0f);
    std::vector<float> v(static_cast<std::size_t>(tokens * 2), 1.0f);
    for (std::size_t t = 12; t < 18; ++t) { k[2 * t] = 5.0f; }
    for (std::size_t t = 12; t < 18; t += 3) { v[2 * t] = v[2 * t + 1] = 1e-3f; }
    const auto in = kvtrim::layer(view(k.data(), {1, tokens, 2}), view(v.data(), {1, tokens, 2}));
    const eviction_request request{.budget = per_head(8), .protect = {.sink_tokens = 4}};
    const trace t = run(expected_attention(statistics, {}), in, request);
    REQUIRE(t.answer.ok());
    CHECK(kept_sets(t.plan)[0] == oracle::token_set{0, 1, 2, 3, 13, 14, 16, 17});
}

TEST_CASE("expected_attention: any allocator deals out its budgets", "[policy]") {
    const layer_data layer = random_layer({.kv_heads = 3, .group = 2, .tokens = 90, .queries = 60}, 7);
    query_statistics statistics(6, 16);
    growing_workspace memory;
    workspace scratch = memory.of_bytes(statistics.workspace_bytes());
    REQUIRE(statistics.add(layer.queries(), scratch).ok());
    const eviction_request request{.budget = per_head(30), .protect = {.sink_tokens = 4}};
    const trace even = run(expected_attention(statistics, {}), layer.inputs(), request);
    const trace uneven = run(expected_attention(statistics, {}, {}, adaptive{}), layer.inputs(), request);
    CHECK(even.budgets == std::vector<index_t>(3, 26));
    CHECK(std::accumulate(uneven.budgets.begin(), uneven.budgets.end(), index_t{0}) == 78);
    CHECK(uneven.budgets != even.budgets);
}

TEST_CASE("expected_attention: bad input is named with the plan untouched", "[policy][errors]") {
    const layer_data layer = random_layer({}, 7);
    const query_statistics statistics(4, 16);
    const eviction_request request{.budget = per_head(30)};
    require_refusal(expected_attention(statistics, {}, {.future_positions = 0}), layer.inputs(), request,
                    errc::invalid_parameter);
    require_refusal(expected_attention(statistics, {}, {.epsilon = -1}), layer.inputs(), request,
                    errc::invalid_parameter);
    const query_statistics three(3, 16);
    require_refusal(expected_attention(three, {}), layer.inputs(), request, errc::heads_not_divisible);
}
