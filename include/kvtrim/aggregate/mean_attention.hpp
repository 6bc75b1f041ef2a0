// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The average attention that the observed queries pay to a token, pooled over its neighbours.
//
//   a[h, c]   = sum over queries i of A[h, i, c], divided by queries (mean), by the number of queries that
//               see the token (lifetime), or not at all (sum)
//   pool_then_group:  score[c] = reduce over the group's heads h of pool(a[h])[c]
//   group_then_pool:  score[c] = pool(reduce over h of a[h])[c]
//
// Source: SnapKV, arXiv:2404.14469, Sec. 4; kvpress@8bb29b9 presses/snapkv_press.py (mean, average pooling,
// pool_then_group, group mean, kernel 5); FFY0/AdaKV@efe4e2e snapkv_utils.py (maximum pooling, kernel 7,
// group_then_pool). With queries = the whole prompt and normalisation sum: H2O, arXiv:2306.14048; with
// lifetime: kvpress ObservedAttention.
// Departures: scored per KV head (the original repeats keys per query head: the cache is group_size times
// larger). Pooling sees candidates only, so that a protected sink does not lift its neighbours.
// Cost: one addition per attention weight; lanes: 1, or group_size where the group is reduced after a
// non-linear step. Numerics: sums in float.

#include <kvtrim/aggregate/attention_tile.hpp>
#include <kvtrim/aggregate/pooling.hpp>
#include <kvtrim/cache/layer.hpp>

#include <cstdint>

namespace KVTRIM_NAMESPACE {

/// Whether query heads are pooled before or after they are reduced to one row.
enum class pooling_order : std::uint8_t {
    pool_then_group, ///< pools each query head, then reduces the group
    group_then_pool, ///< reduces the group, then pools once
};
/// What the attention of a token is divided by.
enum class query_normalisation : std::uint8_t {
    mean,     ///< divided by the number of queries
    sum,      ///< not divided
    lifetime, ///< divided by the number of queries that see the token
};

/// Mean or summed attention of the observed queries, pooled over neighbours (SnapKV, AdaKV, H2O).
struct mean_attention {
    pooling pool = pooling::average;                         ///< SnapKV: average; AdaKV repository: maximum
    index_t kernel_tokens = 5;                               ///< odd; SnapKV 5, AdaKV repository 7
    group_reduction group = group_reduction::mean;           ///< over the query heads of a KV head
    pooling_order order = pooling_order::pool_then_group;    ///< no effect with average and mean
    query_normalisation queries = query_normalisation::mean; ///< over the observed queries

    /// Whether finish() also writes `attention`.
    static constexpr bool writes_attention = false;

    /// Returns invalid_parameter for a kernel that is not odd and positive.
    [[nodiscard]] status validate() const { return valid_kernel(kernel_tokens); }
    /// Columns on either side of a tile that add() needs: none, because finish() pools.
    [[nodiscard]] index_t halo() const { return 0; }
    /// Floats accumulated per candidate: 1, or one per query head where the group is reduced after a non-linear step.
    [[nodiscard]] index_t lanes(index_t group_size) const {
        const bool linear = group != group_reduction::maximum &&
                            (pool != pooling::maximum || order == pooling_order::group_then_pool);
        return linear ? 1 : group_size;
    }

    /// Adds a tile to accumulators [lanes, candidates].
    void add(const attention_tile& tile, std::span<float> accumulators) const {
        float* const sums = accumulators.data() + tile.first;
        if (lanes(tile.head.group_size) == 1) {
            tile.add_row_sums(0, tile.query_rows, sums);
            return;
        }
        tile.for_each_query_head([&](index_t query_head, index_t begin, index_t end) {
            tile.add_row_sums(begin, end, sums + query_head * tile.head.candidates);
        });
    }

    /// Writes importance [candidates] from accumulators [lanes, candidates], which it overwrites.
    void finish(const attention_head& head, std::span<float> accumulators, std::span<float> importance,
                std::span<float> /*attention*/) const {
        index_t lane_count = lanes(head.group_size);
        const auto columns = static_cast<std::size_t>(head.candidates);
        const auto lane = [&](index_t l) {
            return accumulators.subspan(static_cast<std::size_t>(l) * columns, columns);
        };
        for (index_t l = 0; l < lane_count; ++l) {
            normalise(head, lane(l));
            if (order == pooling_order::group_then_pool && l > 0) { reduce(lane(l), lane(0)); }
        }
        if (order == pooling_order::group_then_pool) { lane_count = 1; }
        for (index_t l = 0; l < lane_count; ++l) {
            // The lane before is no longer needed, so the pooled row is written to its memory.
            const std::span<float> pooled = l == 0 ? importance : lane(l - 1);
            static_cast<void>(
                kvtrim::pool(pool, kernel_tokens, lane(l), pooled)); // validate() has checked the kernel
            if (l > 0) { reduce(pooled, importance); }
        }
    }

  private:
    // Divides by the queries and, for a mean over the group, by the group (a mean of lanes is then a sum).
    void normalise(const attention_head& head, std::span<float> lane) const {
        const float group_divisor =
            group == group_reduction::mean ? static_cast<float>(head.group_size) : 1.0f;
        for (std::size_t c = 0; c < lane.size(); ++c) {
            float divisor = group_divisor;
            if (queries == query_normalisation::mean) { divisor *= static_cast<float>(head.queries); }
            if (queries == query_normalisation::lifetime) {
                divisor *= static_cast<float>(std::max<index_t>(1, head.observers(static_cast<index_t>(c))));
            }
            lane[c] /= divisor;
        }
    }

    void reduce(std::span<const float> from, std::span<float> into) const {
        for (std::size_t c = 0; c < into.size(); ++c) {
            into[c] = group == group_reduction::maximum ? std::max(into[c], from[c]) : into[c] + from[c];
        }
    }
};

} // namespace KVTRIM_NAMESPACE
