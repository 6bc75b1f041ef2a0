// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What pruning of a prefill is asked for, and which segments it prunes.
//
// Dense rows (all allowed blocks): segments that begin before dense_below_tokens or have no more blocks than the
// budget, the last segment of the prompt, every segment of the first dense_layers layers. Every other segment gets
// floor(budget_tokens / block_tokens) blocks per KV head, its first sink_blocks and last local_blocks always among them.
// The segment itself is attended causally on top of the budget.
//
// Source: 66RING/CritiPrefill@3067f1e criti_prefill/ops.py, criti_config; sink and local blocks are an addition.

#include <kvtrim/plan/prune_plan.hpp>

namespace KVTRIM_NAMESPACE {

/// Sizes and budget of block pruning.
struct pruning_options {
    index_t segment_tokens = 512;      ///< queries that share a row; a multiple of block_tokens
    index_t block_tokens = 32;         ///< keys that are kept or skipped together
    index_t budget_tokens = 2048;      ///< per KV head and segment; whole blocks, rounded down
    index_t dense_below_tokens = 4096; ///< segments that begin before attend everything
    index_t dense_layers = 1;          ///< the first layers attend everything
    bool dense_last_segment = true;    ///< its last query is the one that generation starts from
    index_t sink_blocks = 1;           ///< first blocks of the cache, always attended
    index_t local_blocks = 1;          ///< last blocks before the segment, always attended

    /// Budget in whole blocks; 0 where block_tokens is not positive, which valid_pruning() refuses.
    [[nodiscard]] index_t budget_blocks() const {
        return block_tokens > 0 ? budget_tokens / block_tokens : 0;
    }
};

/// Which part of which prompt, at which layer.
struct prefill_chunk {
    index_t layer = 0;       ///< of the model, from 0
    index_t first_token = 0; ///< earlier tokens are cached; a multiple of segment_tokens
    bool ends_prompt = true; ///< whether the chunk's last token is the prompt's
};

/// Segments and blocks of a chunk of `queries` tokens.
[[nodiscard]] inline segment_grid grid_of(const pruning_options& options, const prefill_chunk& chunk,
                                          index_t queries) {
    return {options.segment_tokens, options.block_tokens, chunk.first_token,
            saturated_sum(chunk.first_token, queries)};
}

/// Checks the sizes of a call: queries [q_heads, queries, ...] over keys [kv_heads, cached_tokens, ...].
/// Returns invalid_parameter (needed, where the cache is too short: its rows), heads_not_divisible, budget_zero (a budget
/// below one block; needed: tokens), budget_below_protection (needed: tokens) or index_overflow (needed: tokens or
/// blocks).
[[nodiscard]] inline status valid_pruning(const pruning_options& options, const prefill_chunk& chunk,
                                          index_t q_heads, index_t queries, index_t kv_heads,
                                          index_t cached_tokens) {
    const auto counts = {chunk.layer,
                         chunk.first_token,
                         options.dense_layers,
                         options.dense_below_tokens,
                         options.sink_blocks,
                         options.local_blocks,
                         queries,
                         cached_tokens};
    if (std::min(counts) < 0) {
        return {errc::invalid_parameter, "prefill: layers, tokens and block counts must not be negative"};
    }
    if (cached_tokens - queries < chunk.first_token) {
        return {errc::invalid_parameter, "prefill: the cache must hold the chunk's own keys",
                saturated_sum(chunk.first_token, queries)};
    }
    const segment_grid grid = grid_of(options, chunk, queries);
    if (const status s = grid.validate(); !s.ok()) { return s; }
    if (options.budget_blocks() <= 0) {
        return {errc::budget_zero, "prefill: the budget must be at least one block", options.block_tokens};
    }
    if (options.budget_blocks() - options.sink_blocks < options.local_blocks) {
        return {errc::budget_below_protection, "prefill: sink and local blocks alone exceed the budget",
                saturated_product(saturated_sum(options.sink_blocks, options.local_blocks),
                                  options.block_tokens)};
    }
    if (kv_heads <= 0 || q_heads <= 0 || q_heads % kv_heads != 0) {
        return {errc::heads_not_divisible, "q_heads must be a positive multiple of kv_heads"};
    }
    return valid_table_size(grid, kv_heads);
}

/// Half-open range of a chunk's segments.
struct segment_range {
    index_t begin = 0; ///< first segment
    index_t end = 0;   ///< behind the last one
};

/// The segments whose rows are chosen; they are consecutive.
[[nodiscard]] inline segment_range pruned_segments(const pruning_options& options, const prefill_chunk& chunk,
                                                   const segment_grid& grid) {
    const bool last_is_dense = options.dense_last_segment && chunk.ends_prompt && grid.segments() > 0;
    segment_range pruned{0, grid.segments() - (last_is_dense ? 1 : 0)};
    const auto is_dense = [&](index_t s) {
        return chunk.layer < options.dense_layers || grid.begin(s) < options.dense_below_tokens ||
               grid.allowed_blocks(s) <= options.budget_blocks();
    };
    while (pruned.begin < pruned.end && is_dense(pruned.begin)) { ++pruned.begin; }
    return pruned;
}

} // namespace KVTRIM_NAMESPACE
