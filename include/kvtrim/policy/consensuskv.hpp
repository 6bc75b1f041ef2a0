// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Consensus: SnapKV's scores, with those of all heads of the layer added to each head's.
//
//   consensuskv          importance'[h] = importance[h] + lambda * sum over heads, the same budget for each KV head
//   consensuskv_shared   the sum alone: one token set for all heads, for engines whose cell holds all heads
//
// Source: kvtrim's own; no paper. It gains on the demo's small model alone (examples/needle/CONSENSUS.md): with the question
// unseen it keeps more answers than any of the papers' policies at 30 % of prompts of up to 2048 tokens and at 20 % of 1024 and
// 2048; at 4096 tokens, and mostly at 50 %, CriticalKV is ahead, at 10 % DefensiveKV. On a real model it is SnapKV's equal
// (docs/quality.md). lambda was chosen on other samples than those reported; any from 0.5 to 4 does as well (docs/quality.md,
// Defaults). Combine score/consensus.hpp with any other scorer, allocator and reranker.

#include <kvtrim/policy/snapkv.hpp>
#include <kvtrim/rerank/shared.hpp>
#include <kvtrim/score/consensus.hpp>

namespace KVTRIM_NAMESPACE {

/// Settings of both policies.
struct consensuskv_config {
    mean_attention attention = {}; ///< as SnapKV
    float lambda = 1.0f;           ///< weight of the layer's sum
};

/// Every head keeps tokens of its own, the same number in each.
[[nodiscard]] constexpr auto consensuskv(const consensuskv_config& c = {}) {
    return eviction_policy{consensus<window_attention<mean_attention>>{{c.attention}, c.lambda}, uniform{},
                           by_importance{}};
}

/// One token set for all heads.
[[nodiscard]] constexpr auto consensuskv_shared(const consensuskv_config& c = {}) {
    return eviction_policy{consensus<window_attention<mean_attention>>{{c.attention}, 0.0f}, uniform{},
                           shared{}};
}

} // namespace KVTRIM_NAMESPACE
