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

// Whether an allocator refuses a total that the rows cannot hold, budgets of another number of rows, and tables that are no
// rows, with no budget written.
template <class Allocator>
void require_allocation_refusals(const Allocator& allocator) {
    score_memory memory(oracle::matrix{{1, 2, 3}, {4, 5}});
    kvtrim::growing_workspace growing;
    const auto answer = [&](const kvtrim::score_rows& scores, index_t total, std::size_t rows) {
        std::vector<index_t> budgets(rows, -7);
        kvtrim::workspace scratch = growing.of_bytes(4096);
        const kvtrim::status s = allocator.allocate(scores, total, budgets, scratch);
        if (!s.ok()) { CHECK(budgets == std::vector<index_t>(rows, -7)); }
        return std::string(s.what());
    };
    CHECK(answer(memory.importance_rows(), 5, 2) == "ok");
    CHECK(answer(memory.importance_rows(), 0, 2) == "ok");
    for (const index_t total : {index_t{6}, index_t{-1}, std::numeric_limits<index_t>::max()}) {
        CHECK(answer(memory.importance_rows(), total, 2) ==
              "allocate: total must be between 0 and the number of candidates");
    }
    for (const std::size_t rows : {0u, 1u, 3u}) {
        CHECK(answer(memory.importance_rows(), 2, rows) == "allocate: budgets must have one entry per row");
    }
    for (const std::vector<index_t>& offsets :
         {std::vector<index_t>{0, 3, 6}, {0, 4, 3}, {-1, 3, 5}, {5, 3, 0}, {}}) {
        CHECK(answer({offsets, memory.importance}, 2, 2) == "scores: offsets must ascend within the values");
    }
    for (const std::vector<index_t>& always : {std::vector<index_t>{1}, {1, -1}, {1, index_t{1} << 40}}) {
        CHECK(answer({memory.offsets, memory.importance, always}, 2, 2) ==
              "scores: protected_tokens must have one entry per row, none negative");
    }
}

template <class Number>
Number sum_of(const std::vector<Number>& budgets) {
    return std::accumulate(budgets.begin(), budgets.end(), Number{0});
}

} // namespace support
