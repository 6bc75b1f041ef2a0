// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Policies whose budget is dealt out over the layers.
//
//   layer_ada_snapkv    SnapKV's scores, all (layer, KV head) rows compete                 2407.11550, over layers
//   layer_defensivekv   DefensiveKV's scores, likewise                                     2510.13334
//   pyramidkv           SnapKV per layer; budgets fall from the first layer to the last    2406.02069
//   cake                mean and variance of attention; budgets follow each layer's spread 2503.12491
//
//     auto policy = kvtrim::layer_defensivekv();
//     policy.plan(layers, request, plans, memory);                            // every cache is there
//     auto cascade = policy.begin(layers[0], request, layer_count);           // or layer by layer:
//     policy.push(layers[l], request, layer_count, cascade, memory);          // cascade.plan(k, ...) says what goes
//
// pyramidkv() and cake() are policies for one layer: give each layer's request the budget that pyramid or preference
// (model/layer_budgets.hpp) found for it.
//
// The first two keep the best `safeguard_ratio` of an even share in every row. The authors keep none beyond the window;
// with few, specialised layers that starves some of them (README, Measured).

#include <kvtrim/aggregate/dispersion.hpp>
#include <kvtrim/model/layer_budgets.hpp>
#include <kvtrim/model/layer_wise.hpp>
#include <kvtrim/policy/defensivekv.hpp>
#include <kvtrim/policy/snapkv.hpp>
#include <kvtrim/score/layer_preference.hpp>

namespace kvtrim {

inline constexpr double layer_safeguard_ratio = 0.9;

[[nodiscard]] constexpr auto layer_ada_snapkv(const mean_attention& aggregator = {},
                                              double safeguard_ratio = layer_safeguard_ratio) {
    return layer_wise{ada_snapkv(aggregator, adaptive{.safeguard_ratio = safeguard_ratio})};
}

[[nodiscard]] constexpr auto layer_defensivekv(defensivekv_config c = {
                                                   .safeguard_ratio = layer_safeguard_ratio}) {
    return layer_wise{defensivekv(c)};
}

[[nodiscard]] constexpr auto pyramidkv(const mean_attention& aggregator = {}) {
    return snapkv(aggregator);
}

[[nodiscard]] constexpr auto cake(const mean_variance_attention& aggregator = {}) {
    return eviction_policy{window_attention{aggregator}, uniform{}, one_stage{}};
}

} // namespace kvtrim
