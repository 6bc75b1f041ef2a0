// expect: kvtrim: an executor is called as ex\(count, fn\)
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/baselines.hpp>

// A number of threads is no executor.
kvtrim::status plan(const kvtrim::strided<const float, 3>& keys, kvtrim::keep_plan& out,
                    kvtrim::workspace& scratch) {
    return kvtrim::streaming_llm().plan(kvtrim::layer(keys), {.budget = kvtrim::per_head(10)}, out, scratch,
                                        4);
}
