// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Budgets in whole pages: those of another allocator, rounded so that a row fills its last page.
//
//   kept[r]  = protected_tokens[r] + budgets[r]       as the request and the other allocator say
//   pages[r] = ceil(kept[r] / page_tokens)            up: pages that are there anyway are filled
//              floor(kept[r] / page_tokens)           down: partly used pages become free
//              either, so that the pages sum to       dealt: by largest remainder, ties to the lower row
//              floor(sum of kept / page_tokens)
//   kept[r]  = min(pages[r] * page_tokens, tokens of the row)
//
// How many tokens of a row are protected comes with the scores (plan/token_scores.hpp), from the request.
// A row keeps the pages that its protected tokens fill, and one at least if it kept anything: down and dealt may
// so exceed the budget of small rows. Rows whose tokens are all protected keep all, and are left out.
// In tokens, up gives at least the budget; down and dealt, with that exception, at most.
// Cost: the other allocator's, and O(rows log rows). Workspace: 40 bytes per row more.

#include <kvtrim/allocate/round_to_total.hpp>
#include <kvtrim/plan/token_scores.hpp>

#include <cstdint>
#include <limits>

namespace KVTRIM_NAMESPACE {

/// To which number of pages a row is rounded: up, down, or by largest remainder so that the sum is kept.
enum class page_rounding : std::uint8_t { up, down, dealt };

/// Rounds the budgets of another allocator to whole pages.
template <class Allocator>
struct whole_pages {
    [[no_unique_address]] Allocator allocator = {}; ///< the allocator whose budgets are rounded
    index_t page_tokens = 16;                       ///< tokens of a page, positive
    index_t protected_tokens = 0; ///< of every row, where an engine's own scores do not say; else not read
    page_rounding rounding = page_rounding::dealt; ///< up: at least the budget; down and dealt: at most

    /// whether rows of equal length get equal budgets
    static constexpr bool is_uniform = Allocator::is_uniform;

    /// Returns invalid_parameter for page_tokens or protected_tokens out of range, or what the other allocator says.
    [[nodiscard]] status validate() const {
        constexpr index_t most = std::numeric_limits<std::int32_t>::max();
        if (page_tokens <= 0 || page_tokens > most || protected_tokens < 0 || protected_tokens > most) {
            return {
                errc::invalid_parameter,
                "whole_pages: page_tokens must be positive, protected_tokens not negative, both below 2^31"};
        }
        if constexpr (requires { allocator.validate(); }) { return allocator.validate(); }
        return {};
    }

    /// Bytes of workspace for allocate() over so many rows and candidates.
    [[nodiscard]] index_t workspace_bytes(index_t rows, index_t candidates) const {
        workspace counting = workspace::counting();
        static_cast<void>(take(rows, counting));
        index_t inner = round_to_total_bytes(rows);
        if constexpr (requires { allocator.workspace_bytes(rows, candidates); }) {
            inner = std::max(inner, allocator.workspace_bytes(rows, candidates));
        }
        static_cast<void>(counting.take<std::byte>(inner));
        return counting.needed_bytes();
    }

    /// Fills budgets [rows]. Returns what validate() or validate_total() says, errc::workspace_too_small, or an error of the
    /// other allocator, with nothing written.
    [[nodiscard]] status allocate(const score_rows& scores, index_t total, std::span<index_t> budgets,
                                  workspace& scratch) const {
        if (const status s = validate(); !s.ok()) { return s; }
        if (const status s = validate_total(scores, total, budgets); !s.ok()) { return s; }
        const index_t bytes = workspace_bytes(scores.rows(), scores.candidates());
        if (!scratch.holds(bytes)) { return scratch.too_small(bytes); }
        const workspace::frame frame(scratch);
        const buffers memory = take(scores.rows(), scratch);
        if (const status s = allocator.allocate(scores, total, budgets, scratch); !s.ok()) { return s; }
        if (const status s = validate_budgets(scores, budgets); !s.ok()) { return s; }
        index_t kept = 0;
        for (index_t r = 0; r < scores.rows(); ++r) {
            const auto row = static_cast<std::size_t>(r);
            const bool competes = scores.length(r) > 0;
            const index_t always = competes ? protected_of(scores, r) : 0;
            const index_t kept_here = competes ? always + budgets[row] : 0;
            kept += kept_here;
            memory.ideal[row] = rounded(kept_here, always);
            memory.caps[row] = competes ? pages_of(always + scores.length(r)) : 0;
        }
        if (const status s = deal(memory, kept / page_tokens, scratch); !s.ok()) { return s; }
        for (index_t r = 0; r < scores.rows(); ++r) {
            const auto row = static_cast<std::size_t>(r);
            if (scores.length(r) == 0) { continue; }
            const index_t in_pages = memory.pages[row] * page_tokens - protected_of(scores, r);
            budgets[row] = std::clamp<index_t>(in_pages, 0, scores.length(r));
        }
        return {};
    }

  private:
    struct buffers {
        std::span<double> ideal;
        std::span<index_t> caps;
        std::span<index_t> pages;
    };

    [[nodiscard]] static buffers take(index_t rows, workspace& scratch) {
        return {scratch.take<double>(rows), scratch.take<index_t>(rows), scratch.take<index_t>(rows)};
    }
    [[nodiscard]] static index_t round_to_total_bytes(index_t rows) {
        workspace counting = workspace::counting();
        static_cast<void>(counting.take<index_t>(rows));
        return counting.needed_bytes();
    }

    [[nodiscard]] index_t pages_of(index_t tokens) const { return (tokens + page_tokens - 1) / page_tokens; }
    [[nodiscard]] index_t protected_of(const score_rows& scores, index_t row) const {
        return scores.protected_tokens.empty() ? protected_tokens
                                               : scores.protected_tokens[static_cast<std::size_t>(row)];
    }

    // Pages of one row that keeps so many tokens, `always` of them protected; to be dealt, with a fraction.
    [[nodiscard]] double rounded(index_t kept, index_t always) const {
        if (rounding == page_rounding::up) { return static_cast<double>(pages_of(kept)); }
        const index_t least = kept == 0 ? 0 : std::max<index_t>(1, pages_of(always));
        const index_t down = std::max(least, kept / page_tokens);
        if (rounding == page_rounding::down || down > kept / page_tokens) {
            return static_cast<double>(down);
        }
        return static_cast<double>(kept) / static_cast<double>(page_tokens);
    }

    // Fills pages [rows]; of `total` at least the whole ones.
    [[nodiscard]] status deal(const buffers& memory, index_t total, workspace& scratch) const {
        index_t whole = 0;
        for (const double pages : memory.ideal) { whole += static_cast<index_t>(pages + 1e-9); }
        const bool has_parts = rounding == page_rounding::dealt;
        return round_to_total(memory.ideal, memory.caps, has_parts ? std::max(whole, total) : whole,
                              memory.pages, scratch);
    }
};

template <class Allocator, class... Fields>
whole_pages(Allocator, Fields...) -> whole_pages<Allocator>;

} // namespace KVTRIM_NAMESPACE
