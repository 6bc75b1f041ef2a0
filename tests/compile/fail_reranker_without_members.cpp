// expect: kvtrim: the reranker needs allocate_by_attention and needs_uniform_budgets
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/snapkv.hpp>

struct half_a_reranker {
    static constexpr bool allocate_by_attention = true;
};

inline constexpr kvtrim::eviction_policy policy{kvtrim::window_attention{kvtrim::mean_attention{}},
                                                kvtrim::uniform{}, half_a_reranker{}};
