// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// How many tokens a cache has, how many of them are protected, and how long its longest head is: summed over the KV heads of a
// layer, or of all layers.

#include <kvtrim/core/eviction_request.hpp>
#include <kvtrim/core/saturated.hpp>

#include <algorithm>
#include <span>

namespace KVTRIM_NAMESPACE {

/// Lengths summed over the KV heads of a layer.
struct cache_lengths {
    index_t tokens = 0;           ///< cached
    index_t protected_tokens = 0; ///< that always stay
    index_t longest = 0;          ///< tokens of the longest head

    /// Tokens that compete for the budget.
    [[nodiscard]] index_t candidates() const { return tokens - protected_tokens; }
};

/// Lengths of one layer. O(kv_heads).
template <class Inputs>
[[nodiscard]] cache_lengths count_lengths(const Inputs& in, const protection& protect) {
    cache_lengths all;
    for (index_t g = 0; g < in.kv_heads(); ++g) {
        const index_t kept = in.tokens(g) - candidates(protect, in.tokens(g)).size();
        all.tokens = saturated_sum(all.tokens, in.tokens(g));
        all.protected_tokens = saturated_sum(all.protected_tokens, kept);
        all.longest = std::max(all.longest, in.tokens(g));
    }
    return all;
}

/// Lengths summed over the KV heads of all layers.
template <class Inputs>
[[nodiscard]] cache_lengths count_lengths(std::span<const Inputs> layers, const protection& protect) {
    cache_lengths all;
    for (const Inputs& in : layers) {
        const cache_lengths one = count_lengths(in, protect);
        all.tokens = saturated_sum(all.tokens, one.tokens);
        all.protected_tokens = saturated_sum(all.protected_tokens, one.protected_tokens);
        all.longest = std::max(all.longest, one.longest);
    }
    return all;
}

} // namespace KVTRIM_NAMESPACE
