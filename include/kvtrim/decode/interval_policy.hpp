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
// This holds no state: one object serves all layers and sequences. The state of each is what the caller keeps beside its
// cache: cache_positions, and recent_queries or running_scores where the policy asks for them.
// Speculative decoding: ask is_due(positions, drafts) before drafting, or plan with_rollback(drafts) while they are pending.
// Source: kvpress@8bb29b9 decoding_press.py (interval 512, buffer of hidden states 256).
// Departures: evicts before the limit is passed, never after; budgets are counts, no ratio is searched for.
// Cost: none until a cut is due; that of the policy, once every `buffer` tokens.

#include <kvtrim/base/executor.hpp>
#include <kvtrim/decode/cache_positions.hpp>

#include <limits>

namespace kvtrim {

template <class Policy>
struct interval_policy {
    [[no_unique_address]] Policy policy = {};
    eviction_request request;    // its budget is what a cut leaves, protected tokens included
    index_t buffer_tokens = 512; // tokens per KV head that may follow before the next cut

    // Tokens of all heads that are never passed.
    [[nodiscard]] index_t limit_tokens(index_t kv_heads) const {
        constexpr index_t most = std::numeric_limits<index_t>::max();
        const index_t total = request.budget.total(kv_heads);
        const index_t buffers = kv_heads * buffer_tokens;
        return total > most - buffers ? most : total + buffers; // "everything" does not overflow
    }

    // Bad input, to be asked once: no buffer, or less of it than the most tokens that come at a time (needed: tokens).
    [[nodiscard]] status validate(index_t most_incoming = 1) const {
        if (request.budget.tokens <= 0) {
            return {errc::budget_zero, "the budget must be at least one token"};
        }
        if (most_incoming < 1 || buffer_tokens < most_incoming) {
            return {errc::invalid_parameter,
                    "interval_policy: the buffer must hold the tokens that come at a time", most_incoming};
        }
        return {};
    }

    // Whether `incoming` more tokens would not fit.
    [[nodiscard]] bool is_due(const cache_positions& cached, index_t incoming = 1) const {
        const index_t heads = cached.kv_heads();
        return cached.total_tokens() + heads * incoming > limit_tokens(heads);
    }

    // The same while the newest `drafts` tokens may still be undone: they stay.
    [[nodiscard]] interval_policy with_rollback(index_t drafts) const {
        interval_policy pending = *this;
        pending.request.protect.rollback_tokens = drafts;
        return pending;
    }

    template <class Inputs>
    [[nodiscard]] index_t workspace_bytes(const Inputs& in) const {
        return policy.workspace_bytes(in, request);
    }

    // What stays of the cache. Memory is a workspace or a growing_workspace. Errors: those of the policy.
    template <class Inputs, class Memory, class Executor = serial_executor>
    [[nodiscard]] status plan(const Inputs& in, keep_plan& out, Memory& memory, Executor&& ex = {}) const {
        return policy.plan(in, request, out, memory, ex);
    }
};

template <class Policy>
interval_policy(Policy, eviction_request) -> interval_policy<Policy>;
template <class Policy>
interval_policy(Policy, eviction_request, index_t) -> interval_policy<Policy>;

} // namespace kvtrim
