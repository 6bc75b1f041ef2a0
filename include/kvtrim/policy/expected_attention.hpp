// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Expected attention: the attention that later queries are expected to pay, from statistics of earlier ones, times the value
// norm.
//
// Needs values, the model's RoPE, and statistics of the prompt's queries before RoPE that the engine gathers while it
// prefills (score/query_statistics.hpp); no observation window. Protect the sinks: request.protect.sink_tokens = 4,
// as many as the statistics skip.
// Source: Expected Attention, arXiv:2510.00636; kvpress@8bb29b9 expected_attention_press.py, checked through the golden
// vectors; its defaults.

#include <kvtrim/allocate/uniform.hpp>
#include <kvtrim/policy/eviction_policy.hpp>
#include <kvtrim/rerank/by_importance.hpp>
#include <kvtrim/score/expected_attention_score.hpp>
#include <kvtrim/score/value_norm_weighted.hpp>

namespace KVTRIM_NAMESPACE {

/// Settings of expected_attention().
struct expected_attention_config {
    index_t future_positions = 512; ///< reference n_future_positions
    bool use_covariance = true;     ///< reference use_covariance
    float epsilon = 0;              ///< added to a score before it is weighted by the value norm
};

/// Expected Attention, arXiv:2510.00636. The statistics and the table of frequencies must outlive the policy. Any allocator.
template <class Allocator = uniform>
[[nodiscard]] constexpr auto expected_attention(const query_statistics& statistics, const rope& model_rope,
                                                const expected_attention_config& c = {},
                                                const Allocator& allocator = {}) {
    const expected_attention_score score{&statistics, model_rope, c.future_positions, c.use_covariance};
    return eviction_policy{value_norm_weighted<expected_attention_score>{score, c.epsilon}, allocator,
                           by_importance{}};
}

} // namespace KVTRIM_NAMESPACE
