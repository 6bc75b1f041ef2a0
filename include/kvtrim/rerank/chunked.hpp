// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Whole chunks of tokens: neighbours stay or go together.
//
//   chunks of `chunk_tokens` columns compete by their mean importance; the best whole chunks that fit a row's
//   budget stay, and the best tokens of the next one fill it up exactly
//
//   chunked            one set for all heads: chunks of the heads' sum; needs the same budget for every head
//   chunked_per_head   every head its own chunks; any budgets, so that heads may compete (adaptive, blended)
//
// Source: ChunkKV, arXiv:2502.00299; kvpress@8bb29b9 chunkkv_press.py (chunks of 20, one set for all heads).
// Departures: ChunkKV's kept count drifts from the request (whole chunks only); here it is met to the token.
// kept_chunks gives the reference's count of whole chunks. Chunks start at the first candidate; a shorter
// last chunk is scored by its own mean.
// Cost: O(rows * columns) and a sort of the chunks, per row where rows differ. Workspace: a float and an index per chunk.

#include <kvtrim/rerank/shared.hpp>

#include <algorithm>
#include <limits>

namespace KVTRIM_NAMESPACE {

namespace detail {

// The chunks of one row.
struct chunk_row {
    std::span<float> scores;
    index_t chunk_tokens;

    [[nodiscard]] std::span<float> chunk(index_t i) const {
        const auto begin = static_cast<std::size_t>(i * chunk_tokens);
        return scores.subspan(begin, std::min(static_cast<std::size_t>(chunk_tokens), scores.size() - begin));
    }

    // Fills means and the order of the chunks, best first.
    void rank(std::span<float> means, std::span<index_t> order) const {
        for (std::size_t i = 0; i < means.size(); ++i) {
            double sum = 0;
            const auto tokens = chunk(static_cast<index_t>(i));
            for (const float s : tokens) { sum += static_cast<double>(s); }
            means[i] = static_cast<float>(sum / static_cast<double>(tokens.size()));
            order[i] = static_cast<index_t>(i);
        }
        std::sort(order.begin(), order.end(), [&](index_t a, index_t b) {
            const auto bits_a = ordered_bits(means[static_cast<std::size_t>(a)]);
            const auto bits_b = ordered_bits(means[static_cast<std::size_t>(b)]);
            return bits_a > bits_b || (bits_a == bits_b && a < b);
        });
    }

    // Tokens of chosen chunks outrank all; of the chunk that no longer fits, the best fill the budget.
    void mark(std::span<const index_t> order, index_t budget) const {
        index_t left = budget;
        for (const index_t i : order) {
            const auto tokens = chunk(i);
            if (left >= static_cast<index_t>(tokens.size())) {
                std::fill(tokens.begin(), tokens.end(), std::numeric_limits<float>::infinity());
            } else if (left <= 0) {
                std::fill(tokens.begin(), tokens.end(), std::numeric_limits<float>::quiet_NaN());
            }
            left -= static_cast<index_t>(tokens.size());
        }
    }
};

} // namespace detail

struct chunked;

/// Whole chunks of columns stay together, chosen in each row by itself (ChunkKV per head).
struct chunked_per_head {
    index_t chunk_tokens = 20; ///< ChunkKV 20; or the engine's page
    index_t kept_chunks = 0;   ///< > 0: exactly this many whole chunks per row, whatever the budget

    /// whether the allocator sees attention instead of importance
    static constexpr bool allocate_by_attention = false;
    static constexpr bool needs_uniform_budgets = false; ///< whether the allocator must be uniform

    /// Returns invalid_parameter for a field out of range.
    [[nodiscard]] status validate() const {
        if (chunk_tokens > 0 && kept_chunks >= 0) { return {}; }
        return {errc::invalid_parameter, "chunked: chunk_tokens must be positive, kept_chunks not negative"};
    }

    /// Bytes of workspace for before_selection() over so many rows and candidates; 0 where validate() refuses.
    [[nodiscard]] index_t workspace_bytes(index_t rows, index_t candidates) const {
        if (!validate().ok()) { return 0; }
        workspace counting = workspace::counting();
        static_cast<void>(counting.take<float>(candidates / chunk_tokens + rows));
        static_cast<void>(counting.take<index_t>(candidates / chunk_tokens + rows));
        return counting.needed_bytes();
    }

