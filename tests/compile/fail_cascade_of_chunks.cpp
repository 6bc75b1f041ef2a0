// expect: kvtrim: a reranker that ranks anew inside each budget
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/layer_wise.hpp>
#include <kvtrim/policy/snapkv.hpp>
#include <kvtrim/rerank/chunked.hpp>

kvtrim::layer_cascade begin(const float* data) {
    const kvtrim::strided<const float, 3> keys(data, {2, 32, 8});
    const auto in = kvtrim::layer(keys).with_queries(keys);
    const kvtrim::layer_wise policy{kvtrim::eviction_policy{
        kvtrim::window_attention{kvtrim::mean_attention{}}, kvtrim::adaptive{}, kvtrim::chunked_per_head{}}};
    return policy.begin(in, {.budget = kvtrim::per_head(8)}, 2);
}
