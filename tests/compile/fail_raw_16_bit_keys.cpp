// expect: kvtrim: 16 raw bits are f16 or bf16: pass as_f16\(pointer\) or as_bf16\(pointer\)
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/snapkv.hpp>

#include <cstdint>

// Keys as an engine in C keeps them: which of the two formats the bits are, only the engine knows.
kvtrim::status plan(const std::uint16_t* k, const kvtrim::strided<const float, 3>& queries,
                    kvtrim::keep_plan& out, kvtrim::growing_workspace& memory) {
    const kvtrim::strided keys(k, {8, 1000, 128});
    return kvtrim::snapkv().plan(kvtrim::layer(keys).with_queries(queries), {.budget = kvtrim::per_head(100)},
                                 out, memory);
}
