// expect: kvtrim: W_O must be a view \[q_heads, head_dim, hidden\]
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/criticalkv.hpp>

// The weight as torch has it, [hidden, q_heads * head_dim].
kvtrim::status plan(const kvtrim::strided<const float, 3>& view, const float* weight, kvtrim::keep_plan& out,
                    kvtrim::growing_workspace& memory) {
    const auto in = kvtrim::layer(view, view)
                        .with_queries(view)
                        .with_output_projection(kvtrim::strided(weight, {256, 256}));
    return kvtrim::criticalkv().plan(in, {.budget = kvtrim::per_head(10)}, out, memory);
}
