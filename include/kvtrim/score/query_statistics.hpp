// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Mean and covariance of a sequence's queries before RoPE, updated chunk by chunk: expected attention estimates later
// queries from them.
//
//   mean[h]       = 1/c * sum of q[h, p]                             over positions p from skip_positions on
//   covariance[h] = 1/c * sum of (q - mean) (q - mean)^T             biased; c: how many there were
//
// Plain data, one object per sequence and layer: add() each chunk of the prefill, and each step of decoding if the
// statistics shall follow it. A copy is a fork; the fields are the whole state, to be stored and restored as they are.
//
// Source: Expected Attention, arXiv:2510.00636; kvpress@8bb29b9 expected_attention_press.py, which copies and centres the
// whole prompt's queries.
// Departures: chunks are merged by their means and co-moments (Chan, Golub, LeVeque 1983), so no array of queries
// is kept, and any cut into chunks gives the same numbers within rounding. A query that is not finite is left out.
// Cost: q_heads * tokens * head_dim^2 multiplications. Memory: 4 * q_heads * head_dim^2 bytes. Numerics: products in
// float on centred queries, means in double of float sums of 16. Workspace: two tiles of queries per query head.

#include <kvtrim/cache/read_rows.hpp>
#include <kvtrim/core/for_each_item.hpp>
#include <kvtrim/kernels/product_kernels.hpp>
#include <kvtrim/kernels/row_kernels.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

namespace KVTRIM_NAMESPACE {

/// Mean and covariance of the queries of one layer of one sequence, before RoPE. Plain data: a copy is a fork.
struct query_statistics {
    index_t q_heads;               ///< query heads, as given
    index_t head_dim;              ///< elements of a query
    index_t skip_positions;        ///< first positions to leave out: sinks are not like later queries
    index_t positions = 0;         ///< added so far, the ones left out included: the next query's position
    std::vector<index_t> counts;   ///< [q_heads] queries in the sums
    std::vector<double> means;     ///< [q_heads, head_dim]
    std::vector<float> co_moments; ///< [q_heads, head_dim, head_dim]: counts * covariance

    /// Allocates all memory it will need. skip: first positions to leave out. The object is empty, and validate() says why, for
    /// negative numbers, or more than memory can hold.
    query_statistics(index_t heads, index_t dim, index_t skip = 4)
        : q_heads(heads), head_dim(dim), skip_positions(skip) {
        if (!has_possible_numbers()) { return; }
        counts.resize(static_cast<std::size_t>(heads));
        means.resize(static_cast<std::size_t>(heads * dim));
        co_moments.resize(static_cast<std::size_t>(heads * dim * dim));
    }

    query_statistics(const query_statistics&) = default;       ///< a fork
    query_statistics(query_statistics&&) = default;            ///< takes the memory
    query_statistics& operator=(query_statistics&&) = default; ///< takes the memory
    /// A fork; where an allocation throws this is as it was.
    query_statistics& operator=(const query_statistics& other) { return *this = query_statistics(other); }

    /// Whether the fields are those of such statistics, as they must also be when they were restored: invalid_parameter.
    /// O(q_heads).
    [[nodiscard]] status validate() const {
        const bool fits = has_possible_numbers() && std::ssize(counts) == q_heads &&
                          std::ssize(means) == q_heads * head_dim &&
                          std::ssize(co_moments) == q_heads * head_dim * head_dim;
        const auto possible = [&](index_t count) { return 0 <= count && count <= positions; };
        if (fits && std::all_of(counts.begin(), counts.end(), possible)) { return {}; }
        return {errc::invalid_parameter,
                "query_statistics: counts must lie in 0 ... positions, and sizes be those "
                "of q_heads and head_dim"};
    }

    /// [head_dim] mean of a query head; q_head is not checked.
    [[nodiscard]] std::span<const double> mean(index_t q_head) const {
        return std::span(means).subspan(static_cast<std::size_t>(q_head * head_dim),
                                        static_cast<std::size_t>(head_dim));
    }
    /// [head_dim, head_dim] co-moment of a query head: counts * covariance; q_head is not checked.
    [[nodiscard]] std::span<const float> co_moment(index_t q_head) const {
        return std::span(co_moments)
            .subspan(static_cast<std::size_t>(q_head * head_dim * head_dim),
                     static_cast<std::size_t>(head_dim * head_dim));
    }

    /// Bytes of workspace for add() at the full width of this executor; 0 for statistics that are not valid.
    template <class Executor = serial_executor>
    [[nodiscard]] index_t workspace_bytes(const Executor& ex = {}) const {
        if (!validate().ok()) { return 0; }
        workspace counting = workspace::counting();
        static_cast<void>(tile(head_dim, counting));
        return for_each_item_bytes(ex, q_heads, counting.needed_bytes());
    }

