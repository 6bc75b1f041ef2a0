// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// An infinite epsilon made every score infinite, so that the lowest index won everywhere and the cut was blind: options are
// numbers from an engine's configuration, and one that is none is refused.

#include <kvtrim/kvtrim.hpp>

#include "support/policy_oracle.hpp"

#include <limits>

using namespace kvtrim;
using namespace support;

TEST_CASE("options: what is not a finite number, or negative, is refused with the plan unchanged",
          "[regression][errors]") {
    const layer_data layer = random_layer({}, 1);
    const float bad =
        GENERATE(std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -1.0f);
    const eviction_request request{.budget = per_head(20), .protect = {.window_tokens = 8}};
    const auto refuse = [&](const auto& policy, const eviction_request& asked, errc code) {
        require_refusal(policy, layer.inputs(), asked, code);
    };
    refuse(criticalkv({.first_ratio = bad}), request, errc::ratio_out_of_range);
    refuse(criticalkv({.epsilon = bad}), request, errc::invalid_parameter);
    refuse(defensivekv({.attention_mass = bad}), request, errc::ratio_out_of_range);
    refuse(defensivekv({.first_at_most = bad}), request, errc::ratio_out_of_range);
    refuse(defensivekv({.safeguard_ratio = bad}), request, errc::ratio_out_of_range);
    refuse(defensivekv({.attention = {.floor_weight = bad}}), request, errc::invalid_parameter);
    refuse(consensuskv({.lambda = bad}), request, errc::invalid_parameter);
    refuse(rkv({.importance_share = bad}), request, errc::invalid_parameter);
    refuse(rkv({.similar_above = bad}), request, errc::invalid_parameter);
    refuse(ada_snapkv({}, adaptive{.safeguard_ratio = bad}), request, errc::ratio_out_of_range);
    refuse(eviction_policy{window_attention<mean_variance_attention>{{.gamma = bad}}, uniform{},
                           by_importance{}},
           request, errc::invalid_parameter);
    refuse(eviction_policy{value_norm_weighted<recency>{{}, bad}, uniform{}, by_importance{}}, request,
           errc::invalid_parameter);
    eviction_request scaled = request, capped = request;
    scaled.attention.scale = bad;
    capped.attention.soft_cap = bad;
    refuse(snapkv(), scaled, errc::invalid_parameter);
    refuse(snapkv(), capped, errc::invalid_parameter);
}
