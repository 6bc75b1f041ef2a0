// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Eviction in whole blocks, for engines that free nothing smaller (OpenVINO GenAI): block scores in, logical block
// indices out, equally many in every row. A row is a layer, or a (layer, KV head), of one sequence.
//
//   tokens   | start  .  .  .  | .  .  .  . | .  .  .  . | recent .  .  . | .  .     block_tokens 4; the last may
//                                                      be partial
//   blocks          0                1            2              3            4
//
//   score_blocks     block b = sum, mean or maximum of the scores of its tokens; a partial block is reduced over
//                    what it has
//   plan_blocks      the kept_blocks best of each row, protected ones included; ties to the lower index
//   evicted_blocks   the others, as ascending ranges of logical blocks
//   expand_blocks    the same plan in tokens, for attention masks, positions, or compact/page_moves.hpp: there no
//                    slot moves
//
// Protection counts blocks here: sink_tokens is the start area, window_tokens the recent area, which must hold the
// partial block. Cost: linear in scores. Workspace: that of the policy.

#include <kvtrim/allocate/uniform.hpp>
#include <kvtrim/compact/shared_set.hpp>
#include <kvtrim/policy/eviction_policy.hpp>
#include <kvtrim/score/query_free.hpp>
#include <kvtrim/rerank/by_importance.hpp>

#include <cmath>

namespace kvtrim {

enum class block_reduction : std::uint8_t { sum, mean, maximum };

namespace detail {

// Blocks that hold so many tokens, the last one perhaps in part.
[[nodiscard]] constexpr index_t block_count(index_t tokens, index_t block_tokens) {
    return tokens / block_tokens + (tokens % block_tokens > 0 ? 1 : 0);
}

} // namespace detail

/// Scores of one row; maximum ignores NaN. Returns invalid_parameter, with nothing written, for block_tokens that are not positive
/// or another number of blocks than the tokens make (needed: blocks).
[[nodiscard]] inline status score_blocks(std::span<const float> tokens, index_t block_tokens,
                                         block_reduction reduction, std::span<float> blocks) {
    if (block_tokens <= 0) {
        return {errc::invalid_parameter, "score_blocks: block_tokens must be positive"};
    }
    if (const index_t count = detail::block_count(std::ssize(tokens), block_tokens);
        std::ssize(blocks) != count) {
        return {errc::invalid_parameter, "score_blocks: there must be one score per block", count};
    }
    for (std::size_t b = 0; b < blocks.size(); ++b) {
        const std::size_t begin = b * static_cast<std::size_t>(block_tokens);
        const auto block =
            tokens.subspan(begin, std::min(static_cast<std::size_t>(block_tokens), tokens.size() - begin));
        double sum = 0;
        float highest = -std::numeric_limits<float>::infinity();
        for (const float score : block) {
            sum += static_cast<double>(score);
            highest = std::fmax(highest, score);
        }
        const double parts = reduction == block_reduction::mean ? static_cast<double>(block.size()) : 1.0;
        blocks[b] = reduction == block_reduction::maximum ? highest : static_cast<float>(sum / parts);
    }
    return {};
}

namespace detail {

// A cache of blocks without elements: their number is all that a policy over given scores asks for.
struct block_rows {
    index_t rows_of_scores;
    index_t blocks;

