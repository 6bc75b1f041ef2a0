// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What every compaction asks of a plan before it touches the cache, and what it reports afterwards.

#include <kvtrim/base/row_source.hpp>
#include <kvtrim/plan/keep_plan.hpp>

namespace kvtrim {

// Bytes of key or value rows, all heads together. What was freed is the difference.
struct compaction_report {
    index_t bytes_before = 0;
    index_t bytes_after = 0;

    friend constexpr compaction_report operator+(compaction_report a, compaction_report b) {
        return {a.bytes_before + b.bytes_before, a.bytes_after + b.bytes_after};
    }
};

// Returns errc::plan_mismatch unless the plan has a row per head and only rows of this cache, ascending.
template <class View>
[[nodiscard]] status check_plan(const View& cache, const keep_plan& plan) {
    if (plan.rows() != extent(cache, 0)) {
        return {errc::plan_mismatch, "the plan has another number of heads than the cache", plan.rows()};
    }
    if (!plan.check_invariants([&](index_t head) { return row_count(cache, head); })) {
        return {errc::plan_mismatch, "the plan keeps rows that the cache does not have"};
    }
    return {};
}

// Bytes of one row of elements T.
template <class T, class View>
[[nodiscard]] constexpr index_t row_bytes(const View& cache) {
    return extent(cache, 2) * static_cast<index_t>(sizeof(T));
}

template <class T, class View>
[[nodiscard]] compaction_report report_rows(const View& cache, const keep_plan& plan) {
    index_t rows = 0;
    for (index_t g = 0; g < extent(cache, 0); ++g) { rows += row_count(cache, g); }
    return {rows * row_bytes<T>(cache), plan.total_tokens() * row_bytes<T>(cache)};
}

} // namespace kvtrim
