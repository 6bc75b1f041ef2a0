// expect: kvtrim: this reranker keeps the same number of tokens in every head: combine it with the uniform allocator
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/baselines.hpp>

// One token set for all heads can not have a budget for each head.
inline constexpr kvtrim::eviction_policy policy{kvtrim::key_norm_score{}, kvtrim::adaptive{},
                                                kvtrim::shared{}};
