// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Extents come as the engine's own integers: of any type, also mixed, without a cast and without a warning. Raw 16-bit rows
// are viewed once they are named.

#include <kvtrim/cache/paged_rows.hpp>
#include <kvtrim/policy/baselines.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

kvtrim::status plan_sizes(const std::vector<float>& k, std::size_t heads, std::size_t head_dim,
                          kvtrim::keep_plan& out, kvtrim::growing_workspace& memory) {
    const kvtrim::strided keys(k.data(), {heads, k.size() / heads / head_dim, head_dim});
    return kvtrim::key_norm().plan(kvtrim::layer(keys), {.budget = kvtrim::per_head(100)}, out, memory);
}

kvtrim::status plan_mixed(const std::uint16_t* k, int heads, unsigned tokens, std::int64_t head_dim,
                          kvtrim::keep_plan& out, kvtrim::growing_workspace& memory) {
    const kvtrim::strided half(kvtrim::as_f16(k), {heads, static_cast<int>(tokens), 128});
    const kvtrim::strided<const kvtrim::bf16, 3> keys(kvtrim::as_bf16(k), {heads, tokens, head_dim},
                                                      {tokens * head_dim, head_dim, std::size_t{1}});
    const auto s = kvtrim::key_norm().plan(kvtrim::layer(half), {.budget = kvtrim::per_head(9)}, out, memory);
    if (!s.ok()) { return s; }
    return kvtrim::key_norm().plan(kvtrim::layer(keys), {.budget = kvtrim::per_head(9)}, out, memory);
}

kvtrim::status plan_named(std::uint16_t* pool, const kvtrim::page_table& table, kvtrim::keep_plan& out,
                          kvtrim::growing_workspace& memory) {
    const kvtrim::paged_rows keys(kvtrim::as_bf16(pool), kvtrim::nhd_pages(16, 8, 128), table, 0, 8, 128);
    return kvtrim::key_norm().plan(kvtrim::layer(keys), {.budget = kvtrim::per_head(9)}, out, memory);
}
