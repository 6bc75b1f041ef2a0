// expect: kvtrim: projected value norms need the values: pass layer\(keys, values\)
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/defensivekv.hpp>

kvtrim::status plan(const kvtrim::strided<const float, 3>& view, kvtrim::keep_plan& out,
                    kvtrim::growing_workspace& memory) {
    const auto in = kvtrim::layer(view).with_queries(view).with_output_projection(view);
    return kvtrim::defensivekv().plan(in, {.budget = kvtrim::per_head(10)}, out, memory);
}