    /// Marks the chunks that stay. Returns what validate() or validate_budgets() says or errc::workspace_too_small, with
    /// nothing written.
    [[nodiscard]] status before_selection(const token_scores& scores, std::span<index_t> budgets,
                                          workspace& scratch) const {
        if (const status s = validate(); !s.ok()) { return s; }
        if (const status s = validate_budgets(scores.importance_rows(), budgets); !s.ok()) { return s; }
        const index_t bytes = workspace_bytes(scores.rows(), scores.importance_rows().candidates());
        if (!scratch.holds(bytes)) { return scratch.too_small(bytes); }
        for (index_t r = 0; r < scores.rows(); ++r) {
            mark_row(scores.importance_rows().row(r), budgets[static_cast<std::size_t>(r)], scratch);
        }
        return {};
    }

  private:
    friend struct chunked;

    // Marks the chunks of one row. Requires a workspace that holds workspace_bytes(1, row length).
    void mark_row(std::span<float> scores, index_t& budget, workspace& scratch) const {
        const workspace::frame frame(scratch);
        const detail::chunk_row row{scores, chunk_tokens};
        const index_t tokens = std::ssize(scores);
        const index_t chunks = tokens / chunk_tokens + (tokens % chunk_tokens > 0 ? 1 : 0);
        const auto means = scratch.take<float>(chunks);
        const auto order = scratch.take<index_t>(chunks);
        row.rank(means, order);
        if (kept_chunks > 0) {
            budget = 0;
            for (const index_t i : order.first(static_cast<std::size_t>(std::min(kept_chunks, chunks)))) {
                budget += std::ssize(row.chunk(i));
            }
        }
        row.mark(order, budget);
    }
};

/// Whole chunks of columns stay together, the same for all heads (ChunkKV).
struct chunked {
    index_t chunk_tokens = 20; ///< ChunkKV 20; or the engine's page
    index_t kept_chunks = 0;   ///< > 0: exactly this many whole chunks per row, whatever the budget

    /// whether the allocator sees attention instead of importance
    static constexpr bool allocate_by_attention = false;
    static constexpr bool needs_uniform_budgets = true; ///< whether the allocator must be uniform

    /// Returns invalid_parameter for a field out of range.
    [[nodiscard]] status validate() const { return each_row().validate(); }

    /// Bytes of workspace for before_selection() over so many rows and candidates.
    [[nodiscard]] index_t workspace_bytes(index_t rows, index_t candidates) const {
        return std::max(each_row().workspace_bytes(rows, candidates),
                        shared{}.workspace_bytes(rows, candidates));
    }

    /// Marks the chunks that stay. Returns what validate() or validate_budgets() says, errc::workspace_too_small or
    /// rows_differ, with nothing written.
    [[nodiscard]] status before_selection(const token_scores& scores, std::span<index_t> budgets,
                                          workspace& scratch) const {
        if (const status s = validate(); !s.ok()) { return s; }
        if (const status s = validate_budgets(scores.importance_rows(), budgets); !s.ok()) { return s; }
        const index_t bytes = workspace_bytes(scores.rows(), scores.importance_rows().candidates());
        if (!scratch.holds(bytes)) { return scratch.too_small(bytes); }
        if (const status s = shared{}.before_selection(scores, budgets, scratch); !s.ok()) { return s; }
        if (scores.rows() == 0) { return {}; }
        const auto first = scores.importance_rows().row(0);
        each_row().mark_row(first, budgets[0], scratch);
        for (index_t r = 1; r < scores.rows(); ++r) { // all rows are equal: the first is marked, then copied
            std::copy(first.begin(), first.end(), scores.importance_rows().row(r).begin());
            budgets[static_cast<std::size_t>(r)] = budgets[0];
        }
        return {};
    }

  private:
    [[nodiscard]] chunked_per_head each_row() const { return {chunk_tokens, kept_chunks}; }
};

} // namespace KVTRIM_NAMESPACE
