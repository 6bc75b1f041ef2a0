// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// LagKV: scores each token by how far its key and value stand out from the tokens that follow it. No queries.
//
//   the rows behind the protected prefix are cut into partitions of `lag` tokens; for token t of partition p
//   and channel c, with the extremes over partition p + 1:
//   z[c]  = (x[t, c] - min[c]) / (max[c] - min[c])            x: keys, and the same with values
//   s[t]  = softmax over partition p of std(z)                over channels, unbiased; mean of keys' and values'
//   importance[t] = (number of tokens of p below t) / lag     cross_scoring: s[t] itself
//
// The last whole partition and the rest behind it have no partition to be compared with. They always stay: they score
// above all others (more than 1), newer ones higher, in case the budget does not hold them all.
//
// Source: LagKV, arXiv:2504.04704; kvpress@8bb29b9 lagkv_press.py.
// Departures: a channel that is constant in the next partition, or not finite there, counts as z = 0 (the reference:
// 0/0 or infinity); equal scores rank by index, the lower one higher (the reference: arbitrary); sinks are protected by
// the request; a prompt of less than two partitions keeps its newest tokens (the reference: is not compressed).
// A token with a NaN or an infinity scores NaN, which ranks last, and takes no part in its partition's softmax. In the last
// whole partition and behind it nothing is compared: such tokens are kept there by age, as all others.
// Cost: keys and values read twice; lag * log(lag) comparisons per partition. Numerics: double.
// Workspace: a tile of rows, four rows and three numbers per token of a partition, per KV head.

#include <kvtrim/cache/layer.hpp>
#include <kvtrim/cache/read_rows.hpp>
#include <kvtrim/core/eviction_request.hpp>
#include <kvtrim/core/for_each_item.hpp>
#include <kvtrim/kernels/bound_kernels.hpp>
#include <kvtrim/kernels/deviations.hpp>
#include <kvtrim/plan/token_scores.hpp>

#include <cmath>
#include <utility>

namespace KVTRIM_NAMESPACE {

/// Scores by how far key and value deviate from the extremes of the next partition. Needs values.
struct lag_score {
    index_t lag = 128;          ///< tokens of a partition
    bool cross_scoring = false; ///< true: the scores themselves; false: their ranks in the partition

    static constexpr bool writes_attention = false; ///< whether score() also writes attention

    /// Returns invalid_parameter for a lag that is not positive.
    template <class Inputs>
    [[nodiscard]] status validate(const Inputs&, const eviction_request&) const {
        static_assert(Inputs::has_values, "kvtrim: lag_score compares keys and values: pass layer(keys, "
                                          "values); see cache/layer.hpp");
        if (lag > 0) { return {}; }
        return {errc::invalid_parameter, "lag_score: a partition must hold at least one token"};
    }

    /// Bytes of workspace for score(), at the full width of this executor.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] index_t workspace_bytes(const Inputs& in, const eviction_request&,
                                          const Executor& ex = {}) const {
        return for_each_item_bytes(ex, in.kv_heads(), head_bytes(in));
    }

    /// Writes the importance of every candidate.
    /// Returns what validate_scoring() says or errc::workspace_too_small, with nothing written.
    template <class Inputs, executor Executor>
    [[nodiscard]] status score(const Inputs& in, const eviction_request& request, const token_scores& out,
                               workspace& scratch, Executor& ex) const {
        if (const status s = validate_scoring(*this, in, request, out); !s.ok()) { return s; }
        return for_each_item(in.kv_heads(), head_bytes(in), scratch, ex, [&](index_t g, workspace& own) {
            score_head(in, request.protect, g, head_scratch(in, partition_of(in), own),
                       out.importance_rows().row(g));
        });
    }

  private:
    struct head_scratch {
        row_tile rows;
        std::span<float> minimum, maximum; // [longer row] of the next partition
        std::span<double> low, scale;      // [longer row] the minimum and 1 / width, or both 0
        std::span<double> scores, spread;  // [partition] mean of both softmaxes; std(z)
        std::span<index_t> order;          // [partition]

        template <class Inputs>
        head_scratch(const Inputs& in, index_t partition, workspace& own) : rows(longer_row(in), own) {
            const index_t longer = longer_row(in);
            minimum = own.take<float>(longer);
            maximum = own.take<float>(longer);
            low = own.take<double>(longer);
            scale = own.take<double>(longer);
            scores = own.take<double>(partition);
            spread = own.take<double>(partition);
            order = own.take<index_t>(partition);
        }
    };

    template <class Inputs>
    [[nodiscard]] static index_t longer_row(const Inputs& in) {
        return std::max(in.head_dim(), extent(in.values, 2));
    }

