// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// R-KV: window attention, max-pooled, mixed with how much a token's key repeats the others; for long reasoning.
//
// Needs queries, the newest 8 in the paper; protect them: request.protect.window_tokens = queries per head.
// Source: R-KV, arXiv:2505.24133; Zefan-Cai/R-KV@31cf555 rkv/compression/r1_kv.py (its lambda: 0.07).
// Departures: those of score/redundancy_aware.hpp. A group's attention is the maximum of its heads' (the reference: softmax
// of the maximum of their logits, over the tokens before the window only). When to run it, every 128 tokens in the
// paper, is the engine's choice.

#include <kvtrim/policy/snapkv.hpp>
#include <kvtrim/score/redundancy_aware.hpp>

namespace KVTRIM_NAMESPACE {

/// Settings of rkv().
struct rkv_config {
    /// Max-pooled over 7 tokens, as the reference.
    mean_attention attention = {
        .pool = pooling::maximum, .kernel_tokens = 7, .group = group_reduction::maximum};
    float importance_share = 0.1f; ///< lambda; paper 0.1
    float similar_above = 0.5f;    ///< reference threshold 0.5
    index_t search_tokens = 1024;  ///< reference: all; 0 here
};

/// R-KV, arXiv:2505.24133. Any allocator. Needs queries.
template <class Allocator = uniform>
[[nodiscard]] constexpr auto rkv(const rkv_config& c = {}, const Allocator& allocator = {}) {
    return eviction_policy{redundancy_aware<window_attention<mean_attention>>{
                               {c.attention}, c.importance_share, c.similar_above, c.search_tokens},
                           allocator, by_importance{}};
}

} // namespace KVTRIM_NAMESPACE
