// expect: kvtrim: window_attention needs the observation queries: pass layer\(keys, values\)\.with_queries\(queries\)
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/snapkv.hpp>

kvtrim::status plan(const kvtrim::strided<const float, 3>& keys, kvtrim::keep_plan& out,
                    kvtrim::growing_workspace& memory) {
    return kvtrim::snapkv().plan(kvtrim::layer(keys, keys), {.budget = kvtrim::per_head(10)}, out, memory);
}
