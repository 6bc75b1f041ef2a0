// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Statistics of queries before RoPE in every pair of channels that RoPE rotates together: their mean, and their mean length.
//
//   mean[h]       [head_dim]   1/c * sum of q[h, p]                                     over c queries
//   length[h, i]  [pairs]      1/c * sum of sqrt(q[h, p, a]^2 + q[h, p, b]^2)           a, b: channels of pair i
//
// Where the length of the mean equals the mean length, all queries of a head have the same direction in that pair, and the mean
// alone predicts the logit of a key. A model's heads hardly change from text to text, so one object per layer, filled once on any
// text and kept in a file, serves every sequence (score/trig_series_score.hpp). Plain data: the fields are the whole state.
//
// Source: TriAttention, arXiv:2604.04921. Departure: a query that is not finite is left out.
// Cost: q_heads * tokens * head_dim. Numerics: sums in double. Memory: 12 * q_heads * head_dim bytes. Workspace: a tile of
// queries per worker.

#include <kvtrim/cache/read_rows.hpp>
#include <kvtrim/cache/rope.hpp>
#include <kvtrim/core/for_each_item.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <span>
#include <vector>

namespace KVTRIM_NAMESPACE {

/// Mean query, and mean length of each rotated pair, per query head of one layer. Plain data: a copy is a fork.
struct query_pair_means {
    index_t q_heads;                 ///< query heads, as given
    index_t head_dim;                ///< elements of a query
    index_t pairs;                   ///< that RoPE turns: rope.pairs()
    rope_pairing pairing;            ///< which channels are a pair
    std::vector<index_t> counts;     ///< [q_heads] queries in the sums
    std::vector<double> sums;        ///< [q_heads, head_dim]
    std::vector<double> length_sums; ///< [q_heads, pairs]

    /// Allocates all memory it will need. The object is empty, and validate() says why, for negative numbers, more pairs than
    /// head_dim / 2, or more than memory can hold.
    query_pair_means(index_t heads, index_t dim, const rope& r)
        : q_heads(heads), head_dim(dim), pairs(r.pairs()), pairing(r.pairing) {
        if (!has_possible_numbers()) { return; }
        counts.resize(static_cast<std::size_t>(heads));
        sums.resize(static_cast<std::size_t>(heads * dim));
        length_sums.resize(static_cast<std::size_t>(heads * pairs));
    }

    query_pair_means(const query_pair_means&) = default;       ///< a fork
    query_pair_means(query_pair_means&&) = default;            ///< takes the memory
    query_pair_means& operator=(query_pair_means&&) = default; ///< takes the memory
    /// A fork; where an allocation throws this is as it was.
    query_pair_means& operator=(const query_pair_means& other) { return *this = query_pair_means(other); }

    /// Whether the fields are those of such means, as they must also be when they were read from a file:
    /// invalid_parameter. O(q_heads * head_dim).
    [[nodiscard]] status validate() const {
        const auto is_finite = [](double x) { return std::isfinite(x); };
        const bool fits = has_possible_numbers() && std::ssize(counts) == q_heads &&
                          std::ssize(sums) == q_heads * head_dim &&
                          std::ssize(length_sums) == q_heads * pairs;
        const auto is_count = [](index_t count) { return count >= 0; };
        if (fits && std::all_of(counts.begin(), counts.end(), is_count) &&
            std::all_of(sums.begin(), sums.end(), is_finite) &&
            std::all_of(length_sums.begin(), length_sums.end(), is_finite)) {
            return {};
        }
        return {errc::invalid_parameter,
                "query_pair_means: counts must not be negative, sums be finite, and sizes be "
                "those of q_heads, head_dim and pairs"};
    }

    /// Element d of the mean query of a head; 0 of a head that saw none. Neither is checked.
    [[nodiscard]] double mean(index_t q_head, index_t d) const {
        const index_t count = counts[static_cast<std::size_t>(q_head)];
        return count == 0
                   ? 0
                   : sums[static_cast<std::size_t>(q_head * head_dim + d)] / static_cast<double>(count);
    }
    /// Mean length of a pair of a head; 0 of a head that saw none. Neither is checked.
    [[nodiscard]] double length(index_t q_head, index_t pair) const {
        const index_t count = counts[static_cast<std::size_t>(q_head)];
        return count == 0 ? 0
                          : length_sums[static_cast<std::size_t>(q_head * pairs + pair)] /
                                static_cast<double>(count);
    }

    /// Bytes of workspace for add() at the full width of this executor; 0 for means that are not valid.
    template <class Executor = serial_executor>
    [[nodiscard]] index_t workspace_bytes(const Executor& ex = {}) const {
        return validate().ok() ? for_each_item_bytes(ex, q_heads, row_tile::bytes(head_dim)) : 0;
    }

    /// Adds queries [q_heads, queries, head_dim], before RoPE. Returns what validate() says, of the queries too,
    /// invalid_parameter for another shape, rows_differ for heads of different numbers of queries, or workspace_too_small;
    /// with nothing added.
    template <cache_view Queries, class Executor = serial_executor>
    [[nodiscard]] status add(const Queries& queries, workspace& scratch, Executor&& ex = {}) {
        if (const status s = validate(); !s.ok()) { return s; }
        if (const status s = kvtrim::validate(queries); !s.ok()) { return s; }
        const index_t rows = extent(queries, 1);
        if (extent(queries, 0) != q_heads || extent(queries, 2) != head_dim) {
            return {errc::invalid_parameter,
                    "query_pair_means: queries must be [q_heads, queries, head_dim] of this object"};
        }
        if (!kvtrim::detail::heads_have_rows(queries, rows)) {
            return {errc::rows_differ, "query_pair_means: every head must have the same number of queries"};
        }
        return for_each_item(q_heads, row_tile::bytes(head_dim), scratch, ex, [&](index_t h, workspace& own) {
            const row_tile tile(head_dim, own);
            for_each_tile(queries, h, {0, rows}, tile, [&](index_t, index_t count, const float_rows& q) {
                for (index_t i = 0; i < count; ++i) { add_query(h, q.data + i * q.stride); }
            });
        });
    }

  private:
    [[nodiscard]] bool has_possible_numbers() const {
        return q_heads >= 0 && head_dim >= 0 && pairs >= 0 && pairs <= head_dim / 2 &&
               kvtrim::detail::fits_in_memory(std::array<index_t, 2>{q_heads, head_dim}, sizeof(double));
    }

    void add_query(index_t q_head, const float* query) {
        if (!std::all_of(query, query + head_dim, [](float x) { return std::isfinite(x); })) { return; }
        double* const sum = sums.data() + q_head * head_dim;
        for (index_t d = 0; d < head_dim; ++d) { sum[d] += static_cast<double>(query[d]); }
        const index_t apart = pairing == rope_pairing::half_split ? pairs : 1;
        const index_t step = pairing == rope_pairing::half_split ? 1 : 2;
        for (index_t i = 0; i < pairs; ++i) {
            const auto x = static_cast<double>(query[i * step]),
                       y = static_cast<double>(query[i * step + apart]);
            length_sums[static_cast<std::size_t>(q_head * pairs + i)] += std::sqrt(x * x + y * y);
        }
        ++counts[static_cast<std::size_t>(q_head)];
    }
};

} // namespace KVTRIM_NAMESPACE
