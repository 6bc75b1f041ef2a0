// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// CritiPrefill: adjacent queries share critical keys, so each segment of queries attends only its critical blocks.
//
//   critiprefill         the authors' estimate, the same budget for each KV head
//   critiprefill_bound   Quest's bound as the estimate: no key of a block can score higher
//   ada_critiprefill     the authors' estimate, blocks dealt out over the KV heads by Ada-KV
//
//     const auto policy = kvtrim::critiprefill({.budget_tokens = 2048});
//     kvtrim::layer_fusion state;                               // one per request
//     policy.plan(queries, keys, {.layer = l}, state, plan, memory);
//     kvtrim::block_sparse_attention(layer(keys, values).with_queries(queries), plan, {}, out, {}, memory);
//
// Source: CritiPrefill, arXiv:2409.12490; checked against 66RING/CritiPrefill@3067f1e through the golden vectors.
// Defaults are the authors' (segment 512, block 32, budget 2048, dense below 4096, first layer dense, fusion 0.25 from
// layer 2) but for the scale of the logits and the kept sink and local block; see prefill/block_pruner.hpp.

#include <kvtrim/allocate/adaptive.hpp>
#include <kvtrim/prefill/block_pruner.hpp>

namespace KVTRIM_NAMESPACE {

/// CritiPrefill, arXiv:2409.12490: the same budget of blocks for each KV head. Needs the prompt's queries and keys.
[[nodiscard]] constexpr auto critiprefill(const pruning_options& options = {}) {
    return block_pruner<mid_query, uniform>{.options = options};
}

/// The same budget of blocks for each KV head, ranked by Quest's bound. Needs the prompt's queries and keys.
[[nodiscard]] constexpr auto critiprefill_bound(const pruning_options& options = {}) {
    return block_pruner<corner_query, uniform>{.options = options};
}

/// KV heads compete for the blocks of a segment. Any allocator. Needs the prompt's queries and keys.
template <class Allocator = adaptive>
[[nodiscard]] constexpr auto ada_critiprefill(const pruning_options& options = {},
                                              const Allocator& allocator = {}) {
    return block_pruner<mid_query, Allocator>{.options = options, .allocator = allocator};
}

} // namespace KVTRIM_NAMESPACE
