// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Many independent items on few workers: each worker has a workspace of its own and takes the next item until none
// is left. For work with more items than anyone has memory for, or items of very different cost.
//
// An executor says with workers() how many calls it runs at the same time (memory is needed for so many); one that
// does not say is taken to run as many as the machine has threads. Items share no scratch and no sums, so results
// do not depend on the number of workers.

#include <kvtrim/base/executor.hpp>
#include <kvtrim/base/saturated.hpp>
#include <kvtrim/base/workspace.hpp>

#include <algorithm>
#include <atomic>
#include <thread>

namespace kvtrim {

template <class Executor>
[[nodiscard]] index_t worker_count(const Executor& ex, index_t items) {
    index_t workers = 1;
    if constexpr (requires { ex.workers(); }) {
        workers = static_cast<index_t>(ex.workers());
    } else {
        workers = static_cast<index_t>(std::thread::hardware_concurrency());
    }
    return std::clamp<index_t>(workers, 1, std::max<index_t>(1, items));
}

// Bytes that for_each_item takes when every worker needs `worker_bytes`.
template <class Executor>
[[nodiscard]] index_t for_each_item_bytes(const Executor& ex, index_t items, index_t worker_bytes) {
    workspace counting = workspace::counting();
    static_cast<void>(counting.take<std::byte>(saturated_product(worker_count(ex, items), worker_bytes)));
    return counting.needed_bytes();
}

// Calls fn(item, workspace&) once for every item, in ascending order on each worker.
// Returns errc::workspace_too_small, with no call made.
template <executor Executor, class Fn>
[[nodiscard]] status for_each_item(index_t items, index_t worker_bytes, workspace& scratch, Executor& ex,
                                   Fn&& fn) {
    const workspace::frame frame(scratch);
    const index_t workers = worker_count(ex, items);
    const auto memory = scratch.take<std::byte>(saturated_product(workers, worker_bytes));
    if (!scratch.fits()) { return scratch.too_small(); }
    std::atomic<index_t> next = 0;
    ex(workers, [&](index_t worker) {
        const auto own = memory.subspan(static_cast<std::size_t>(worker * worker_bytes),
                                        static_cast<std::size_t>(worker_bytes));
        for (index_t item = next++; item < items; item = next++) {
            workspace item_scratch(own);
            fn(item, item_scratch);
        }
    });
    return {};
}

} // namespace kvtrim
