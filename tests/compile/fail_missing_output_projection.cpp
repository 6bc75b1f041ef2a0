// expect: kvtrim: projected value norms need W_O: pass layer\(keys, values\)\.with_output_projection\(w_o\)
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/criticalkv.hpp>

kvtrim::status plan(const kvtrim::strided<const float, 3>& view, kvtrim::keep_plan& out,
                    kvtrim::growing_workspace& memory) {
    const auto in = kvtrim::layer(view, view).with_queries(view);
    return kvtrim::criticalkv().plan(in, {.budget = kvtrim::per_head(10)}, out, memory);
}
