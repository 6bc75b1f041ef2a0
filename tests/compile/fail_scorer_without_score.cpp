// expect: kvtrim: the scorer needs writes_attention and score\(inputs, request, scores, workspace, executor\) -> status
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/snapkv.hpp>

struct half_a_scorer {
    static constexpr bool writes_attention = false;
};

kvtrim::status plan(const kvtrim::strided<const float, 3>& keys, kvtrim::keep_plan& out,
                    kvtrim::growing_workspace& memory) {
    const kvtrim::eviction_policy policy{half_a_scorer{}, kvtrim::uniform{}, kvtrim::by_importance{}};
    return policy.plan(kvtrim::layer(keys), {.budget = kvtrim::per_head(10)}, out, memory);
}
