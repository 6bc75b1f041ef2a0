// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The methods that the others are measured against, each a one-line composition.
//
//   streaming_llm       newest tokens; protect the sinks: request.protect.sink_tokens = 4      2309.17453
//   h2o                 attention summed over the whole prompt (pass all queries)              2306.14048
//   observed_attention  the same divided by the queries that saw a token                       kvpress
//   tova                attention of the last query, one token set for all heads               2401.06104
//   key_norm            smallest keys                                                          2406.11430
//   key_diff            keys unlike the average key                                            2504.15364
//   key_diff_before_rope  the same over keys as they were before RoPE
//   random              seeded
//
// h2o and observed_attention need queries [q_heads, tokens, head_dim]: O(tokens^2) work, O(tokens) memory.
// A sum grows with every query that sees a token: without a protected window the newest tokens of a prompt would be evicted
// first, and each later one at the next cut. h2o therefore refuses a request without request.protect.window_tokens
// (invalid_parameter; needed: half of the budget, which is H2O's), unless everything is kept. observed_attention divides by
// the queries that saw a token, so that a new one stays where it is attended to; early queries, which share their attention
// among few tokens, still favour old ones.
// Departures: H2O's decode-time sums are decode/running_scores.hpp; H2O's window and TOVA's newest token (window_tokens = 1)
// are protected by the request, not by a score.

#include <kvtrim/policy/snapkv.hpp>
#include <kvtrim/rerank/shared.hpp>
#include <kvtrim/score/before_rope.hpp>
#include <kvtrim/score/key_norm_score.hpp>
#include <kvtrim/score/random_score.hpp>
#include <kvtrim/score/recency.hpp>
#include <kvtrim/score/validate_sum_window.hpp>

namespace KVTRIM_NAMESPACE {

/// StreamingLLM, arXiv:2309.17453: the newest tokens and the protected sinks.
[[nodiscard]] constexpr auto streaming_llm() {
    return eviction_policy{recency{}, uniform{}, by_importance{}};
}

/// A scorer for h2o: sums over all queries, and only where the request protects a window.
struct summed_attention : window_attention<mean_attention> {
    /// group: how the query heads of a KV head are folded.
    constexpr explicit summed_attention(group_reduction group)
        : window_attention{{.pool = pooling::none, .group = group, .queries = query_normalisation::sum}} {}

    /// What window_attention says, or invalid_parameter (needed: window_tokens) for a request without a protected window.
    template <class Inputs>
    [[nodiscard]] status validate(const Inputs& in, const eviction_request& request) const {
        const status s = window_attention::validate(in, request);
        return s.ok() ? detail::validate_sum_window(in, request) : s;
    }
};

/// H2O, arXiv:2306.14048. Refuses a request without a protected window, as described above.
[[nodiscard]] constexpr auto h2o(group_reduction group = group_reduction::mean) {
    return eviction_policy{summed_attention{group}, uniform{}, by_importance{}};
}

/// The attention of all queries, divided by the number of queries that saw a token (kvpress).
[[nodiscard]] constexpr auto observed_attention() {
    const mean_attention mean{.pool = pooling::none, .queries = query_normalisation::lifetime};
    return eviction_policy{window_attention{mean}, uniform{}, by_importance{}};
}

/// TOVA, arXiv:2401.06104: attention of the last query, one token set for all heads.
[[nodiscard]] constexpr auto tova() {
    return eviction_policy{window_attention{mean_attention{.pool = pooling::none}, 1}, uniform{}, shared{}};
}

/// L2 norm, arXiv:2406.11430: the smallest keys stay.
[[nodiscard]] constexpr auto key_norm() {
    return eviction_policy{key_norm_score{}, uniform{}, by_importance{}};
}
/// KeyDiff, arXiv:2504.15364: keys unlike the average key stay.
[[nodiscard]] constexpr auto key_diff() {
    return eviction_policy{key_diff_score{}, uniform{}, by_importance{}};
}
/// The same over keys as they were before RoPE, which are turned back while they are read. positions: of the rows of a cache
/// that was cut (score/before_rope.hpp). They and the table of frequencies must outlive the policy.
[[nodiscard]] constexpr auto key_diff_before_rope(const rope& model_rope,
                                                  const row_positions& positions = {}) {
    return eviction_policy{before_rope<key_diff_score>{{}, model_rope, positions}, uniform{},
                           by_importance{}};
}
/// Random tokens; equal seeds give equal plans.
[[nodiscard]] constexpr auto random(std::uint64_t seed = 0) {
    return eviction_policy{random_score{seed}, uniform{}, by_importance{}};
}

} // namespace KVTRIM_NAMESPACE
