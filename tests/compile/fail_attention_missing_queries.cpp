// expect: kvtrim: block_sparse_attention needs layer\(keys, values\)\.with_queries\(queries\)
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/prefill/block_sparse_attention.hpp>

kvtrim::status attend(const kvtrim::strided<const float, 3>& keys, const kvtrim::prune_plan& plan,
                      const kvtrim::strided<float, 3>& out, kvtrim::workspace& scratch) {
    return kvtrim::block_sparse_attention(kvtrim::layer(keys, keys), plan, {}, out, {}, scratch);
}
