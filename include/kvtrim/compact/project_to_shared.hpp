// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A head-wise plan projected to one token set for all heads, and the position ranges that an engine removes.
//
// For caches whose cell holds one token for every head (llama.cpp): a head-wise plan cannot be executed there.
//
//   project_to_shared(plan, tokens, any_head)       every token that some head keeps (safe, saves least)
//   project_to_shared(plan, tokens, kept_tokens)    the kept_tokens tokens that most heads keep; ties to the
//                                                   lower position
//   removed_ranges(kept, tokens, fn)                the minimal ascending ranges [begin, end) to remove, as
//                                                   arguments of seq_rm(sequence, begin, end)
//
// To choose a shared set by scores instead, plan with the `shared` reranker. The output may be the plan that is read.
// Cost: O(kept tokens of both plans + tokens). Workspace: a float per token.

#include <kvtrim/core/workspace.hpp>
#include <kvtrim/plan/find_top_k.hpp>
#include <kvtrim/plan/keep_plan.hpp>

#include <algorithm>

namespace KVTRIM_NAMESPACE {

/// Selects the union of the heads' tokens.
struct any_head_t {};
/// The value to pass.
inline constexpr any_head_t any_head{};

namespace detail {

[[nodiscard]] inline status count_votes(const keep_plan& plan, index_t tokens, std::span<float> votes) {
    if (!plan.check_invariants([&](index_t) { return tokens; })) {
        return {errc::plan_mismatch, "the plan keeps rows that the cache does not have"};
    }
    std::fill(votes.begin(), votes.end(), 0.0f);
    for (const auto token : plan.kept()) { votes[static_cast<std::size_t>(token)] += 1.0f; }
    return {};
}

// Writes one row of kept tokens for every head.
[[nodiscard]] inline status write_shared(std::span<float> votes, index_t kept_tokens,
                                         std::span<index_t> counts, keep_plan& out) {
    std::fill(counts.begin(), counts.end(), kept_tokens);
    if (const status s = out.reset(counts); !s.ok()) { return s; }
    if (out.rows() == 0) { return {}; }
    const auto first = out.writable_row(0);
    top_k_cut cut = find_top_k(votes, kept_tokens);
    kernels::write_above(votes, cut, 0, first.data());
    for (index_t r = 1; r < out.rows(); ++r) {
        std::copy(first.begin(), first.end(), out.writable_row(r).begin());
    }
    return {};
}

} // namespace detail

/// Bytes of workspace for project_to_shared(); 0 for a negative number of tokens, which it refuses.
[[nodiscard]] inline index_t project_to_shared_bytes(const keep_plan& plan, index_t tokens) {
    if (tokens < 0) { return 0; }
    workspace counting = workspace::counting();
    static_cast<void>(counting.take<float>(tokens));
    static_cast<void>(counting.take<index_t>(plan.rows()));
    return counting.needed_bytes();
}

namespace detail {

// Keeps the kept_tokens(votes) tokens with the most votes.
template <class KeptTokens>
[[nodiscard]] status project(const keep_plan& plan, index_t tokens, KeptTokens&& kept_tokens, keep_plan& out,
                             workspace& scratch) {
    if (tokens < 0) { return {errc::invalid_parameter, "a cache has no negative number of tokens"}; }
    const workspace::frame frame(scratch);
    const auto votes = scratch.take<float>(tokens);
    const auto counts = scratch.take<index_t>(plan.rows());
    if (!scratch.fits()) { return scratch.too_small(); }
    if (const status s = count_votes(plan, tokens, votes); !s.ok()) { return s; }
    return write_shared(votes, kept_tokens(votes), counts, out);
}

} // namespace detail

/// The `kept_tokens` tokens that most heads keep, in every row of `out`. Returns plan_mismatch, budget_zero,
/// invalid_parameter (kept_tokens above tokens), workspace_too_small or index_overflow, with out unchanged.
[[nodiscard]] inline status project_to_shared(const keep_plan& plan, index_t tokens, index_t kept_tokens,
                                              keep_plan& out, workspace& scratch) {
    if (kept_tokens <= 0) { return {errc::budget_zero, "the shared set must keep at least one token"}; }
    if (kept_tokens > tokens) {
        return {errc::invalid_parameter, "the shared set is larger than the cache",
                std::max<index_t>(0, tokens)};
    }
    return detail::project(
        plan, tokens, [&](std::span<const float>) { return kept_tokens; }, out, scratch);
}

/// The union: every token that some head keeps. Returns invalid_parameter for a negative number of tokens, plan_mismatch,
/// workspace_too_small, or index_overflow for more rows than a plan holds; with out unchanged.
[[nodiscard]] inline status project_to_shared(const keep_plan& plan, index_t tokens, any_head_t,
                                              keep_plan& out, workspace& scratch) {
    const auto voted = [](std::span<const float> votes) {
        return static_cast<index_t>(std::count_if(votes.begin(), votes.end(), [](float v) { return v > 0; }));
    };
    return detail::project(plan, tokens, voted, out, scratch);
}

/// Calls fn(token_range) for each maximal range of positions below `tokens` that is not kept, ascending. Returns
/// plan_mismatch, with no call made, unless `kept` ascends strictly and lies in [0, tokens).
template <class Fn>
[[nodiscard]] status removed_ranges(std::span<const keep_plan::table_index> kept, index_t tokens, Fn&& fn) {
    index_t next = 0;
    for (const auto token : kept) {
        if (token < next || token >= tokens) {
            return {errc::plan_mismatch, "the plan keeps rows that the cache does not have"};
        }
        next = index_t{token} + 1;
    }
    next = 0;
    for (const auto token : kept) {
        if (token > next) { fn(token_range{next, token}); }
        next = index_t{token} + 1;
    }
    if (next < tokens) { fn(token_range{next, tokens}); }
    return {};
}

} // namespace KVTRIM_NAMESPACE
