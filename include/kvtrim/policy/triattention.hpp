// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// TriAttention: the logits that a head's mean query is expected to give at many distances; for long generation.
//
// Needs no queries of the sequence: means of the model's queries before RoPE are gathered once on any text
// (score/query_pair_means.hpp) and kept in a file. The authors pin the prompt and evict from what was generated, every 128
// tokens: keeping_prefix(request, prompt_tokens) in an interval_policy (decode/interval_policy.hpp).
// Source: TriAttention, arXiv:2604.04921.

#include <kvtrim/allocate/uniform.hpp>
#include <kvtrim/policy/eviction_policy.hpp>
#include <kvtrim/rerank/by_importance.hpp>
#include <kvtrim/score/trig_series_score.hpp>

namespace KVTRIM_NAMESPACE {

/// Settings of triattention().
struct triattention_config {
    index_t next_position = -1; ///< of the next query; -1: the rows of the longest head
    index_t octaves = 17;       ///< reference offsets 1 ... 65536
};

/// TriAttention, arXiv:2604.04921. The means and the table of frequencies must outlive the policy. Any allocator.
template <class Allocator = uniform>
[[nodiscard]] constexpr auto triattention(const query_pair_means& queries, const rope& model_rope,
                                          const triattention_config& c = {},
                                          const Allocator& allocator = {}) {
    return eviction_policy{trig_series_score{&queries, model_rope, c.next_position, c.octaves}, allocator,
                           by_importance{}};
}

} // namespace KVTRIM_NAMESPACE
