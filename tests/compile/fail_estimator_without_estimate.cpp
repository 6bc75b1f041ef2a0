// expect: kvtrim: the estimator needs estimate\(segments, blocks, out, spare\) and spare_floats\(segments, blocks, head_dim\)
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/prefill/block_pruner.hpp>

struct half_an_estimator {
    static kvtrim::index_t spare_floats(kvtrim::index_t, kvtrim::index_t, kvtrim::index_t) { return 0; }
};

kvtrim::status plan(const kvtrim::strided<const float, 3>& queries,
                    const kvtrim::strided<const float, 3>& keys, kvtrim::layer_fusion& state,
                    kvtrim::prune_plan& out, kvtrim::growing_workspace& memory) {
    return kvtrim::block_pruner<half_an_estimator>{}.plan(queries, keys, {}, state, out, memory);
}
