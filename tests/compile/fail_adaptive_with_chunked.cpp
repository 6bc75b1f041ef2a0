// expect: kvtrim: this reranker keeps .* \(chunks of heads that compete: chunked_per_head\)
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/baselines.hpp>
#include <kvtrim/rerank/chunked.hpp>

// chunked keeps one set for all heads.
inline constexpr kvtrim::eviction_policy policy{kvtrim::key_norm_score{}, kvtrim::adaptive{},
                                                kvtrim::chunked{}};
