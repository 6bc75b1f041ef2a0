// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A cache that never holds more than budget + buffer tokens per KV head: it grows to that, is cut to budget, and so on.
//
//   tokens   budget -> ... one token, one draft or one chunk at a time ... -> budget + buffer -> plan() -> budget -> ...
//
//     const interval_policy decode{snapkv(), {.budget = per_head(2048), .protect = {...}}, 256};
//     if (decode.is_due(positions, n)) {                              // before n more tokens are cached
//         s = decode.plan(layer(keys, values).with_queries(queries.view()), plan, memory);
//         ... by the same plan: compact_in_place(keys, values, plan), positions.compact(plan), and any other state
//     }
//     ... cache n tokens; positions.append(n); queries.append(...); scores.append(n) ...
//
// The same two lines serve one token (decode), a draft and a chunk of the prompt: with chunks of at most `buffer` tokens a
// prompt longer than the memory is prefilled within budget + buffer. The chunk then sees what was kept of the earlier ones,
// a result that no eviction after the prompt can reproduce. A head may be longer than the limit while others are shorter:
// budgets of an adaptive allocator sum to the limit over the heads.
//
// A cut leaves the budget, so more tokens than the buffer holds never fit. admits() says so before they are cached, and
// by how much; a chunk is then split, and each part comes after the cut that it needs:
//
//     for (index_t done = 0, n = 0; done < chunk; done += n) {
//         n = std::min(chunk - done, decode.buffer_tokens);
//         if (s = decode.admits(positions, n); !s.ok()) { return s; }
//         ... the lines above for n tokens ...
//     }
//
// This holds no state: one object serves all layers and sequences. The state of each is what the caller keeps beside its
// cache: cache_positions, and recent_queries or running_scores where the policy asks for them.
// Speculative decoding: ask is_due(positions, drafts) before drafting, or plan with_rollback(drafts) while they are pending:
// the budget's tokens stay, and the drafts beside them in the buffer, so that the limit is the same.
// Source: kvpress@8bb29b9 decoding_press.py (interval 512, buffer of hidden states 256).
// Departures: evicts before the limit is passed, never after; budgets are counts, no ratio is searched for.
// Cost: none until a cut is due; that of the policy, once every `buffer` tokens.

#include <kvtrim/core/executor.hpp>
#include <kvtrim/core/saturated.hpp>
#include <kvtrim/decode/cache_positions.hpp>
#include <kvtrim/plan/cache_lengths.hpp>

namespace KVTRIM_NAMESPACE {

/// A policy that runs each time the cache has grown by a buffer of tokens. No state: one object serves all layers and
/// sequences.
template <class Policy>
struct interval_policy {
    [[no_unique_address]] Policy policy = {}; ///< what decides at each cut
    eviction_request request;                 ///< its budget is what a cut leaves, protected tokens included
    index_t buffer_tokens = 512;              ///< tokens per KV head that may follow before the next cut
    index_t pending_drafts = 0; ///< of these, newest ones that a cut keeps beside the budget: with_rollback()

    /// Most tokens of all heads together, before a cut and after.
    [[nodiscard]] index_t limit_tokens(index_t kv_heads) const {
        return saturated_sum(budget_tokens(kv_heads),
                             saturated_product(kv_heads, std::max<index_t>(0, buffer_tokens)));
    }

    /// Checks the numbers, once. Returns budget_zero, or invalid_parameter for less buffer than the pending drafts and the
    /// most tokens that come at a time (needed: tokens).
    [[nodiscard]] status validate(index_t most_incoming = 1) const {
        if (const status s = validate_room(most_incoming); !s.ok() || most_incoming > 0) { return s; }
        return {errc::invalid_parameter, "interval_policy: at least one token comes at a time", 1};
    }

    /// Whether a cut is needed before `incoming` more tokens are cached.
    [[nodiscard]] bool is_due(const cache_positions& cached, index_t incoming = 1) const {
        const index_t heads = cached.kv_heads();
        return tokens_with(cached.total_tokens(), heads, incoming) > limit_tokens(heads);
    }

