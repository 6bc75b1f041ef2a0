// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/snapkv.hpp>

#include <kvtrim/allocate/blended.hpp>

#include "support/policy_oracle.hpp"

using namespace kvtrim;
using namespace support;

namespace {

struct mean_pair {
    mean_attention fast;
    oracle::snapkv_setup slow;
};

constexpr mean_pair defaults{};
constexpr mean_pair adakv_repository{
    {pooling::maximum, 7, group_reduction::mean, pooling_order::group_then_pool},
    {oracle::pool_kind::maximum, 7, oracle::reduction::mean, false}};
constexpr mean_pair group_maximum{{pooling::average, 3, group_reduction::maximum},
                                  {oracle::pool_kind::average, 3, oracle::reduction::maximum}};
constexpr mean_pair unpooled_sum{{.pool = pooling::none, .queries = query_normalisation::sum},
                                 {.pool = oracle::pool_kind::none, .queries = oracle::query_average::sum}};

} // namespace

TEST_CASE("snapkv: the kept tokens are the oracle's for random layers and requests", "[policy][oracle]") {
    comparison count;
    for_random_layers(
        201, 80, [&](const layer_data& layer, const eviction_request& request, support::random& r) {
            const mean_pair mean = r.one_of({defaults, adakv_repository, group_maximum, unpooled_sum});
            compare_with_oracle(snapkv(mean.fast), layer, request, count,
                                [&](const layer_oracle& slow, std::size_t total, oracle::near_ties& ties) {
                                    const auto scores = slow.snapkv(mean.slow);
                                    const auto budgets =
                                        oracle::uniform_budgets(oracle::lengths(scores), total);
                                    return best_of_rows(scores, budgets, ties);
                                });
        });
    CHECK(count.compared >= 70);
}

TEST_CASE("ada_snapkv: the kept tokens are the oracle's for random layers, requests and safeguards",
          "[policy][oracle]") {
    comparison count;
    for_random_layers(
        202, 80, [&](const layer_data& layer, const eviction_request& request, support::random& r) {
            const mean_pair mean = r.one_of({defaults, adakv_repository, group_maximum});
            const double safeguard = r.one_of({0.0, 0.2, 0.5, 1.0});
            compare_with_oracle(
                ada_snapkv(mean.fast, adaptive{.safeguard_ratio = safeguard}), layer, request, count,
                [&](const layer_oracle& slow, std::size_t total, oracle::near_ties& ties) {
                    const auto scores = slow.snapkv(mean.slow);
                    const std::size_t forced = share_of(total, scores.size(), safeguard);
                    return best_of_rows(scores, oracle::adaptive_budgets(scores, total, forced, ties), ties);
                });
        });
    CHECK(count.compared >= 70);
}

TEST_CASE("ada_snapkv: with the blended allocator the kept tokens are the oracle's", "[policy][oracle]") {
    comparison count;
    for_random_layers(
        203, 60, [&](const layer_data& layer, const eviction_request& request, support::random& r) {
            const mean_pair mean = r.one_of({defaults, adakv_repository});
            const blended blend{.floor_ratio = r.one_of({0.2, 0.5}),
                                .weight_by_kept_mass = r.chance(0.5),
                                .rounding =
                                    r.chance(0.7) ? budget_rounding::exact : budget_rounding::authors};
            compare_with_oracle(ada_snapkv(mean.fast, blend), layer, request, count,
                                [&](const layer_oracle& slow, std::size_t total, oracle::near_ties& ties) {
                                    const auto scores = slow.snapkv(mean.slow);
                                    const auto budgets =
                                        oracle::blended_budgets(scores, total,
                                                                {blend.floor_ratio, blend.weight_by_kept_mass,
                                                                 blend.rounding == budget_rounding::exact},
                                                                ties);
                                    return best_of_rows(scores, budgets, ties);
                                });
        });
    CHECK(count.compared >= 50);
}

TEST_CASE("snapkv: the defaults are the published ones", "[policy][paper]") {
    constexpr auto policy = snapkv();
    CHECK(policy.scorer.aggregator.kernel_tokens == 5);
    CHECK(policy.scorer.aggregator.pool == pooling::average);
    CHECK(policy.scorer.aggregator.group == group_reduction::mean);
    CHECK(policy.scorer.newest_queries == 0);
    CHECK(ada_snapkv().allocator.safeguard_ratio == 0.2);
}
