// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Spreads independent items (KV heads, parts of them, sequences) over a few workers. Each worker has a workspace of its own
// and takes the next item until none is left.
//
// An executor says with workers() how many calls it runs at the same time; one without workers() counts as untold_workers.
// The number of processors is never asked for, so workspace_bytes() is the same on every machine.
// Workers: as many as the executor runs, or fewer if the workspace is smaller. One worker's memory is enough, so a workspace that
// was sized for one executor serves every other one.
// Items share no scratch and no sums, so results do not depend on the number of workers.

#include <kvtrim/core/executor.hpp>
#include <kvtrim/core/saturated.hpp>
#include <kvtrim/core/workspace.hpp>

#include <algorithm>

namespace KVTRIM_NAMESPACE {

/// Workers of an executor that does not say how many it runs.
inline constexpr index_t untold_workers = 16;

/// Workers for so many items: those of the executor, at least 1 and at most one per item.
template <class Executor>
[[nodiscard]] index_t worker_count(const Executor& ex, index_t items) {
    index_t workers = untold_workers;
    if constexpr (requires { ex.workers(); }) { workers = static_cast<index_t>(ex.workers()); }
    return std::clamp<index_t>(workers, 1, std::max<index_t>(1, items));
}

/// Bytes with which for_each_item runs at the executor's full width, when every worker needs `worker_bytes`.
template <class Executor>
[[nodiscard]] index_t for_each_item_bytes(const Executor& ex, index_t items, index_t worker_bytes) {
    workspace counting = workspace::counting();
    static_cast<void>(counting.take<std::byte>(saturated_product(worker_count(ex, items), worker_bytes)));
    return counting.needed_bytes();
}

/// Calls fn(item, workspace&) once for every item, in ascending order on each worker.
/// Returns errc::workspace_too_small (needed: bytes for one worker), with no call made, or invalid_parameter for an executor
/// that returns before all items were taken, because it called nothing.
template <executor Executor, class Fn>
[[nodiscard]] status for_each_item(index_t items, index_t worker_bytes, workspace& scratch, Executor& ex,
                                   Fn&& fn) {
    const workspace::frame frame(scratch);
    index_t workers = worker_count(ex, items);
    if (worker_bytes > 0) { workers = std::clamp<index_t>(scratch.free_bytes() / worker_bytes, 1, workers); }
    const auto memory = scratch.take<std::byte>(saturated_product(workers, worker_bytes));
    if (!scratch.fits()) { return scratch.too_small(); }
    index_t next = 0; // counted up by the compilers' atomic operation: <atomic> costs each file 0.2 s
    const auto take = [&] { return __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED); };
    ex(workers, [&](index_t worker) {
        const auto own = memory.subspan(static_cast<std::size_t>(worker * worker_bytes),
                                        static_cast<std::size_t>(worker_bytes));
        for (index_t item = take(); item < items; item = take()) {
            workspace item_scratch(own);
            fn(item, item_scratch);
        }
    });
    if (next < items) {
        return {errc::invalid_parameter,
                "the executor returned without a call: it must call fn(i) for each i"};
    }
    return {};
}

} // namespace KVTRIM_NAMESPACE
