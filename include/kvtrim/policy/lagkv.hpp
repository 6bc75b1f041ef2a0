// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// LagKV: tokens whose keys and values stand out from those of the next partition of tokens.
//
// Needs values and no queries. Protect the sinks: request.protect.sink_tokens = 4. The last whole partition and the
// rest behind it always stay: give the budget room for 2 * lag tokens and more.
// Source: LagKV, arXiv:2504.04704; kvpress@8bb29b9 lagkv_press.py, checked through the golden vectors; its defaults.

#include <kvtrim/allocate/uniform.hpp>
#include <kvtrim/policy/eviction_policy.hpp>
#include <kvtrim/rerank/by_importance.hpp>
#include <kvtrim/score/lag_score.hpp>

namespace KVTRIM_NAMESPACE {

/// LagKV, arXiv:2504.04704. Needs values and no queries.
[[nodiscard]] constexpr auto lagkv(const lag_score& score = {}) {
    return eviction_policy{score, uniform{}, by_importance{}};
}

} // namespace KVTRIM_NAMESPACE