    /// Adds the next queries of the sequence, [q_heads, queries, head_dim], before RoPE.
    /// Returns what validate() says, of the queries too, invalid_parameter for queries of another shape or past 2^63 - 1
    /// positions, rows_differ for heads of different numbers of queries, or workspace_too_small; with nothing added.
    template <cache_view Queries, class Executor = serial_executor>
    [[nodiscard]] status add(const Queries& queries, workspace& scratch, Executor&& ex = {}) {
        if (const status s = validate(); !s.ok()) { return s; }
        if (const status s = kvtrim::validate(queries); !s.ok()) { return s; }
        const index_t rows = extent(queries, 1);
        if (extent(queries, 0) != q_heads || extent(queries, 2) != head_dim ||
            rows > std::numeric_limits<index_t>::max() - positions) {
            return {errc::invalid_parameter,
                    "query_statistics: queries must be [q_heads, queries, head_dim] of this object"};
        }
        if (!kvtrim::detail::heads_have_rows(queries, rows)) {
            return {errc::rows_differ, "query_statistics: every head must have the same number of queries"};
        }
        workspace counting = workspace::counting();
        static_cast<void>(tile(head_dim, counting));
        const status s =
            for_each_item(q_heads, counting.needed_bytes(), scratch, ex, [&](index_t h, workspace& own) {
                tile memory(head_dim, own);
                const index_t step = memory.queries_at_once(head_dim);
                for (index_t i = std::clamp<index_t>(skip_positions - positions, 0, rows); i < rows;
                     i += step) {
                    const index_t count = std::min(step, rows - i);
                    merge(h, read_rows(queries, h, i, count, memory.rows.data()), count, memory);
                }
            });
        if (s.ok()) { positions += rows; }
        return s;
    }

  private:
    [[nodiscard]] bool has_possible_numbers() const {
        return q_heads >= 0 && head_dim >= 0 && skip_positions >= 0 && positions >= 0 &&
               kvtrim::detail::fits_in_memory(std::array<index_t, 3>{q_heads, head_dim, head_dim},
                                              sizeof(double));
    }

    // Scratch of one query head.
    struct tile {
        std::span<float> rows;    // [tile_tokens, head_dim]
        std::span<float> centred; // [tile_tokens, head_dim]
        std::span<double> mean;   // [head_dim] of the tile
        std::span<float> less;    // [head_dim] what centres the queries: the mean, negated

        tile(index_t dim, workspace& own)
            : rows(own.take<float>(kernels::tile_tokens(dim) * dim)),
              centred(own.take<float>(kernels::tile_tokens(dim) * dim)), mean(own.take<double>(dim)),
              less(own.take<float>(dim)) {}

        // One row of `centred` is for the distance of the means.
        static index_t queries_at_once(index_t dim) { return kernels::tile_tokens(dim) - 1; }
    };

    // co_moment += sum of centred centred^T + n m / (n + m) * shift shift^T, where shift is the distance between the
    // mean of the n queries before and that of the tile's m.
    void merge(index_t q_head, float_rows rows, index_t count, tile& memory) {
        const kernels::row_kernels& steps = kernels::active_row_kernels();
        float zeros[kernels::most_tile_tokens];
        std::fill(memory.less.begin(), memory.less.end(), 0.0f); // 0 times what is not finite is NaN
        steps.dots(rows.data, rows.stride, count, head_dim, memory.less.data(), zeros);
        float* const first = memory.centred.data() + head_dim;
        index_t finite = 0;
        for (index_t i = 0; i < count; ++i) {
            if (std::isnan(zeros[i])) { continue; }
            std::copy_n(rows.data + i * rows.stride, head_dim, first + finite++ * head_dim);
        }
        if (finite == 0) { return; }
        std::fill(memory.mean.begin(), memory.mean.end(), 0.0);
        for (index_t i = 0; i < finite; i += 16) { // their sums are float
            steps.add_over_rows(first + i * head_dim, head_dim, std::min<index_t>(16, finite - i), head_dim,
                                nullptr, memory.mean.data());
        }
        index_t& seen = counts[static_cast<std::size_t>(q_head)];
        const auto n = static_cast<double>(seen);
        const auto m = static_cast<double>(finite);
        const double weight = std::sqrt(n * m / (n + m));
        double* const mean_so_far = means.data() + q_head * head_dim;
        for (std::size_t d = 0; d < memory.mean.size(); ++d) {
            memory.mean[d] /= m;
            const double shift = memory.mean[d] - mean_so_far[d];
            memory.centred[d] = static_cast<float>(weight * shift);
            memory.less[d] = -static_cast<float>(memory.mean[d]);
            mean_so_far[d] += shift * m / (n + m);
        }
        for (index_t i = 0; i < finite; ++i) {
            steps.add_row(memory.less.data(), head_dim, first + i * head_dim);
        }
        const float* const all = memory.centred.data();
        kernels::active_product_kernels().add({all, 1, head_dim}, head_dim, {all, head_dim, 1}, finite + 1,
                                              head_dim, co_moments.data() + q_head * head_dim * head_dim,
                                              head_dim);
        seen += finite;
    }
};

} // namespace KVTRIM_NAMESPACE
