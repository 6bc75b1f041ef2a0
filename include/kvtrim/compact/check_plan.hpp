// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What every compaction checks in a plan before it changes the cache, and what it reports afterwards.

#include <kvtrim/cache/row_source.hpp>
#include <kvtrim/plan/keep_plan.hpp>

namespace KVTRIM_NAMESPACE {

/// Bytes of key or value rows, all heads together: of the cache before, and of the survivors where they are now. What was
/// freed is the difference.
struct compaction_report {
    index_t bytes_before = 0; ///< of the cache before
    index_t bytes_after = 0;  ///< of the survivors

    friend constexpr bool operator==(const compaction_report&, const compaction_report&) = default;
    friend constexpr compaction_report operator+(compaction_report a, compaction_report b) {
        return {a.bytes_before + b.bytes_before, a.bytes_after + b.bytes_after};
    }
};

/// Returns what validate(cache) says, and errc::plan_mismatch unless the plan has a row per head and only rows of this
/// cache, ascending: an engine may have filled it. O(kept tokens).
template <class View>
[[nodiscard]] status check_plan(const View& cache, const keep_plan& plan) {
    if (const status s = validate(cache); !s.ok()) { return s; }
    if (plan.rows() != extent(cache, 0)) {
        return {errc::plan_mismatch, "the plan has another number of heads than the cache", plan.rows()};
    }
    if (!plan.check_invariants([&](index_t head) { return row_count(cache, head); })) {
        return {errc::plan_mismatch, "the plan keeps rows that the cache does not have"};
    }
    return {};
}

/// A cache whose rows occupy a known number of bytes: it says so with row_bytes(), or its elements do.
template <class V>
concept knows_row_bytes = strided_view<V, 3> || requires(const V& v) {
    { v.row_bytes() } -> std::convertible_to<index_t>;
};

/// Bytes that one row of a cache occupies; gaps between rows are not counted.
template <knows_row_bytes V>
[[nodiscard]] constexpr index_t row_bytes(const V& cache) {
    if constexpr (requires { cache.row_bytes(); }) {
        return static_cast<index_t>(cache.row_bytes());
    } else {
        return extent(cache, 2) * static_cast<index_t>(sizeof(*cache.data_handle()));
    }
}

/// The report of a cache with rows of `before` bytes, whose survivors have `after` bytes each.
template <class View>
[[nodiscard]] compaction_report report_rows(const View& cache, const keep_plan& plan, index_t before,
                                            index_t after) {
    index_t rows = 0;
    for (index_t g = 0; g < extent(cache, 0); ++g) { rows += row_count(cache, g); }
    return {rows * before, plan.total_tokens() * after};
}

} // namespace KVTRIM_NAMESPACE
