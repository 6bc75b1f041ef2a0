// expect: kvtrim: keys must be a view \[kv_heads, tokens, head_dim\]
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/baselines.hpp>

// Keys without a head dimension.
kvtrim::status plan(float* data, kvtrim::keep_plan& out, kvtrim::growing_workspace& memory) {
    const kvtrim::strided keys(data, {100, 64});
    return kvtrim::key_norm().plan(kvtrim::layer(keys), {.budget = kvtrim::per_head(10)}, out, memory);
}
