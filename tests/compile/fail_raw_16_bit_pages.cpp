// expect: kvtrim: 16 raw bits are f16 or bf16: pass as_f16\(pointer\) or as_bf16\(pointer\)
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/cache/paged_rows.hpp>
#include <kvtrim/policy/baselines.hpp>

#include <cstdint>

// A paged pool of raw bits.
kvtrim::status plan(const std::uint16_t* pool, const kvtrim::page_table& table, kvtrim::keep_plan& out,
                    kvtrim::growing_workspace& memory) {
    const kvtrim::paged_rows keys(pool, kvtrim::nhd_pages(16, 8, 128), table, 0, 8, 128);
    return kvtrim::key_norm().plan(kvtrim::layer(keys), {.budget = kvtrim::per_head(100)}, out, memory);
}
