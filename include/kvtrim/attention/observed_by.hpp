// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The queries whose attention is computed: what is wrong with them, and which rows they see.

#include <kvtrim/cache/layer.hpp>
#include <kvtrim/core/eviction_request.hpp>

#include <limits>

namespace KVTRIM_NAMESPACE {

/// Checks the queries [q_heads, queries, head_dim] whose attention over the keys is computed, wherever they stand. Sink logits
/// may be any float. Returns what in.validate() or valid_attention() says, heads_not_divisible for q_heads that are no positive
/// multiple of kv_heads, invalid_parameter for no queries at all. O(heads).
template <class Inputs>
[[nodiscard]] status validate_observers(const Inputs& in, const attention_options& attention) {
    const index_t q_heads = extent(in.queries, 0);
    if (const status s = in.validate(); !s.ok()) { return s; }
    if (const status s = valid_attention(attention, q_heads); !s.ok()) { return s; }
    if (q_heads == 0 || in.kv_heads() == 0 || q_heads % in.kv_heads() != 0) {
        return {errc::heads_not_divisible, "q_heads must be a positive multiple of kv_heads"};
    }
    if (extent(in.queries, 1) == 0) {
        return {errc::invalid_parameter, "the observation window has no queries"};
    }
    return {};
}

/// The same for an observation window: the queries belong to the newest rows before request.protect.rollback_tokens. Returns
/// window_exceeds_tokens (needed: tokens of a head), too. O(heads).
template <class Inputs>
[[nodiscard]] status validate_attention(const Inputs& in, const eviction_request& request) {
    if (const status s = validate_observers(in, request.attention); !s.ok()) { return s; }
    const index_t queries = extent(in.queries, 1);
    const index_t rollback = request.protect.rollback_tokens;
    if (rollback < 0) { return {errc::invalid_parameter, "protected token counts must not be negative"}; }
    constexpr index_t most = std::numeric_limits<index_t>::max();
    const index_t needed = rollback > most - queries ? most : queries + rollback;
    for (index_t g = 0; g < in.kv_heads(); ++g) {
        if (in.tokens(g) < needed) {
            return {errc::window_exceeds_tokens, "more observation queries than cached tokens", needed};
        }
    }
    return {};
}

/// Which cache rows of one KV head are seen, and scored, by which queries. Not checked: attention_rows
/// (attention/attention_rows.hpp) takes ranges that lie in the head's rows.
struct observed_by {
    index_t query_begin; ///< cache row of the first query's own token; the head's rows: all queries see all
    token_range candidates;     ///< rows that get scores; the attention on all others is summed up
    token_range hidden[2] = {}; ///< rows that no query sees, as if they were not there
    index_t nearest = 0; ///< rows between a query's own row and the newest one that it scores, at least
};

} // namespace KVTRIM_NAMESPACE