    [[nodiscard]] index_t extent(std::size_t r) const {
        return r == 0 ? rows_of_scores : r == 1 ? blocks : 1;
    }
    void load_rows(index_t, index_t, index_t, float*) const {}
};

template <tensor_view<2> Scores>
[[nodiscard]] auto block_policy(const Scores& scores) {
    return eviction_policy{given_scores{scores}, uniform{}, by_importance{}};
}

template <tensor_view<2> Scores>
[[nodiscard]] auto block_inputs(const Scores& scores) {
    return layer(block_rows{extent(scores, 0), extent(scores, 1)});
}

} // namespace detail

template <tensor_view<2> Scores>
[[nodiscard]] index_t plan_blocks_bytes(const Scores& scores, index_t kept_blocks,
                                        const protection& protect) {
    return detail::block_policy(scores).workspace_bytes(
        detail::block_inputs(scores), {.budget = per_head(kept_blocks), .protect = protect});
}

// scores [rows, blocks], higher stays. Fills `out` with kept_blocks blocks for each row (all, if there are fewer).
// Returns what a policy does: budget_zero, budget_below_protection (needed: blocks of all rows), invalid_parameter,
// workspace_too_small; with out unchanged.
template <tensor_view<2> Scores>
[[nodiscard]] status plan_blocks(const Scores& scores, index_t kept_blocks, const protection& protect,
                                 keep_plan& out, workspace& scratch) {
    return detail::block_policy(scores).plan(
        detail::block_inputs(scores), {.budget = per_head(kept_blocks), .protect = protect}, out, scratch);
}

/// Calls fn(token_range) for each range of logical blocks that a row of the plan does not keep, ascending. Returns plan_mismatch,
/// with no call made, for a row or blocks that there are not.
template <class Fn>
[[nodiscard]] status evicted_blocks(const keep_plan& plan, index_t row, index_t blocks, Fn&& fn) {
    if (row < 0 || row >= plan.rows()) {
        return {errc::plan_mismatch, "the plan has no such row", plan.rows()};
    }
    return removed_ranges(plan.row(row), blocks, fn);
}

/// The tokens of the kept blocks, of rows with `tokens` tokens. Returns invalid_parameter (block_tokens not positive, tokens
/// negative, `out` the plan itself), plan_mismatch (blocks that such rows do not have), index_overflow or workspace_too_small,
/// with out unchanged.
[[nodiscard]] inline status expand_blocks(const keep_plan& plan, index_t block_tokens, index_t tokens,
                                          keep_plan& out, workspace& scratch) {
    if (&plan == &out) { return {errc::invalid_parameter, "expand_blocks: the output must be another plan"}; }
    if (block_tokens <= 0 || tokens < 0) {
        return {errc::invalid_parameter, "expand_blocks: block_tokens must be positive, tokens not negative"};
    }
    const index_t blocks = detail::block_count(tokens, block_tokens);
    if (!plan.check_invariants([&](index_t) { return blocks; })) {
        return {errc::plan_mismatch, "the plan keeps blocks that the cache does not have"};
    }
    if (tokens > std::numeric_limits<keep_plan::table_index>::max()) {
        return {errc::index_overflow, "a plan addresses at most 2^31 - 1 tokens per head", tokens};
    }
    const workspace::frame frame(scratch);
    const auto counts = scratch.take<index_t>(plan.rows());
    if (!scratch.fits()) { return scratch.too_small(); }
    for (index_t r = 0; r < plan.rows(); ++r) {
        const auto row = plan.row(r);
        const bool has_last = !row.empty() && row.back() == blocks - 1;
        const index_t last = has_last ? tokens - (blocks - 1) * block_tokens : 0;
        counts[static_cast<std::size_t>(r)] = (std::ssize(row) - (has_last ? 1 : 0)) * block_tokens + last;
    }
    if (const status s = out.reset(counts); !s.ok()) { return s; }
    for (index_t r = 0; r < plan.rows(); ++r) {
        auto next = out.writable_row(r).begin();
        for (const auto block : plan.row(r)) {
            const index_t begin = block * block_tokens;
            const index_t end = begin + std::min(block_tokens, tokens - begin);
            for (index_t t = begin; t < end; ++t) { *next++ = static_cast<keep_plan::table_index>(t); }
        }
    }
    return {};
}
[[nodiscard]] inline index_t expand_blocks_bytes(const keep_plan& plan) {
    workspace counting = workspace::counting();
    static_cast<void>(counting.take<index_t>(plan.rows()));
    return counting.needed_bytes();
}

} // namespace kvtrim
