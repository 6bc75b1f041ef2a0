// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Policies that plan from a replay (score/replay_scores.hpp), of one layer or of all.
//
//   replay          the rows of a layer's heads compete for its budget                   2505.23416, non-uniform
//   layer_replay    the rows of all (layer, KV head) compete for the model's             2505.23416, as published
//                   after add_pass() what the prompt's own queries want from afar counts too (score/add_pass.hpp)
//   replay_uniform  every head keeps the best of its own                                 2505.23416, uniform
//   layer_afar      no replay: attention of the prompt's queries to tokens at least `nearest` before them, all rows compete
//   profiled        the same inside each row; the number of tokens per row comes from the model's table
//   dropkv          no replay: what the newest queries' outputs lose, one layer          kvpress, pull request 285
//   layer_dropkv    the same, the rows of all (layer, KV head) compete
//
// All but the last two take a replay_scores as the inputs of plan(), and need no tensor; the last two a layer with values, the
// newest queries and, if it is there, W_O. layer_afar and profiled are kvtrim's own; docs/tried.md says what they are worth.

#include <kvtrim/allocate/adaptive.hpp>
#include <kvtrim/allocate/row_profile.hpp>
#include <kvtrim/allocate/uniform.hpp>
#include <kvtrim/policy/eviction_policy.hpp>
#include <kvtrim/policy/layer_wise.hpp>
#include <kvtrim/rerank/by_importance.hpp>
#include <kvtrim/score/add_pass.hpp>
#include <kvtrim/score/replayed.hpp>

namespace KVTRIM_NAMESPACE {

/// KVzip's selection in one layer, arXiv:2505.23416: the rows of all heads compete for the layer's budget. safeguard_ratio
/// (0 to 1): share of an even budget that every head keeps.
[[nodiscard]] constexpr auto replay(double safeguard_ratio = 0.0) {
    return eviction_policy{replayed{}, adaptive{.safeguard_ratio = safeguard_ratio}, by_importance{}};
}

/// KVzip's non-uniform selection, arXiv:2505.23416: the rows of all (layer, KV head) compete for the model's budget.
/// safeguard_ratio as above.
[[nodiscard]] constexpr auto layer_replay(double safeguard_ratio = 0.0) {
    return layer_wise{replay(safeguard_ratio)};
}

/// KVzip's uniform selection, arXiv:2505.23416: every head keeps as many rows, the best of its own.
[[nodiscard]] constexpr auto replay_uniform() {
    return eviction_policy{replayed{}, uniform{}, by_importance{}};
}

/// By attention of the prompt's own queries to tokens at least `nearest` before them (replay_scores::add_own()); the rows of all
/// (layer, KV head) compete. Sums of squares are meant (token_loss::output_square_sum), with W_O divided by the length of the
/// residual stream. safeguard_ratio as above.
[[nodiscard]] constexpr auto layer_afar(index_t nearest = 32, double safeguard_ratio = 0.0) {
    return layer_wise{
        eviction_policy{replayed{nearest}, adaptive{.safeguard_ratio = safeguard_ratio}, by_importance{}}};
}

/// The same inside each row; the number of tokens per row comes from the model's table (allocate/row_profile.hpp).
/// budgets: of a row_profile over all (layer, KV head) rows, which must outlive the policy. nearest as above.
[[nodiscard]] constexpr auto profiled(const profiled_budgets& budgets, index_t nearest = 32) {
    return layer_wise{eviction_policy{replayed{nearest}, budgets, by_importance{}}};
}

/// DropKV in one layer, openreview MqfNzH3TVH: what the newest queries' outputs lose without a token. Inputs are a layer with
/// values and queries, and W_O where it is there. safeguard_ratio as above.
[[nodiscard]] constexpr auto dropkv(const single_eviction& scorer = {}, double safeguard_ratio = 0.0) {
    return eviction_policy{scorer, adaptive{.safeguard_ratio = safeguard_ratio}, by_importance{}};
}

/// The same; the rows of all (layer, KV head) compete for the model's budget.
[[nodiscard]] constexpr auto layer_dropkv(const single_eviction& scorer = {}, double safeguard_ratio = 0.0) {
    return layer_wise{dropkv(scorer, safeguard_ratio)};
}

} // namespace KVTRIM_NAMESPACE
