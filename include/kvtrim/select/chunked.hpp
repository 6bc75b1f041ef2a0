// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Whole chunks of tokens: neighbours stay or go together.
//
//   chunks of `chunk_tokens` columns compete by their mean importance; the best whole chunks that fit a row's
//   budget stay, and the best tokens of the next one fill it up exactly
//
// Source: ChunkKV, arXiv:2502.00299; kvpress@8bb29b9 chunkkv_press.py (chunks of 20, one set for all heads).
// Departures: ChunkKV's kept count drifts from the request (whole chunks only); here it is met to the token.
// kept_chunks gives the reference's count of whole chunks. Chunks start at the first candidate; a shorter
// last chunk is scored by its own mean.
// Cost: O(rows * columns) and a sort of the chunks, per row where rows differ. Workspace: a float and an index per chunk.

#include <kvtrim/select/shared.hpp>

#include <algorithm>
#include <limits>

namespace kvtrim {

struct chunked {
    index_t chunk_tokens = 20; // ChunkKV 20; or the engine's page
    bool same_for_all_heads = true;
    index_t kept_chunks = 0; // > 0: exactly this many whole chunks per row, whatever the budget

    static constexpr bool allocate_by_attention = false;
    static constexpr bool needs_uniform_budgets = true;

    [[nodiscard]] status validate() const {
        if (chunk_tokens > 0 && kept_chunks >= 0) { return {}; }
        return {errc::invalid_parameter, "chunked: chunk_tokens must be positive, kept_chunks not negative"};
    }

    [[nodiscard]] index_t workspace_bytes(index_t rows, index_t candidates) const {
        workspace counting = workspace::counting();
        static_cast<void>(counting.take<float>(candidates / chunk_tokens + rows));
        static_cast<void>(counting.take<index_t>(candidates / chunk_tokens + rows));
        return std::max(counting.needed_bytes(), shared{}.workspace_bytes(rows, candidates));
    }

    // Returns errc::workspace_too_small, or errc::rows_differ where one set is asked for, with nothing written.
    [[nodiscard]] status before_selection(const token_scores& scores, std::span<index_t> budgets,
                                          workspace& scratch) const {
        expect_budgets(scores.importance_rows(), budgets);
        const index_t bytes = workspace_bytes(scores.rows(), scores.importance_rows().candidates());
        if (!scratch.holds(bytes)) { return scratch.too_small(bytes); }
        if (same_for_all_heads) {
            if (const status s = shared{}.before_selection(scores, budgets, scratch); !s.ok()) { return s; }
        }
        for (index_t r = 0; r < scores.rows(); ++r) {
            if (same_for_all_heads && r > 0) { // rows alike are marked once
                const auto first = scores.importance_rows().row(0);
                std::copy(first.begin(), first.end(), scores.importance_rows().row(r).begin());
                budgets[static_cast<std::size_t>(r)] = budgets[0];
                continue;
            }
            const workspace::frame frame(scratch);
            const index_t chunks = (scores.length(r) + chunk_tokens - 1) / chunk_tokens;
            const auto means = scratch.take<float>(chunks);
            const auto order = scratch.take<index_t>(chunks);
            mark_chunks(scores.importance_rows().row(r), means, order, budgets[static_cast<std::size_t>(r)]);
        }
        return {};
    }

  private:
    // Tokens of chosen chunks outrank all; of the chunk that no longer fits, the best fill the budget.
    void mark_chunks(std::span<float> row, std::span<float> means, std::span<index_t> order,
                     index_t& budget) const {
        const auto chunk = [&](index_t i) {
            const auto begin = static_cast<std::size_t>(i * chunk_tokens);
            return row.subspan(begin, std::min(static_cast<std::size_t>(chunk_tokens), row.size() - begin));
        };
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
        if (kept_chunks > 0) {
            budget = 0;
            for (std::size_t i = 0; i < std::min(order.size(), static_cast<std::size_t>(kept_chunks)); ++i) {
                budget += static_cast<index_t>(chunk(order[i]).size());
            }
        }
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

} // namespace kvtrim
