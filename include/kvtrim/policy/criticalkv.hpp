// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// CriticalKV: half of each head's budget goes to the most attended tokens, the rest to attention times the projected value
// norm.
//
//   criticalkv      the same budget for each KV head
//   ada_criticalkv  budgets from Ada-KV on the attention scores, then the two passes inside each head
//
// Needs values, queries and W_O [q_heads, head_dim, hidden] or its Gram view
// (score/projected_value_norms.hpp). Source: CriticalKV, arXiv:2502.03805, Alg. 1; checked against
// kvpress@8bb29b9 criticalkv_press.py through the golden vectors.
// Departures: pass one is a mark, not a large score; the window is protected, not scored; budgets belong to one
// sequence; pass one takes its share of the head's own rounded budget.

#include <kvtrim/policy/snapkv.hpp>
#include <kvtrim/rerank/two_stage.hpp>
#include <kvtrim/score/projected_norm_weighted.hpp>

namespace KVTRIM_NAMESPACE {

/// Settings of both policies.
struct criticalkv_config {
    mean_attention attention = {}; ///< as SnapKV
    double first_ratio = 0.5;      ///< share of the budget taken by attention alone; reference 0.5
    float epsilon = 1e-4f;         ///< added to a score before it is weighted; reference 1e-4
    bool epsilon_relative = false; ///< in units of the head's mean score, which falls with the context length
};

/// The same budget for each KV head. Needs values, queries and W_O.
[[nodiscard]] constexpr auto criticalkv(const criticalkv_config& c = {}) {
    return eviction_policy{projected_norm_weighted<window_attention<mean_attention>>{
                               {c.attention}, c.epsilon, c.epsilon_relative},
                           uniform{}, two_stage{.first_ratio = c.first_ratio}};
}

/// Heads compete for the layer's budget. Any allocator. Needs values, queries and W_O.
template <class Allocator = adaptive>
[[nodiscard]] constexpr auto ada_criticalkv(const criticalkv_config& c = {},
                                            const Allocator& allocator = {}) {
    return eviction_policy{projected_norm_weighted<window_attention<mean_attention>>{
                               {c.attention}, c.epsilon, c.epsilon_relative},
                           allocator, two_stage{.first_ratio = c.first_ratio}};
}

} // namespace KVTRIM_NAMESPACE
