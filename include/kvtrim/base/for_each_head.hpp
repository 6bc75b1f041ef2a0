// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Runs one task per KV head, each with a workspace of its own: heads share no scratch and no sums, so they may
// run in any order on any number of threads with the same result.

#include <kvtrim/base/executor.hpp>
#include <kvtrim/base/workspace.hpp>

namespace kvtrim {

// Bytes that for_each_head takes when every head needs `head_bytes`.
[[nodiscard]] inline index_t for_each_head_bytes(index_t kv_heads, index_t head_bytes) {
    workspace counting = workspace::counting();
    static_cast<void>(counting.take<std::byte>(kv_heads * head_bytes));
    return counting.needed_bytes();
}

// Calls fn(kv_head, workspace&) for every head. Returns errc::workspace_too_small, with no call made.
template <executor Executor, class Fn>
[[nodiscard]] status for_each_head(index_t kv_heads, index_t head_bytes, workspace& scratch, Executor& ex,
                                   Fn&& fn) {
    const workspace::frame frame(scratch);
    const auto memory = scratch.take<std::byte>(kv_heads * head_bytes);
    if (!scratch.fits()) { return scratch.too_small(); }
    ex(kv_heads, [&](index_t kv_head) {
        workspace own(memory.subspan(static_cast<std::size_t>(kv_head * head_bytes),
                                     static_cast<std::size_t>(head_bytes)));
        fn(kv_head, own);
    });
    return {};
}

} // namespace kvtrim
