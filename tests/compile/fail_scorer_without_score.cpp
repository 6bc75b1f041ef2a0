// expect: kvtrim: the scorer needs two_stage and score\(inputs, request, scores, workspace, executor\) -> status
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/snapkv.hpp>

struct half_a_scorer {
    static constexpr bool two_stage = false;
};

kvtrim::status plan(const kvtrim::strided<const float, 3>& keys, kvtrim::keep_plan& out,
                    kvtrim::growing_workspace& memory) {
    const kvtrim::eviction_policy policy{half_a_scorer{}, kvtrim::uniform{}, kvtrim::one_stage{}};
    return policy.plan(kvtrim::layer(keys), {.budget = kvtrim::per_head(10)}, out, memory);
}
