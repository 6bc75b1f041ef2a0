// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

#include "support/checks.hpp"
#include "support/random_scores.hpp"

namespace support {

// The budgets of an allocator, in exactly the workspace that it asks for.
template <class Allocator>
oracle::counts allocate(const Allocator& allocator, const oracle::matrix& rows, std::size_t total) {
    score_memory memory(rows);
    std::vector<index_t> budgets(rows.size(), -7);
    index_t bytes = 0;
    if constexpr (requires { allocator.workspace_bytes(index_t{1}, index_t{1}); }) {
        bytes = allocator.workspace_bytes(static_cast<index_t>(rows.size()), memory.offsets.back());
    }
    kvtrim::growing_workspace growing;
    kvtrim::workspace scratch = growing.of_bytes(bytes);
    const kvtrim::status s =
        allocator.allocate(memory.importance_rows(), static_cast<index_t>(total), budgets, scratch);
    if (!s.ok()) { throw std::runtime_error(s.what()); }
    return to_counts(budgets);
}

inline std::size_t sum_of(const oracle::counts& budgets) {
    return std::accumulate(budgets.begin(), budgets.end(), std::size_t{0});
}

} // namespace support
