// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Policies that plan from a replay (score/replay.hpp), of one layer or of all.
//
//   replay          the rows of a layer's heads compete for its budget                   2505.23416, non-uniform
//   layer_replay    the rows of all (layer, KV head) compete for the model's             2505.23416, as published
//   replay_uniform  every head keeps the best of its own                                 2505.23416, uniform
//   dropkv          no replay: what the newest queries' outputs lose, one layer          kvpress, pull request 285
//   layer_dropkv    the same, the rows of all (layer, KV head) compete
//
// The first three take a replay_scores as the inputs of plan(), and need no tensor; the last two a layer with values, the newest
// queries and, if it is there, W_O.

#include <kvtrim/allocate/adaptive.hpp>
#include <kvtrim/allocate/uniform.hpp>
#include <kvtrim/model/layer_wise.hpp>
#include <kvtrim/policy/eviction_policy.hpp>
#include <kvtrim/score/replayed.hpp>
#include <kvtrim/select/one_stage.hpp>

namespace kvtrim {

[[nodiscard]] constexpr auto replay(double safeguard_ratio = 0.0) {
    return eviction_policy{replayed{}, adaptive{.safeguard_ratio = safeguard_ratio}, one_stage{}};
}

[[nodiscard]] constexpr auto layer_replay(double safeguard_ratio = 0.0) {
    return layer_wise{replay(safeguard_ratio)};
}

[[nodiscard]] constexpr auto replay_uniform() {
    return eviction_policy{replayed{}, uniform{}, one_stage{}};
}

[[nodiscard]] constexpr auto dropkv(const single_eviction& scorer = {}, double safeguard_ratio = 0.0) {
    return eviction_policy{scorer, adaptive{.safeguard_ratio = safeguard_ratio}, one_stage{}};
}

[[nodiscard]] constexpr auto layer_dropkv(const single_eviction& scorer = {}, double safeguard_ratio = 0.0) {
    return layer_wise{dropkv(scorer, safeguard_ratio)};
}

} // namespace kvtrim
