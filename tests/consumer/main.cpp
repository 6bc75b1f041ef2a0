// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/kvtrim.hpp>

#include <cstdio>
#include <vector>

int main() {
    const std::vector<float> memory(2 * 40 * 8, 1.0f);
    const kvtrim::strided keys(memory.data(), {2, 40, 8});
    const kvtrim::strided queries(memory.data(), {4, 8, 8});
    kvtrim::keep_plan plan;
    kvtrim::growing_workspace scratch;
    const kvtrim::status s = kvtrim::snapkv().plan(
        kvtrim::layer(keys).with_queries(queries),
        {.budget = kvtrim::per_head(10), .protect = {.window_tokens = 8}}, plan, scratch);
    std::printf("kvtrim %d.%d.%d keeps %d tokens\n", KVTRIM_VERSION_MAJOR, KVTRIM_VERSION_MINOR,
                KVTRIM_VERSION_PATCH, static_cast<int>(plan.total_tokens()));
    return s.ok() && plan.total_tokens() == 20 ? 0 : 1;
}
