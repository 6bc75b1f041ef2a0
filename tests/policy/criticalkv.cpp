// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/criticalkv.hpp>

#include "support/policy_oracle.hpp"

using namespace kvtrim;
using namespace support;

namespace {

criticalkv_config random_config(support::random& r) {
    criticalkv_config c;
    c.first_ratio = r.one_of({0.0, 0.5, 0.8, 1.0});
    c.epsilon = r.one_of({0.0f, 1e-4f, 0.01f});
    c.epsilon_relative = r.chance(0.5);
    if (r.chance(0.3)) { c.attention.kernel_tokens = 1; }
    return c;
}

column_sets two_stages(const oracle::matrix& attention, const oracle::matrix& norms,
                       const criticalkv_config& c, const oracle::counts& budgets, oracle::near_ties& ties) {
    const auto importance =
        oracle::weighted(attention, norms, static_cast<double>(c.epsilon), c.epsilon_relative);
    column_sets kept;
    for (std::size_t g = 0; g < budgets.size(); ++g) {
        const std::size_t first =
            static_cast<std::size_t>(std::llround(10 * c.first_ratio)) * budgets[g] / 10;
        kept.push_back(oracle::two_stage(attention[g], importance[g], first, budgets[g], ties));
    }
    return kept;
}

oracle::matrix attention_of(const layer_oracle& slow, const criticalkv_config& c) {
    return slow.snapkv({.kernel = static_cast<std::size_t>(c.attention.kernel_tokens)});
}

} // namespace

TEST_CASE("criticalkv: the kept tokens are the oracle's for random layers, requests and configurations",
          "[policy][oracle]") {
    comparison count;
    for_random_layers(
        211, 60, [&](const layer_data& layer, const eviction_request& request, support::random& r) {
            const criticalkv_config c = random_config(r);
            compare_with_oracle(criticalkv(c), layer, request, count,
                                [&](const layer_oracle& slow, std::size_t total, oracle::near_ties& ties) {
                                    const auto attention = attention_of(slow, c);
                                    const auto budgets =
                                        oracle::uniform_budgets(oracle::lengths(attention), total);
                                    return two_stages(attention, slow.norms(), c, budgets, ties);
                                });
        });
    CHECK(count.compared >= 50);
}

TEST_CASE("ada_criticalkv: budgets come from attention, the tokens from the two passes", "[policy][oracle]") {
    comparison count;
    for_random_layers(
        212, 60, [&](const layer_data& layer, const eviction_request& request, support::random& r) {
            const criticalkv_config c = random_config(r);
            const double safeguard = r.one_of({0.0, 0.2, 0.5});
            compare_with_oracle(ada_criticalkv(c, adaptive{.safeguard_ratio = safeguard}), layer, request,
                                count,
                                [&](const layer_oracle& slow, std::size_t total, oracle::near_ties& ties) {
                                    const auto attention = attention_of(slow, c);
                                    const auto budgets = oracle::adaptive_budgets(
                                        attention, total, share_of(total, attention.size(), safeguard), ties);
                                    return two_stages(attention, slow.norms(), c, budgets, ties);
                                });
        });
    CHECK(count.compared >= 50);
}

TEST_CASE("criticalkv: a Gram view of W_O chooses by the L2 norm", "[policy][oracle]") {
    comparison count;
    const criticalkv_config c;
    for_random_layers(
        213, 30, [&](const layer_data& layer, const eviction_request& request, support::random&) {
            const gram_projection gram(layer.projection());
            const auto in = layer.inputs().with_output_projection(gram.view());
            const trace fast = run(criticalkv(c), in, request);
            REQUIRE(fast.answer.ok());
            const layer_oracle slow(layer.inputs(), request);
            const auto attention = attention_of(slow, c);
            oracle::near_ties ties;
            const auto budgets = oracle::uniform_budgets(oracle::lengths(attention),
                                                         slow.total(request.budget.total(in.kv_heads())));
            const auto columns = two_stages(attention, slow.norms(oracle::norm_kind::l2), c, budgets, ties);
            if (ties.rounding_may_decide()) { return; }
            for (std::size_t g = 0; g < columns.size(); ++g) {
                REQUIRE(kept_sets(fast.plan)[g] ==
                        oracle::with_protected(slow.protect, slow.keys[g].size(), columns[g]));
            }
            ++count.compared;
        });
    CHECK(count.compared >= 25);
}

TEST_CASE("criticalkv: bad fields are refused with the plan unchanged", "[policy][errors]") {
    const layer_data layer = random_layer({}, 1);
    const eviction_request request{.budget = per_head(20), .protect = {.window_tokens = 8}};
    require_refusal(criticalkv({.first_ratio = 1.5}), layer.inputs(), request, errc::ratio_out_of_range);
    require_refusal(criticalkv({.epsilon = -1.0f}), layer.inputs(), request, errc::invalid_parameter);
    require_refusal(criticalkv({.attention = {.kernel_tokens = 2}}), layer.inputs(), request,
                    errc::invalid_parameter);
    require_refusal(ada_criticalkv({}, adaptive{.safeguard_ratio = -1}), layer.inputs(), request,
                    errc::ratio_out_of_range);
    const view five(layer.w.data(), {5, 16, 10});
    require_refusal(criticalkv(), layer.inputs().with_output_projection(five), request,
                    errc::heads_not_divisible);
}

TEST_CASE("criticalkv: the defaults are the published ones", "[policy][paper]") {
    constexpr criticalkv_config c;
    CHECK(c.first_ratio == 0.5);
    CHECK(c.epsilon == 1e-4f);
    CHECK_FALSE(c.epsilon_relative);
    CHECK(criticalkv().scorer.scope == norm_scope::raw);
    CHECK(ada_criticalkv().allocator.safeguard_ratio == 0.2);
}
