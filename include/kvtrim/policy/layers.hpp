// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Policies whose budget is dealt out over the layers.
//
//   layer_ada_snapkv    SnapKV's scores, all (layer, KV head) rows compete                 2407.11550, over layers
//   layer_defensivekv   DefensiveKV's scores, likewise                                     2510.13334
//   pyramidkv           SnapKV's scores; budgets fall from the first layer to the last     2406.02069
//   cake                mean and variance of attention; budgets follow each layer's spread 2503.12491
//   with_layer_shares   any policy for one layer; budgets follow a table of shares          with such: LU-KV, 2602.08585
//
//     auto policy = kvtrim::layer_defensivekv();
//     policy.plan(layers, request, plans, memory);                            // every cache is there
//     auto cascade = policy.begin(layers[0], request, layer_count);           // or layer by layer:
//     policy.push(layers[l], request, layer_count, cascade, memory);          // cascade.plan(k, ...) says what goes
//
// The shares of cake() are each layer's preference (score/layer_preference.hpp), measured when the layer's prompt has run.
//
// The first two keep the best `safeguard_ratio` of an even share in every row. The authors keep none beyond the window (0), which is
// best where layers are many; with few, specialised ones some of them keep too little. The default loses little on either kind
// (docs/quality.md, Defaults).

#include <kvtrim/aggregate/dispersion_attention.hpp>
#include <kvtrim/allocate/layer_shares.hpp>
#include <kvtrim/policy/defensivekv.hpp>
#include <kvtrim/policy/layer_wise.hpp>
#include <kvtrim/policy/snapkv.hpp>
#include <kvtrim/score/layer_preference.hpp>

namespace KVTRIM_NAMESPACE {

inline constexpr double layer_safeguard_ratio = 0.7; ///< share of an even budget that is safe in every row

/// Ada-KV, arXiv:2407.11550, over layers: SnapKV's scores; all (layer, KV head) rows compete. Needs queries.
[[nodiscard]] constexpr auto layer_ada_snapkv(const mean_attention& aggregator = {},
                                              double safeguard_ratio = layer_safeguard_ratio) {
    return layer_wise{ada_snapkv(aggregator, adaptive{.safeguard_ratio = safeguard_ratio})};
}

/// Layer-DefensiveKV, arXiv:2510.13334: all (layer, KV head) rows compete. Needs values, queries and W_O or its Gram view.
[[nodiscard]] constexpr auto layer_defensivekv(defensivekv_config c = {
                                                   .safeguard_ratio = layer_safeguard_ratio}) {
    return layer_wise{defensivekv(c)};
}

/// PyramidKV, arXiv:2406.02069: SnapKV's scores; budgets that fall from the first layer to the last. Needs queries.
[[nodiscard]] constexpr auto pyramidkv(const mean_attention& aggregator = {},
                                       const pyramid_shares& shares = {}) {
    return layer_wise{eviction_policy{window_attention{aggregator}, shares, by_importance{}}};
}

/// CAKE, arXiv:2503.12491. Needs queries. shares [layers] are read when the policy plans, and must live until then.
[[nodiscard]] constexpr auto cake(std::span<const double> shares,
                                  const mean_variance_attention& aggregator = {}) {
    return layer_wise{eviction_policy{window_attention{aggregator}, layer_shares{shares}, by_importance{}}};
}

/// The scorer and the reranker of a policy for one layer, each layer with its share of the budget, or each (layer, KV head):
/// shares [layers] or [layers * kv_heads], which must live until it plans (allocate/layer_shares.hpp).
template <class Scorer, class Allocator, class Reranker>
[[nodiscard]] constexpr auto with_layer_shares(const eviction_policy<Scorer, Allocator, Reranker>& policy,
                                               std::span<const double> shares) {
    return layer_wise{eviction_policy{policy.scorer, layer_shares{shares}, policy.reranker}};
}

} // namespace KVTRIM_NAMESPACE
