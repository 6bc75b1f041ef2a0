// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What one eviction is asked for: how many tokens stay, which ones always stay, how attention is computed.
//
//   cache row:   0 ........ | candidates compete for the rest of the budget | ............. tokens
//                sinks,     |                                               | observation window,
//                pinned     |                                               | rollback tail
//
// Protection is a pair of ranges, never a score: a protected token can not lose a tie, overflow or be
// multiplied away. Budgets are integers; a ratio becomes one in kept_tokens(), or by kvpress' rule in
// kept_tokens_kvpress().

#include <kvtrim/core/math.hpp>
#include <kvtrim/core/saturated.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>

namespace KVTRIM_NAMESPACE {

/// Tokens that always stay. Ranges may overlap and may cover the whole cache.
struct protection {
    index_t sink_tokens = 0;     ///< first tokens of the sequence (StreamingLLM: 4)
    index_t pinned_tokens = 0;   ///< a shared prefix other sequences still read
    index_t window_tokens = 0;   ///< the observation window (SnapKV w: 32 or 64)
    index_t rollback_tokens = 0; ///< speculative draft tokens after the window, which may be undone

    /// Protected tokens at the front of the cache. A negative number, which valid_protection() refuses, counts as 0.
    [[nodiscard]] constexpr index_t prefix() const {
        return std::max(index_t{0}, std::max(sink_tokens, pinned_tokens));
    }
    /// Protected tokens at the end of the cache; likewise.
    [[nodiscard]] constexpr index_t suffix() const {
        return saturated_sum(std::max<index_t>(0, window_tokens), std::max<index_t>(0, rollback_tokens));
    }
};

/// Returns invalid_parameter for a negative number of tokens.
[[nodiscard]] constexpr status valid_protection(const protection& p) {
    if (p.sink_tokens >= 0 && p.pinned_tokens >= 0 && p.window_tokens >= 0 && p.rollback_tokens >= 0) {
        return {};
    }
    return {errc::invalid_parameter, "protected token counts must not be negative"};
}

/// A half-open range of cache rows.
struct token_range {
    index_t begin = 0; ///< first row
    index_t end = 0;   ///< one past the last row

    /// Rows in the range.
    [[nodiscard]] constexpr index_t size() const { return end - begin; }
    friend constexpr bool operator==(const token_range&, const token_range&) = default;
};

/// The rows of a head with `tokens` rows that compete for the budget: all that are not protected.
[[nodiscard]] constexpr token_range candidates(const protection& p, index_t tokens) {
    const index_t begin = std::min(p.prefix(), tokens);
    return {begin, std::max(begin, tokens - p.suffix())};
}

/// How the layer computes attention; a wrong denominator would bias every score. Checked by valid_attention().
/// Every scorer that computes attention follows all of it (window_attention, running_scores, expected_attention_score and
/// scorers that wrap one of them). Scorers that look at keys and values alone, at positions or at given scores compute none.
struct attention_options {
    float scale = 0;                         ///< logit = scale * <q, k>; 0: 1 / sqrt(head_dim)
    float soft_cap = 0;                      ///< logit = cap * tanh(logit / cap); 0: none
    index_t sliding_window = 0;              ///< a query sees this many newest rows, itself included; 0: all
    std::span<const float> sink_logits = {}; ///< [q_heads] logits without a value; empty or -infinity: none

    /// The scale of a layer's logits: 1 / sqrt(head_dim) unless one is given.
    template <class Float = float>
    [[nodiscard]] Float scale_for(index_t head_dim) const {
        if (scale > 0) { return static_cast<Float>(scale); }
        return 1 / detail::math::sqrt(static_cast<Float>(std::max<index_t>(1, head_dim)));
    }
    /// The sink logit of a query head, which is not checked; -infinity where it has none.
    [[nodiscard]] float sink_logit_of(index_t q_head) const {
        return sink_logits.empty() ? -std::numeric_limits<float>::infinity()
                                   : sink_logits[static_cast<std::size_t>(q_head)];
    }
};

/// Returns invalid_parameter for a scale or soft cap that is negative or not finite, a negative window, a sink logit that is
/// NaN or +infinity, or another number of sink logits than q_heads (needed: q_heads). O(q_heads).
[[nodiscard]] inline status valid_attention(const attention_options& o, index_t q_heads) {
    if (!o.sink_logits.empty() && static_cast<index_t>(o.sink_logits.size()) != q_heads) {
        return {errc::invalid_parameter, "attention.sink_logits must have one entry per query head", q_heads};
    }
    const bool in_range = o.scale >= 0 && detail::math::isfinite(o.scale) && o.soft_cap >= 0 &&
                          detail::math::isfinite(o.soft_cap) && o.sliding_window >= 0;
    if (!in_range) {
        return {errc::invalid_parameter,
                "attention: scale, soft_cap and sliding_window must be finite and not negative"};
    }
    for (const float logit : o.sink_logits) {
        if (!(logit < std::numeric_limits<float>::infinity())) {
            return {errc::invalid_parameter, "attention: a sink logit must not be NaN or +infinity"};
        }
    }
    return {};
}

/// What a number of tokens is counted over.
enum class budget_scope : std::uint8_t {
    head,  ///< per KV head, on average
    layer, ///< all KV heads of a layer together
    model, ///< all KV heads of all layers together
};

/// How many tokens stay, protected ones included.
struct token_budget {
    index_t tokens = 0;                      ///< in the scope
    budget_scope scope = budget_scope::head; ///< what tokens are counted over

