// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// SnapKV and Ada-KV on SnapKV's scores.
//
//   snapkv      mean window attention, pooled; the same budget for each KV head
//   ada_snapkv  the same scores; heads compete for the layer's budget
//
// Needs queries. Protect the window: request.protect.window_tokens = queries per head.
// Source: SnapKV, arXiv:2404.14469; Ada-KV, arXiv:2407.11550. Checked against kvpress@8bb29b9 and
// FFY0/AdaKV@efe4e2e through the golden vectors. Defaults: kvpress' (kernel 5, average, safeguard 0.2);
// AdaKV repository: kernel 7, maximum, group_then_pool, blended allocator with floor 0.5 (0.2 for GQA).

#include <kvtrim/aggregate/mean_attention.hpp>
#include <kvtrim/allocate/adaptive.hpp>
#include <kvtrim/allocate/uniform.hpp>
#include <kvtrim/policy/eviction_policy.hpp>
#include <kvtrim/rerank/by_importance.hpp>
#include <kvtrim/score/window_attention.hpp>

namespace KVTRIM_NAMESPACE {

/// SnapKV, arXiv:2404.14469: the same budget for each KV head. Needs queries.
[[nodiscard]] constexpr auto snapkv(const mean_attention& aggregator = {}) {
    return eviction_policy{window_attention{aggregator}, uniform{}, by_importance{}};
}

/// Ada-KV, arXiv:2407.11550, on SnapKV's scores. Any allocator: adaptive (safeguard) or blended (the authors' floor).
template <class Allocator = adaptive>
[[nodiscard]] constexpr auto ada_snapkv(const mean_attention& aggregator = {},
                                        const Allocator& allocator = {}) {
    return eviction_policy{window_attention{aggregator}, allocator, by_importance{}};
}

} // namespace KVTRIM_NAMESPACE
