// expect: kvtrim: queries must be a view \[q_heads, queries, head_dim\]
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/snapkv.hpp>

// One query as a vector, where a view of heads and queries is needed.
kvtrim::status plan(const kvtrim::strided<const float, 3>& keys, const float* query, kvtrim::keep_plan& out,
                    kvtrim::growing_workspace& memory) {
    const auto in = kvtrim::layer(keys).with_queries(kvtrim::strided(query, {8, 64}));
    return kvtrim::snapkv().plan(in, {.budget = kvtrim::per_head(10)}, out, memory);
}
