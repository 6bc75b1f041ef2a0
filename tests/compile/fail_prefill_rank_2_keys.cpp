// expect: kvtrim: queries and keys must be views \[heads, tokens, head_dim\]
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/critiprefill.hpp>

kvtrim::status plan(const kvtrim::strided<const float, 3>& queries,
                    const kvtrim::strided<const float, 2>& keys, kvtrim::layer_fusion& state,
                    kvtrim::prune_plan& out, kvtrim::workspace& scratch) {
    return kvtrim::critiprefill().plan(queries, keys, {}, state, out, scratch);
}
