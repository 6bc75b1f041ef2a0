// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The position of each row of each head, as a CSR table: the positions that keys are rotated to now, or are to be rotated to.
//
//   offsets     [kv_heads + 1]        int32, ascending
//   positions   [offsets[kv_heads]]   int32, from 0 on; row i of head g has positions[offsets[g] + i]
//
// Tables are not trusted: validate() checks them in O(rows), and every call that takes positions calls it.

#include <kvtrim/plan/keep_plan.hpp>

#include <algorithm>

namespace KVTRIM_NAMESPACE {

/// Positions of rows, a view.
struct row_positions {
    std::span<const std::int32_t> offsets;   ///< [kv_heads + 1]
    std::span<const std::int32_t> positions; ///< [offsets[kv_heads]]

    /// KV heads; 0 without offsets.
    [[nodiscard]] index_t heads() const { return offsets.empty() ? 0 : std::ssize(offsets) - 1; }
    /// Positions of the rows of a head.
    [[nodiscard]] std::span<const std::int32_t> row(index_t head) const {
        const auto g = static_cast<std::size_t>(head);
        return positions.subspan(static_cast<std::size_t>(offsets[g]),
                                 static_cast<std::size_t>(offsets[g + 1] - offsets[g]));
    }
    /// Returns invalid_table for offsets that do not ascend within the positions, or a position below 0. O(rows).
    [[nodiscard]] status validate() const {
        if (offsets.empty()) { return {}; }
        if (offsets.front() < 0 || !std::is_sorted(offsets.begin(), offsets.end()) ||
            offsets.back() > std::ssize(positions)) {
            return {errc::invalid_table, "positions: offsets must ascend within the positions"};
        }
        const auto used = positions.subspan(static_cast<std::size_t>(offsets.front()),
                                            static_cast<std::size_t>(offsets.back() - offsets.front()));
        if (std::any_of(used.begin(), used.end(), [](std::int32_t p) { return p < 0; })) {
            return {errc::invalid_table, "positions: none may be below 0"};
        }
        return {};
    }
};

/// Positions of a cache whose row t had position t before this plan cut it. The plan must outlive the view.
[[nodiscard]] inline row_positions positions_of(const keep_plan& plan) {
    return {plan.offsets(), plan.kept()};
}
/// Not of a temporary plan, whose tables are freed before the view is read.
row_positions positions_of(const keep_plan&& plan) = delete;

} // namespace KVTRIM_NAMESPACE
