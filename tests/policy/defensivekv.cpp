// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/defensivekv.hpp>

#include "support/policy_oracle.hpp"

using namespace kvtrim;
using namespace support;

namespace {

// Alg. 1 in one piece.
column_sets slow_defensivekv(const layer_oracle& slow, const defensivekv_config& c, std::size_t total,
                             oracle::near_ties& ties) {
    oracle::matrix importance;
    oracle::matrix attention;
    for (std::size_t g = 0; g < slow.heads(); ++g) {
        const auto scores = oracle::worst_case(slow.attention, slow.group, g, slow.candidates(g),
                                               static_cast<std::size_t>(c.attention.kernel_tokens),
                                               static_cast<double>(c.attention.floor_weight));
        importance.push_back(scores.aggregated);
        attention.push_back(scores.attention);
    }
    oracle::matrix norms = slow.norms();
    if (c.scope == norm_scope::per_head) { norms = oracle::per_head(norms); }
    if (c.scope == norm_scope::per_token) { norms = oracle::per_token(norms); }
    importance = oracle::weighted(importance, norms, 0);

    // Pass one outranks every score, in every head.
    const std::size_t limit = share_of(total, slow.heads(), c.first_at_most);
    for (std::size_t g = 0; g < slow.heads(); ++g) {
        const double held = oracle::protected_mass(slow.attention, slow.group, g, slow.protect);
        const std::size_t first = oracle::pass_one_count(attention[g], c.attention_mass, held, limit, ties);
        ties.cut(attention[g], first);
        for (const std::size_t column : oracle::top_k(attention[g], first)) {
            importance[g][column] = std::numeric_limits<double>::infinity();
        }
    }
    const auto budgets =
        oracle::adaptive_budgets(importance, total, share_of(total, slow.heads(), c.safeguard_ratio), ties);
    return best_of_rows(importance, budgets, ties);
}

} // namespace

TEST_CASE("defensivekv: the kept tokens are the oracle's for random layers and requests",
          "[policy][oracle]") {
    comparison count;
    for_random_layers(
        221, 80, [&](const layer_data& layer, const eviction_request& request, support::random&) {
            compare_with_oracle(defensivekv(), layer, request, count,
                                [&](const layer_oracle& slow, std::size_t total, oracle::near_ties& ties) {
                                    return slow_defensivekv(slow, {}, total, ties);
                                });
        });
    CHECK(count.compared >= 70);
}

TEST_CASE("defensivekv: the kept tokens are the oracle's for every field of the configuration",
          "[policy][oracle]") {
    comparison count;
    for_random_layers(
        222, 80, [&](const layer_data& layer, const eviction_request& request, support::random& r) {
            defensivekv_config c;
            c.attention.kernel_tokens = r.one_of({1, 3, 5, 11});
            c.attention.floor_weight = r.one_of({0.0f, 0.5f, 1.0f});
            c.scope = r.one_of({norm_scope::raw, norm_scope::per_head, norm_scope::per_token});
            c.attention_mass = r.one_of({0.0, 0.3, 0.6, 0.9});
            c.first_at_most = r.one_of({0.0, 0.2, 0.5, 1.0});
            c.safeguard_ratio = r.one_of({0.0, 0.2, 0.5});
            compare_with_oracle(defensivekv(c), layer, request, count,
                                [&](const layer_oracle& slow, std::size_t total, oracle::near_ties& ties) {
                                    return slow_defensivekv(slow, c, total, ties);
                                });
        });
    CHECK(count.compared >= 70);
}

TEST_CASE("defensivekv: bad fields are refused with the plan unchanged", "[policy][errors]") {
    const layer_data layer = random_layer({}, 1);
    const auto in = layer.inputs();
    const eviction_request request{.budget = per_head(20), .protect = {.window_tokens = 8}};
    require_refusal(defensivekv({.attention = {.kernel_tokens = 4}}), in, request, errc::invalid_parameter);
    require_refusal(defensivekv({.attention = {.floor_weight = -1.0f}}), in, request,
                    errc::invalid_parameter);
    require_refusal(defensivekv({.attention_mass = 1.5}), in, request, errc::ratio_out_of_range);
    require_refusal(defensivekv({.first_at_most = -0.5}), in, request, errc::ratio_out_of_range);
    require_refusal(defensivekv({.safeguard_ratio = 2}), in, request, errc::ratio_out_of_range);

    const ragged_cache keys(layer.keys(), {100, 60});
    const ragged_cache values(layer.values(), {100, 60});
    const auto ragged = kvtrim::layer(keys.get(), values.get())
                            .with_queries(layer.queries())
                            .with_output_projection(layer.projection());
    require_refusal(defensivekv({.scope = norm_scope::per_token}), ragged, request, errc::rows_differ);
}

TEST_CASE("defensivekv: the defaults are the published ones, but for the cap on pass one",
          "[policy][paper]") {
    constexpr defensivekv_config c;
    CHECK(c.attention.kernel_tokens == 5);
    CHECK(c.attention.floor_weight == 1.0f);
    CHECK(c.attention_mass == 0.9);
    CHECK(c.first_at_most == 0.5);
    CHECK(c.safeguard_ratio == 0.0);
    CHECK(c.scope == norm_scope::per_head);
    CHECK(defensivekv().scorer.epsilon == 0.0f);
}
