// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include "support/named_policies.hpp"
#include "support/policy_oracle.hpp"

#include <kvtrim/measure/eviction_loss.hpp>

using namespace kvtrim;
using namespace support;

namespace {

// Kept mass is summed in float.
constexpr double rounding = 1e-5;

void check_bounds(const layer_data& layer, const eviction_request& request, const keep_plan& plan) {
    eviction_loss loss;
    const status s = measure_eviction(layer.inputs(), request, plan, loss);
    REQUIRE(s.ok());
    for (std::size_t h = 0; h < loss.kept_mass.size(); ++h) {
        CHECK(loss.kept_mass[h] >= 0.0);
        CHECK(loss.kept_mass[h] <= 1.0 + 1e-12);
        CHECK(loss.evicted_mass[h] >= 0.0);
        const double both = loss.kept_mass[h] + loss.evicted_mass[h];
        CHECK(both <= 1.0 + rounding);
        if (request.attention.sink_logits.empty()) { CHECK(both >= 1.0 - rounding); }
    }
    CHECK(loss.layer_error >= 0.0);
    CHECK(loss.layer_error <= loss.layer_bound + rounding * (1.0 + loss.layer_error));
    // The error of a sum of heads is at most the sum of their errors.
    const double sum = oracle::sum(loss.error_projected);
    CHECK(loss.layer_error <= sum * (1.0 + rounding) + rounding);
}

} // namespace

TEST_CASE("Ada-KV's bound holds and kept mass is a share, for the plan of every policy",
          "[properties][measure]") {
    for_random_layers(461, 12,
                      [](const layer_data& layer, const eviction_request& request, support::random&) {
                          for (const named_policy& policy : named_policies()) {
                              CAPTURE(policy.name);
                              check_bounds(layer, request, policy(layer.inputs(), request).plan);
                          }
                      });
}

TEST_CASE("Ada-KV's bound holds and kept mass is a share, for any plan at all", "[properties][measure]") {
    for_random_layers(462, 40,
                      [](const layer_data& layer, const eviction_request& request, support::random& r) {
                          std::vector<oracle::token_set> sets;
                          for (index_t g = 0; g < layer.shape.kv_heads; ++g) {
                              const double share = r.uniform();
                              oracle::token_set set;
                              for (std::size_t t = 0; t < static_cast<std::size_t>(layer.shape.tokens); ++t) {
                                  if (r.chance(share)) { set.push_back(t); }
                              }
                              sets.push_back(set);
                          }
                          check_bounds(layer, request, plan_of(sets));
                      });
}

TEST_CASE("Ada-KV's bound holds with sink logits of any size, and error and bound are those of two softmaxes",
          "[properties][measure]") {
    for_random_layers(464, 30, [](const layer_data& layer, eviction_request request, support::random& r) {
        std::vector<float> sinks;
        for (index_t h = 0; h < layer.shape.q_heads(); ++h) {
            sinks.push_back(static_cast<float>(r.one_of({-30.0, 0.0, 3.0, 8.0}) + r.normal()));
        }
        request.attention.sink_logits = sinks;
        std::vector<oracle::token_set> sets;
        for (index_t g = 0; g < layer.shape.kv_heads; ++g) {
            const double share = r.one_of({0.0, 0.02, 0.5, 0.98});
            oracle::token_set set;
            for (std::size_t t = 0; t < static_cast<std::size_t>(layer.shape.tokens); ++t) {
                if (r.chance(share)) { set.push_back(t); }
            }
            sets.push_back(set);
        }
        check_bounds(layer, request, plan_of(sets));
        const layer_oracle slow(layer.inputs(), request);
        const auto expected =
            oracle::eviction_loss(slow.queries, slow.keys, slow.values, slow.w_o, sets, slow.setup);
        CHECK(expected.layer_error <= expected.layer_bound * (1 + 1e-12));
        eviction_loss loss;
        REQUIRE(measure_eviction(layer.inputs(), request, plan_of(sets), loss).ok());
        CHECK(loss.layer_error == Approx(expected.layer_error).epsilon(1e-4).margin(1e-4));
        CHECK(loss.layer_bound == Approx(expected.layer_bound).epsilon(1e-4).margin(1e-4));
    });
}

TEST_CASE("keeping more never lowers the kept mass of a head", "[properties][measure]") {
    for_random_layers(463, 10, [](const layer_data& layer, eviction_request request, support::random&) {
        const auto in = layer.inputs();
        std::vector<double> before(static_cast<std::size_t>(layer.shape.q_heads()), 0.0);
        const index_t least = std::max<index_t>(1, request.protect.prefix() + request.protect.suffix());
        for (index_t budget = least; budget <= layer.shape.tokens; budget += 1 + layer.shape.tokens / 5) {
            request.budget = per_head(budget);
            eviction_loss loss;
            REQUIRE(measure_eviction(in, request, named_policies()[0](in, request).plan, loss).ok());
            for (std::size_t h = 0; h < before.size(); ++h) {
                CHECK(loss.kept_mass[h] >= before[h] - rounding);
            }
            before = loss.kept_mass;
        }
    });
}
