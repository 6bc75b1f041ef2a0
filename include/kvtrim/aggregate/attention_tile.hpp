// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What an aggregator sees of the observation window's attention: one tile at a time, never the whole.
//
// An aggregator turns the attention rows of one KV head (all query heads of its group, all window queries)
// into one score per candidate token. It is a fold, in any number of tiles:
//
//   halo()                        columns it wants to see on either side of a tile, for pooling of its own
//   lanes(group_size)             floats it accumulates per candidate
//   weigh_rows(group, weights)    optional: once for each row group, before its tiles; what it writes to weights
//                                 [query_rows] its tiles have as row_weights
//   add(tile, accumulators)       accumulators [lanes, candidates], zero at first
//   finish(head, accumulators, importance, attention)
//   writes_attention              whether finish also writes `attention` (what pass one ranks by)
//
// 32 heads x 32 queries x 131072 tokens of float would be 512 MiB; the fold holds lanes x tokens.

#include <kvtrim/kernels/raise_to_pooled.hpp>
#include <kvtrim/kernels/window_kernels.hpp>

#include <algorithm>
#include <concepts>
#include <span>

namespace KVTRIM_NAMESPACE {

/// Shape of the fold over one KV head.
struct attention_head {
    index_t group_size;      ///< query heads that read this KV head
    index_t queries;         ///< observation queries of each of them
    index_t candidates;      ///< columns of the score row
    index_t candidate_begin; ///< cache row of column 0
    index_t query_begin;     ///< cache row of the first query's own token
    index_t sliding_window;  ///< rows a query sees, 0: all

    /// How many of the queries see the token of a column.
    [[nodiscard]] constexpr index_t observers(index_t column) const {
        const index_t token = candidate_begin + column;
        const index_t first = std::max<index_t>(0, token - query_begin);
        const bool all_reach = sliding_window == 0 || sliding_window >= query_begin + queries;
        const index_t last = all_reach ? queries : std::min(queries, token + sliding_window - query_begin);
        return std::max<index_t>(0, last - first);
    }
};

namespace detail {

// Calls fn(query_head_in_group, row_begin, row_end) for each query head that has some of the rows [first_row, first_row + rows),
// which are numbered query_head_in_group * queries + query; its own of them are [row_begin, row_end), counted from first_row.
template <class Fn>
void for_each_query_head(index_t first_row, index_t rows, index_t queries, Fn&& fn) {
    for (index_t begin = 0; begin < rows;) {
        const index_t query_head = (first_row + begin) / queries;
        const index_t end = std::min(rows, (query_head + 1) * queries - first_row);
        fn(query_head, begin, end);
        begin = end;
    }
}

} // namespace detail

/// Attention of `query_rows` rows to the candidates [first, first + tokens), with up to halo() further
/// candidates on either side (fewer at the ends of the row).
struct attention_tile {
    static constexpr index_t most_query_rows = kernels::tile_query_rows; ///< of any tile or row group

    const float* attention;   ///< [before + tokens + after, query_rows]
    const float* row_weights; ///< [query_rows] what weigh_rows() wrote; null without it
    index_t query_rows;       ///< rows of this tile
    index_t first_row;        ///< rows are numbered query_head_in_group * queries + query
    index_t first;            ///< candidate of the tile's first column
    index_t tokens;           ///< columns that the tile is for
    index_t before;           ///< columns of the halo before them
    index_t after;            ///< columns of the halo behind them
    /// The fold that the tile belongs to.
    attention_head head;

    /// Attention [query_rows] to candidate first + t, for t in [-before, tokens + after).
    [[nodiscard]] const float* column(index_t t) const { return attention + (before + t) * query_rows; }

    /// sums [tokens] += the attention of the rows [row_begin, row_end) to each token, by vectors.
    void add_row_sums(index_t row_begin, index_t row_end, float* sums) const {
        kernels::active_window_kernels().add_row_sums(column(0), tokens, query_rows, row_begin, row_end,
                                                      sums);
    }

    /// best [tokens] = max(best, pooled attention), by vectors: the highest over the rows of weights [query_rows] times the sum
    /// of a row's attention to the columns at most `half` away, for half <= halo(). Neither weights nor best is negative.
    void raise_to_pooled(index_t half, const float* weights, float* best) const {
        kernels::raise_to_pooled(column(0), tokens, before, after, half, query_rows, weights, best);
    }

    /// Calls fn(query_head_in_group, row_begin, row_end) for each query head present in this tile.
    template <class Fn>
    void for_each_query_head(Fn&& fn) const {
        detail::for_each_query_head(first_row, query_rows, head.queries, fn);
    }
};

/// A row group (query rows that are worked on together) as weigh_rows() sees it: their softmax statistics are known, and any
/// column can be asked for.
template <class Rows>
struct attention_row_group {
    /// An attention_rows, or what has its members.
    Rows& rows;
    /// The fold that the tile belongs to.
    attention_head head;

    /// Rows of the row group.
    [[nodiscard]] index_t query_rows() const { return rows.current_rows(); }
    /// Attention of a row to all candidates together.
    [[nodiscard]] double mass(index_t row) const { return rows.candidate_mass(row); }
    /// Attention [query_rows] to one candidate; valid until the next call.
    [[nodiscard]] const float* column(index_t candidate) const {
        return rows.attention(head.candidate_begin + candidate, 1);
    }
};

/// The former name of attention_row_group.
template <class Rows>
using attention_block [[deprecated("use attention_row_group; gone in 0.3")]] = attention_row_group<Rows>;

/// A fold over attention tiles, see above. weigh_rows() is optional.
template <class A>
concept attention_aggregator = requires(const A& a, const attention_tile& tile, const attention_head& head,
                                        std::span<float> floats, index_t group_size) {
    { A::writes_attention } -> std::convertible_to<bool>;
    { a.validate() } -> std::same_as<status>;
    { a.halo() } -> std::same_as<index_t>;
    { a.lanes(group_size) } -> std::same_as<index_t>;
    a.add(tile, floats);
    a.finish(head, floats, floats, floats);
};

} // namespace KVTRIM_NAMESPACE
