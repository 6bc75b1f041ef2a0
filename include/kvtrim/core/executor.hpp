// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Where parallel work runs: any callable ex(count, fn) that calls fn(i) once for each i in [0, count), in any
// order, on any thread, and returns when all have returned. An engine passes its own pool.
//
// kvtrim hands out independent pieces (one KV head each) that share no scratch and no sums, so results do
// not depend on the number of threads.

#include <kvtrim/core/status.hpp>

#include <utility>

namespace KVTRIM_NAMESPACE {

/// Calls in the calling thread, one after the other.
struct serial_executor {
    /// Calls that run at the same time (core/for_each_item.hpp).
    [[nodiscard]] static constexpr index_t workers() { return 1; }

    /// Calls fn(i) for i in [0, count), ascending.
    template <class Fn>
    void operator()(index_t count, Fn&& fn) const {
        for (index_t i = 0; i < count; ++i) { fn(i); }
    }
};

namespace detail {

struct executor_probe {
    void operator()(index_t) const {}
};

} // namespace detail

/// What runs parallel work: ex(count, fn) returns when fn(i) has returned for each i in [0, count). workers() is optional.
template <class E>
concept executor = requires(E& ex, const detail::executor_probe& fn) {
    ex(index_t{1}, fn);
};

} // namespace KVTRIM_NAMESPACE
