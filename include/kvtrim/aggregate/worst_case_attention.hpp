// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// DefensiveKV's two-step aggregation: a token's importance is the highest pooled attention that any observed query pays to
// it, and at least the average of that over the tokens (a prior for tokens that no observed query happened to attend).
//
//   a[i, c]        attention of query row i (all window queries of all heads of the group) to candidate c
//   r[i, c]        average pooling of a[i], rescaled to the row's own mass: pooling must not change it
//   worst[c]       = max over i of r[i, c]
//   importance[c]  = max(worst[c], floor_weight * mean over c of worst)
//   attention[c]   = mean over i of a[i, c]          (for pass one of the selection)
//
// Source: DefensiveKV, arXiv:2510.13334, Sec. 4, Alg. 1; FFY0/DefensiveKV@9251b95
// efficient_defensivekv_press.py. Linear in the number of attention weights.
// Departures: a row without mass (fully masked, or underflowed) counts as zero instead of 0/0.
// Cost: kernel_tokens multiply-adds per attention weight; lanes: 2. Numerics: float; the row's mass in double.

#include <kvtrim/aggregate/attention_tile.hpp>
#include <kvtrim/aggregate/pooling.hpp>

#include <cmath>

namespace KVTRIM_NAMESPACE {

/// Highest pooled attention of a token over all query rows, with a floor (DefensiveKV).
struct worst_case_attention {
    index_t kernel_tokens = 5; ///< odd; reference 5
    float floor_weight = 1.0f; ///< share of the row mean that floors every token; 0: no floor; reference 1

    /// Whether finish() also writes `attention`.
    static constexpr bool writes_attention = true;

    /// Returns invalid_parameter for a floor_weight that is negative or not finite, or a kernel that is not odd and positive.
    [[nodiscard]] status validate() const {
        if (!(floor_weight >= 0.0f) || !std::isfinite(floor_weight)) {
            return {errc::invalid_parameter,
                    "worst_case_attention: floor_weight must be finite and not negative"};
        }
        return valid_kernel(kernel_tokens);
    }
    /// Columns on either side of a tile that add() needs for pooling.
    [[nodiscard]] index_t halo() const { return kernel_tokens / 2; }
    /// Floats accumulated per candidate: the maximum and the sum.
    [[nodiscard]] index_t lanes(index_t /*group_size*/) const { return 2; }

    /// weights [query_rows] = the mass of a row divided by the mass of its pooled row. They differ because a
    /// column near the ends of the row lies in fewer than kernel_tokens windows.
    template <class RowGroup>
    void weigh_rows(const RowGroup& group, std::span<float> weights) const {
        const index_t columns = group.head.candidates;
        const index_t half = std::min(halo(), columns);       // a wider window has no more columns
        double missing[attention_tile::most_query_rows] = {}; // mass of the windows beyond the ends
        const auto add_missing = [&](index_t begin, index_t end) {
            for (index_t c = begin; c < end; ++c) {
                const auto windows = static_cast<double>(std::max<index_t>(0, half - c) +
                                                         std::max<index_t>(0, half - (columns - 1 - c)));
                const float* const attention = group.column(c);
                for (index_t r = 0; r < group.query_rows(); ++r) {
                    missing[r] += windows * static_cast<double>(attention[r]);
                }
            }
        };
        add_missing(0, half);
        add_missing(std::max(half, columns - half), columns);
        for (index_t r = 0; r < group.query_rows(); ++r) {
            const double pooled = static_cast<double>(2 * half + 1) * group.mass(r) - missing[r];
            weights[static_cast<std::size_t>(r)] =
                pooled > 0 ? static_cast<float>(group.mass(r) / pooled) : 0.0f;
        }
    }

    /// Adds a tile to accumulators [lanes, candidates].
    void add(const attention_tile& tile, std::span<float> accumulators) const {
        float* worst = accumulators.data() + tile.first;
        float* total = accumulators.data() + tile.head.candidates + tile.first;
        tile.add_row_sums(0, tile.query_rows, total);
        tile.raise_to_pooled(halo(), tile.row_weights, worst);
    }

    /// Writes importance and attention [candidates] from accumulators [lanes, candidates].
    void finish(const attention_head& head, std::span<float> accumulators, std::span<float> importance,
                std::span<float> attention) const {
        const auto columns = static_cast<std::size_t>(head.candidates);
        const auto worst = accumulators.first(columns);
        const auto total = accumulators.subspan(columns, columns);
        double sum = 0;
        for (const float w : worst) { sum += static_cast<double>(w); }
        const float floor = floor_weight * static_cast<float>(sum / static_cast<double>(columns));
        const float rows = static_cast<float>(head.group_size * head.queries);
        for (std::size_t c = 0; c < columns; ++c) {
            importance[c] = std::max(worst[c], floor);
            attention[c] = total[c] / rows;
        }
    }
};

} // namespace KVTRIM_NAMESPACE
