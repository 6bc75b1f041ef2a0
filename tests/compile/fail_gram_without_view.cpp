// expect: kvtrim: the output projection is a view: pass gram\.view\(\)
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/criticalkv.hpp>

kvtrim::status plan(const kvtrim::strided<const float, 3>& view, const kvtrim::gram_projection& gram,
                    kvtrim::keep_plan& out, kvtrim::growing_workspace& memory) {
    const auto in = kvtrim::layer(view, view).with_queries(view).with_output_projection(gram);
    return kvtrim::criticalkv().plan(in, {.budget = kvtrim::per_head(10)}, out, memory);
}
