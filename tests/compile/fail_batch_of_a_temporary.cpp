// expect: a batch_item refers to its policy and inputs
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/baselines.hpp>
#include <kvtrim/policy/plan_batch.hpp>

kvtrim::batch_item of_a_temporary(const float* k, kvtrim::keep_plan& plan) {
    const auto in = kvtrim::layer(kvtrim::strided(k, {8, 100, 64}));
    return {kvtrim::key_norm(), in, {.budget = kvtrim::per_head(10)}, plan};
}
