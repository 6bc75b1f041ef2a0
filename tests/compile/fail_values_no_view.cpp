// expect: kvtrim: values must be a view \[kv_heads, tokens, head_dim\]
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/cache/layer.hpp>

// A pointer is no view.
kvtrim::index_t heads(const kvtrim::strided<const float, 3>& keys, const float* values) {
    return kvtrim::layer(keys, values).kv_heads();
}
