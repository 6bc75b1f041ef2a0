// expect: kvtrim: block_sparse_attention writes to a strided view \[q_heads, tokens, value head_dim\]
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/prefill/block_sparse_attention.hpp>

kvtrim::status attend(const kvtrim::strided<const float, 3>& keys, const kvtrim::prune_plan& plan, float* out,
                      kvtrim::workspace& scratch) {
    const auto in = kvtrim::layer(keys, keys).with_queries(keys);
    return kvtrim::block_sparse_attention(in, plan, {}, kvtrim::strided<float, 2>(out, {1, 1}), {}, scratch);
}
