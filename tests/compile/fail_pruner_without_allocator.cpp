// expect: kvtrim: the allocator needs is_uniform and allocate\(score_rows, total, budgets, workspace\) -> status
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/prefill/block_pruner.hpp>

struct no_allocator {
    static constexpr bool is_uniform = false;
};

kvtrim::block_pruner<kvtrim::mid_query, no_allocator> policy;
