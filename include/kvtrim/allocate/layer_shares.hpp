// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Budgets per layer that do not follow the scores: candidates are dealt out over the layers by a rule, and evenly over the
// KV heads of a layer unless these have shares of their own. For policies over layers (layer_wise).
//
//   pyramid_shares   share[l] falls in even steps from the first layer to the last               PyramidKV
//                    b = total / rows, high = min(2 b - b / beta, longest row), low = 2 b - high
//                    share[l] = high - l * (high - low) / (layers - 1)
//   layer_shares     shares are given: measured (CAKE: score/layer_preference.hpp), learnt, or read from a file
//                    [layers], or [layers * kv_heads] of each row (LU-KV: the slice of its table for a compression ratio,
//                    1 - the share that goes)
//
//   budgets[r] = total * share[layer of r] / sum of shares over rows, whole numbers of sum total, at most the row's length;
//                what a row can not use goes to the others in proportion
//
// Source: PyramidKV, arXiv:2406.02069; CAKE, arXiv:2503.12491; LU-KV, arXiv:2602.08585. The schedules of published code, which
// count the window and do not sum to the total, are in allocate/pyramid.hpp. Cost: O(rows log rows), no scores read.
// Workspace: four numbers per row.

#include <kvtrim/allocate/preference.hpp>
#include <kvtrim/allocate/pyramid.hpp>
#include <kvtrim/plan/token_scores.hpp>

namespace KVTRIM_NAMESPACE {

namespace detail {

// share(r): a number for each row.
template <class Share>
[[nodiscard]] status deal_out_by_share(const score_rows& scores, index_t total, std::span<index_t> budgets,
                                       workspace& scratch, Share&& share) {
    const workspace::frame frame(scratch);
    const auto preferences = scratch.take<double>(scores.rows());
    const auto lengths = scratch.take<index_t>(scores.rows());
    if (!scratch.fits()) { return scratch.too_small(); }
    for (index_t r = 0; r < scores.rows(); ++r) {
        preferences[static_cast<std::size_t>(r)] = share(r);
        lengths[static_cast<std::size_t>(r)] = scores.length(r);
    }
    return preference{}.allocate(preferences, lengths, total, budgets, scratch);
}

[[nodiscard]] inline index_t layer_share_bytes(index_t rows) {
    workspace counting = workspace::counting();
    static_cast<void>(counting.take<double>(rows));
    static_cast<void>(counting.take<index_t>(rows));
    static_cast<void>(counting.take<std::byte>(preference::workspace_bytes(rows)));
    return counting.needed_bytes();
}

} // namespace detail

/// PyramidKV over the rows of all layers: shares that fall in even steps.
struct pyramid_shares {
    double beta = 20; ///< the last layer keeps about 1 / beta of an even share; the authors' value

    static constexpr bool is_uniform = false; ///< whether rows of equal length get equal budgets

    /// Returns invalid_parameter unless beta is finite and at least 1.
    [[nodiscard]] status validate() const { return pyramid{.beta = beta}.validate(); }
    /// Bytes of workspace for allocate() over so many rows.
    [[nodiscard]] static index_t workspace_bytes(index_t rows, index_t) {
        return detail::layer_share_bytes(rows);
    }

    /// Fills budgets [rows]; their sum is total. Returns what validate() or validate_total() says, or workspace_too_small.
    [[nodiscard]] status allocate(const score_rows& scores, index_t total, std::span<index_t> budgets,
                                  workspace& scratch) const {
        if (const status s = validate(); !s.ok()) { return s; }
        if (const status s = validate_total(scores, total, budgets); !s.ok()) { return s; }
        if (scores.rows() == 0) { return {}; }
        index_t longest = 0;
        for (index_t r = 0; r < scores.rows(); ++r) { longest = std::max(longest, scores.length(r)); }
        const double even = static_cast<double>(total) / static_cast<double>(scores.rows());
        const double high = std::min(2 * even - even / beta, static_cast<double>(longest));
        const auto steps = static_cast<double>(std::max<index_t>(1, scores.layers() - 1));
        return detail::deal_out_by_share(scores, total, budgets, scratch, [&](index_t r) {
            const auto l = static_cast<double>(r / scores.rows_of_a_layer());
            return scores.layers() == 1 ? 1 : high - l * 2 * (high - even) / steps;
        });
    }
};

/// Budgets in proportion to given shares of the layers, or of the rows.
struct layer_shares {
    /// [layers], or [layers * kv_heads] with a layer's heads side by side; what is not a positive finite number counts as 0.
    std::span<const double> shares;

    static constexpr bool is_uniform = false; ///< whether rows of equal length get equal budgets

    /// Bytes of workspace for allocate() over so many rows.
    [[nodiscard]] static index_t workspace_bytes(index_t rows, index_t) {
        return detail::layer_share_bytes(rows);
    }

    /// Fills budgets [rows]; their sum is total. Rows of share 0 get what the others have no room for; where all are 0 the
    /// rows are equal. Returns invalid_parameter where there are not as many shares as layers (needed: layers) or rows, what
    /// validate_total() says, or workspace_too_small.
    [[nodiscard]] status allocate(const score_rows& scores, index_t total, std::span<index_t> budgets,
                                  workspace& scratch) const {
        if (const status s = validate_total(scores, total, budgets); !s.ok()) { return s; }
        const bool of_rows = std::ssize(shares) == scores.rows();
        if (!of_rows && std::ssize(shares) != scores.layers()) {
            return {errc::invalid_parameter, "layer_shares: there must be one share per layer, or per row",
                    scores.layers()};
        }
        return detail::deal_out_by_share(scores, total, budgets, scratch, [&](index_t r) {
            return shares[static_cast<std::size_t>(of_rows ? r : r / scores.rows_of_a_layer())];
        });
    }
};

} // namespace KVTRIM_NAMESPACE
