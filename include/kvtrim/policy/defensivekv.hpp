// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// DefensiveKV: worst-case attention over the window, floored by its mean, times the head-normalised projected
// value norm; the most attended tokens first, then one competition of all heads of the layer.
//
// Needs values, queries and W_O or its Gram view. Source: DefensiveKV, arXiv:2510.13334, Alg. 1;
// FFY0/DefensiveKV@9251b95 efficient_defensivekv_press.py (window 32, kernel 5, threshold 0.9).
//
// Departures from the authors' code (each is a defect there; golden `compat` = "paper" is what this computes):
//   D1  attention on the window is the window's own, per KV head, not that of the tokens before it
//   D2  the cumulative mass is compared in units of the whole attention
//   D3  the token that crosses the threshold counts
//   D4  the limit of pass one is the head's even share of the budget after the window
//   D5  a limit below zero is zero (there: nearly every token is forced)
//   D6  norms are normalised over the tokens of a head, not over the heads of a token
//   D7  forced tokens and the window outrank every score; they tie with nothing
//   D8  W_O of the right head, for any sequence and hidden size
//   D9  the mass on the window is always known: attention is computed here
//   D10 ragged caches can be cut again (cache/ragged.hpp)
//
// One default is ours: pass one takes at most half of the even budget (CriticalKV's share). With the authors'
// rule it takes nearly all of it wherever 90 % of the mass need more tokens than the budget, and little is left
// for the defensive score to decide. On running text of SmolLM2 no limit is a little better, on the demo's model it
// loses answers, most of all freqword's (docs/quality.md, Defaults; docs/demo-results.md): first_at_most = 1.

#include <kvtrim/aggregate/worst_case_attention.hpp>
#include <kvtrim/allocate/adaptive.hpp>
#include <kvtrim/policy/eviction_policy.hpp>
#include <kvtrim/rerank/two_stage.hpp>
#include <kvtrim/score/projected_norm_weighted.hpp>
#include <kvtrim/score/window_attention.hpp>

namespace KVTRIM_NAMESPACE {

/// Settings of defensivekv().
struct defensivekv_config {
    worst_case_attention attention = {};     ///< kernel 5, floor at the mean
    norm_scope scope = norm_scope::per_head; ///< how projected value norms are normalised
    double attention_mass = 0.9;             ///< threshold of pass one; reference 0.9
    double first_at_most = 0.5;              ///< cap on pass one, as a share of the even budget; reference 1
    double safeguard_ratio = 0.0;            ///< tokens of every head that do not compete; reference none
};

/// DefensiveKV, arXiv:2510.13334. Needs values, queries and W_O or its Gram view.
[[nodiscard]] constexpr auto defensivekv(const defensivekv_config& c = {}) {
    return eviction_policy{
        projected_norm_weighted<window_attention<worst_case_attention>>{{c.attention}, 0.0f, false, c.scope},
        adaptive{.safeguard_ratio = c.safeguard_ratio},
        two_stage_by_mass{.attention_mass = c.attention_mass, .first_at_most = c.first_at_most}};
}

} // namespace KVTRIM_NAMESPACE
