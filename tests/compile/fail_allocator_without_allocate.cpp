// expect: kvtrim: the allocator needs is_uniform and allocate\(score_rows, total, budgets, workspace\) -> status
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/snapkv.hpp>

struct half_an_allocator {
    static constexpr bool is_uniform = true;
};

inline constexpr kvtrim::eviction_policy policy{kvtrim::window_attention{kvtrim::mean_attention{}},
                                                half_an_allocator{}, kvtrim::by_importance{}};
