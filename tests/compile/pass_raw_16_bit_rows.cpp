// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// What README.md and docs/engines/index.md show for rows of raw uint16_t.

#include <kvtrim/policy/snapkv.hpp>

kvtrim::status cut(std::uint16_t* k, const std::uint16_t* v, kvtrim::index_t kv_heads, kvtrim::index_t tokens,
                   kvtrim::index_t head_dim, kvtrim::keep_plan& plan, kvtrim::growing_workspace& memory);

kvtrim::status cut(std::uint16_t* k, const std::uint16_t* v, kvtrim::index_t kv_heads, kvtrim::index_t tokens,
                   kvtrim::index_t head_dim, kvtrim::keep_plan& plan, kvtrim::growing_workspace& memory) {
    const kvtrim::strided keys(kvtrim::as_bf16(k), {kv_heads, tokens, head_dim});
    const kvtrim::strided values(kvtrim::as_f16(v), {kv_heads, tokens, head_dim});
    static_assert(std::is_same_v<decltype(keys)::element_type, kvtrim::bf16>);
    static_assert(std::is_same_v<decltype(values)::element_type, const kvtrim::f16>);
    return kvtrim::snapkv().plan(kvtrim::layer(keys, values).with_queries(keys),
                                 {.budget = kvtrim::per_head(16)}, plan, memory);
}