    /// Tokens in all heads of `layers` layers, the largest index_t where that overflows.
    [[nodiscard]] constexpr index_t total(index_t kv_heads, index_t layers = 1) const {
        if (kv_heads == 0 || layers == 0) { return scope == budget_scope::head ? 0 : tokens; }
        const index_t times = scope == budget_scope::head    ? saturated_product(kv_heads, layers)
                              : scope == budget_scope::layer ? layers
                                                             : 1;
        return saturated_product(tokens, times); // a budget of the largest index_t means all tokens
    }
};

/// `tokens` per KV head on average; an adaptive allocator moves them between heads.
[[nodiscard]] constexpr token_budget per_head(index_t tokens) {
    return {tokens, budget_scope::head};
}
/// `tokens` summed over the KV heads of a layer.
[[nodiscard]] constexpr token_budget over_all_heads(index_t tokens) {
    return {tokens, budget_scope::layer};
}
/// `tokens` summed over the KV heads of all layers; to a policy over one layer that layer is all.
[[nodiscard]] constexpr token_budget over_all_layers(index_t tokens) {
    return {tokens, budget_scope::model};
}

/// Tokens that a ratio keeps: floor(tokens * kept_ratio), where a product within 1e-9 of a whole number (for large ones:
/// within rounding) is that number, so that 100 tokens x 0.1 is 10 and 1000 x 0.1 is 100.
/// A ratio that valid_ratio refuses, or a negative number of tokens, gives 0, which is no budget (budget_zero).
[[nodiscard]] inline index_t kept_tokens(index_t tokens, double kept_ratio) {
    if (tokens < 0 || !(kept_ratio > 0 && kept_ratio <= 1)) { return 0; }
    const double exact = static_cast<double>(tokens) * kept_ratio;
    const double nearest = detail::math::round(exact);
    const double slack = std::max(1e-9, 4 * std::numeric_limits<double>::epsilon() * nearest);
    return static_cast<index_t>(detail::math::abs(exact - nearest) <= slack ? nearest
                                                                            : detail::math::floor(exact));
}

/// Tokens that a compression ratio keeps by kvpress' rule, to reproduce published runs: int(tokens * (1 -
/// compression_ratio)) in double arithmetic.
/// It is one short of the exact count wherever the product falls below a whole number (1000 x (1 - 0.9): 99).
/// A ratio outside [0, 1] or a negative number of tokens gives 0.
[[nodiscard]] constexpr index_t kept_tokens_kvpress(index_t tokens, double compression_ratio) {
    if (tokens < 0 || !(compression_ratio >= 0 && compression_ratio <= 1)) { return 0; }
    return static_cast<index_t>(static_cast<double>(tokens) * (1.0 - compression_ratio));
}

/// Returns ratio_out_of_range for a ratio outside (0, 1], or NaN.
[[nodiscard]] constexpr status valid_ratio(double ratio) {
    if (ratio > 0.0 && ratio <= 1.0) { return {}; }
    return {errc::ratio_out_of_range, "a kept ratio must be above 0 and at most 1"};
}

/// What one eviction is asked for.
struct eviction_request {
    token_budget budget;              ///< tokens that stay
    protection protect = {};          ///< tokens that always stay
    attention_options attention = {}; ///< how the layer computes attention
};

// The request for a layer with a sliding window, whose rows behind the window no later query sees. Either the engine
// drops those itself and the layer is skipped, or eviction stays behind the rows that the next query may still see.

/// The request with which nothing is evicted, and nothing scored. A policy over all layers (policy/layer_wise.hpp) is not
/// given such layers.
[[nodiscard]] constexpr eviction_request keeping_all(eviction_request request) {
    request.budget = over_all_heads(std::numeric_limits<index_t>::max());
    return request;
}
/// The request that also protects the sliding_window - 1 newest rows before a rollback tail, so that the next query's output
/// does not change.
/// A budget below them is refused (budget_below_protection). Without a sliding window, or with a negative number, which is
/// refused later, it is the request itself.
[[nodiscard]] constexpr eviction_request keeping_live_window(eviction_request request) {
    auto& p = request.protect;
    const index_t window = request.attention.sliding_window;
    if (window > 0 && p.window_tokens >= 0) { p.window_tokens = std::max(p.window_tokens, window - 1); }
    return request;
}

/// The request that evicts from the suffix alone: the first `prefix_tokens` rows stay as they are, so that other sequences
/// may go on reading them and a prefix cache may hand them out again. The budget counts them, as all that is protected:
/// per_head(prefix_tokens + n) leaves n rows of the suffix. A negative number is refused by valid_protection().
[[nodiscard]] constexpr eviction_request keeping_prefix(eviction_request request, index_t prefix_tokens) {
    auto& p = request.protect;
    p.pinned_tokens = prefix_tokens < 0 ? prefix_tokens : std::max(p.pinned_tokens, prefix_tokens);
    return request;
}

} // namespace KVTRIM_NAMESPACE