    // A partition longer than half of the longest row is never scored.
    template <class Inputs>
    [[nodiscard]] index_t partition_of(const Inputs& in) const {
        return std::min(lag, in.longest_row());
    }

    template <class Inputs>
    [[nodiscard]] index_t head_bytes(const Inputs& in) const {
        workspace counting = workspace::counting();
        static_cast<void>(head_scratch(in, partition_of(in), counting));
        return counting.needed_bytes();
    }

    template <class Inputs>
    void score_head(const Inputs& in, const protection& protect, index_t head, const head_scratch& memory,
                    std::span<float> importance) const {
        const token_range range = candidates(protect, in.tokens(head));
        const index_t end = std::max(range.begin, in.tokens(head) - protect.rollback_tokens);
        const index_t scored = std::max<index_t>(0, (end - range.begin) / lag - 1) * lag;
        const auto put = [&](index_t column, double score) { // columns count from the first candidate
            if (column < range.size()) {
                importance[static_cast<std::size_t>(column)] = static_cast<float>(score);
            }
        };
        for (index_t c = 0; c < std::min(scored, range.size()); c += lag) {
            std::fill(memory.scores.begin(), memory.scores.end(), 0.0);
            add_spread(in.keys, head, range.begin + c, memory);
            add_spread(in.values, head, range.begin + c, memory);
            if (!cross_scoring) { replace_by_ranks(memory); }
            for (index_t i = 0; i < lag; ++i) { put(c + i, memory.scores[static_cast<std::size_t>(i)]); }
        }
        const index_t recent = end - range.begin - scored;
        for (index_t i = 0; i < recent; ++i) {
            put(scored + i, 1.0 + static_cast<double>(i + 1) / static_cast<double>(recent));
        }
    }

    // scores += half the softmax of the spread of the partition's rows from `first` on.
    template <class View>
    void add_spread(const View& view, index_t head, index_t first, const head_scratch& memory) const {
        take_extremes(view, head, first + lag, memory);
        for_each_tile(view, head, {first, first + lag}, memory.rows,
                      [&](index_t t, index_t count, const float_rows& rows) {
                          kernels::deviations(rows.data, rows.stride, count, extent(view, 2),
                                              memory.low.data(), memory.scale.data(),
                                              memory.spread.data() + (t - first));
                      });
        double largest = 0;
        for (const double s : memory.spread) { largest = std::fmax(largest, s); }
        double sum = 0;
        for (double& s : memory.spread) {
            s = std::exp(s - largest);
            sum += std::isnan(s) ? 0.0 : s;
        }
        for (std::size_t i = 0; i < memory.scores.size(); ++i) {
            memory.scores[i] += 0.5 * memory.spread[i] / sum;
        }
    }

    // low and scale of every channel; both 0 for a channel that is left out.
    template <class View>
    void take_extremes(const View& view, index_t head, index_t first, const head_scratch& memory) const {
        const auto length = static_cast<std::size_t>(extent(view, 2));
        for_each_tile(view, head, {first, first + lag}, memory.rows,
                      [&](index_t t, index_t count, const float_rows& rows) {
                          kernels::active_bound_kernels().fold_bounds(
                              rows.data, rows.stride, count, extent(view, 2), t == first,
                              memory.maximum.data(), memory.minimum.data());
                      });
        for (std::size_t d = 0; d < length; ++d) {
            const auto low = static_cast<double>(memory.minimum[d]);
            const double width = static_cast<double>(memory.maximum[d]) - low;
            const bool counts = width > 0 && std::isfinite(width);
            memory.low[d] = counts ? low : 0.0;
            memory.scale[d] = counts ? 1 / width : 0.0;
        }
    }

    // scores = (number of tokens that rank below) / lag; NaN stays.
    void replace_by_ranks(const head_scratch& memory) const {
        const auto by_score = [&](index_t a, index_t b) {
            const double x = memory.scores[static_cast<std::size_t>(a)];
            const double y = memory.scores[static_cast<std::size_t>(b)];
            if (std::isnan(x) || std::isnan(y)) { return std::isnan(x) && (!std::isnan(y) || a > b); }
            return x < y || (x == y && a > b);
        };
        for (std::size_t i = 0; i < memory.order.size(); ++i) { memory.order[i] = static_cast<index_t>(i); }
        std::sort(memory.order.begin(), memory.order.end(), by_score);
        for (std::size_t rank = 0; rank < memory.order.size(); ++rank) {
            double& score = memory.scores[static_cast<std::size_t>(memory.order[rank])];
            if (!std::isnan(score)) { score = static_cast<double>(rank) / static_cast<double>(lag); }
        }
    }
};

} // namespace KVTRIM_NAMESPACE