    /// Whether `incoming` more tokens may come: at once, or after the cut that is_due() then asks for. Returns no_room where
    /// that cut cannot leave room for them (needed: tokens of all heads after it and them; what exceeds limit_tokens() is
    /// too many: split them), budget_below_protection where it would be refused (needed: protected tokens of all heads), and
    /// what validate() says. O(kv_heads).
    [[nodiscard]] status admits(const cache_positions& cached, index_t incoming = 1) const {
        if (incoming < 0) {
            return {errc::invalid_parameter, "interval_policy: the number of tokens must not be negative"};
        }
        for (const status s : {cached.validate(), validate_room(0), valid_protection(request.protect)}) {
            if (!s.ok()) { return s; }
        }
        if (!is_due(cached, incoming)) { return {}; }
        const index_t heads = cached.kv_heads();
        const eviction_request cut = pending_request(heads);
        const cache_lengths all = count_lengths(cached, cut.protect);
        const index_t kept = cut.budget.total(heads);
        if (all.protected_tokens > kept) {
            return {errc::budget_below_protection,
                    "interval_policy: a cut is due, and the protected tokens alone exceed the budget",
                    all.protected_tokens};
        }
        const index_t then = tokens_with(std::min(all.tokens, kept), heads, incoming);
        if (then > limit_tokens(heads)) {
            return {errc::no_room, "interval_policy: no cut leaves room for so many tokens: split them",
                    then};
        }
        return {};
    }

    /// The same while the newest `drafts` tokens may still be undone: a cut leaves them and the budget. They count as part
    /// of the buffer, which must hold them.
    [[nodiscard]] interval_policy with_rollback(index_t drafts) const {
        interval_policy pending = *this;
        pending.pending_drafts = drafts;
        return pending;
    }

    /// Bytes of workspace for plan(); 0 for inputs it refuses.
    template <class Inputs>
    [[nodiscard]] index_t workspace_bytes(const Inputs& in) const {
        return validate_room(0).ok() ? policy.workspace_bytes(in, pending_request(in.kv_heads())) : 0;
    }

    /// Plans what stays of the cache. Memory is a workspace or a growing_workspace. Errors: those of the policy, and drafts
    /// that the buffer does not hold (invalid_parameter).
    template <class Inputs, class Memory, class Executor = serial_executor>
    [[nodiscard]] status plan(const Inputs& in, keep_plan& out, Memory& memory, Executor&& ex = {}) const {
        if (const status s = validate_room(0); !s.ok()) { return s; }
        return policy.plan(in, pending_request(in.kv_heads()), out, memory, ex);
    }

  private:
    [[nodiscard]] index_t budget_tokens(index_t kv_heads) const {
        return request.budget.tokens > 0 ? request.budget.total(kv_heads) : 0;
    }
    [[nodiscard]] static index_t tokens_with(index_t tokens, index_t kv_heads, index_t incoming) {
        return saturated_sum(tokens, saturated_product(kv_heads, incoming));
    }

    [[nodiscard]] status validate_room(index_t incoming) const {
        if (request.budget.tokens <= 0) {
            return {errc::budget_zero, "the budget must be at least one token"};
        }
        const index_t room =
            saturated_sum(std::max<index_t>(0, pending_drafts), std::max<index_t>(0, incoming));
        if (pending_drafts < 0 || buffer_tokens < room) {
            return {
                errc::invalid_parameter,
                "interval_policy: the buffer must hold the tokens that come at a time, and pending drafts",
                room};
        }
        return {};
    }

    // The request of a cut, whose budget holds the drafts on top of what it holds without them.
    [[nodiscard]] eviction_request pending_request(index_t kv_heads) const {
        if (pending_drafts == 0) { return request; }
        eviction_request pending = request;
        pending.protect.rollback_tokens = pending_drafts;
        const index_t times = request.budget.scope == budget_scope::head ? 1 : kv_heads;
        pending.budget.tokens =
            saturated_sum(request.budget.tokens, saturated_product(times, pending_drafts));
        return pending;
    }
};

template <class Policy>
interval_policy(Policy, eviction_request) -> interval_policy<Policy>;
template <class Policy>
interval_policy(Policy, eviction_request, index_t) -> interval_policy<Policy>;

} // namespace KVTRIM_NAMESPACE
