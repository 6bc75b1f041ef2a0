// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Budgets in whole pages: what another allocator deals out, rounded so that no row ends with a page it only half
// needs.
//
//   kept[r]  = protected_tokens + budgets[r]          as the other allocator says
//   pages[r] = ceil(kept[r] / page_tokens)            up: pages that are there anyway are filled
//              floor(kept[r] / page_tokens)           down: partly used pages become free
//              either, so that the pages sum to       dealt: by largest remainder, ties to the lower row
//              floor(sum of kept / page_tokens)
//   kept[r]  = min(pages[r] * page_tokens, tokens of the row)
//
// A row keeps the pages that its protected tokens fill, and one at least if it kept anything: down and dealt may
// so exceed the budget of small rows. Rows of fewer tokens than protected_tokens keep all, and are left out.
// In tokens, up gives at least the budget; down and dealt, with that exception, at most.
// Cost: the other allocator's, and O(rows log rows). Workspace: 40 bytes per row more.

#include <kvtrim/base/token_scores.hpp>
#include <kvtrim/math/largest_remainder.hpp>

#include <cstdint>

namespace kvtrim {

enum class page_rounding : std::uint8_t { up, down, dealt };

template <class Allocator>
struct whole_pages {
    [[no_unique_address]] Allocator allocator = {};
    index_t page_tokens = 16;
    index_t protected_tokens = 0; // request.protect.prefix() + request.protect.suffix()
    page_rounding rounding = page_rounding::dealt;

    static constexpr bool is_uniform = Allocator::is_uniform;

    [[nodiscard]] status validate() const {
        if (page_tokens <= 0 || protected_tokens < 0) {
            return {errc::invalid_parameter,
                    "whole_pages: page_tokens must be positive, protected_tokens not negative"};
        }
        if constexpr (requires { allocator.validate(); }) { return allocator.validate(); }
        return {};
    }

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

    // Requires 0 <= total <= the number of candidates, and a budget per row. Fills budgets [rows].
    // Returns errc::workspace_too_small, or an error of the other allocator, with nothing written.
    [[nodiscard]] status allocate(const score_rows& scores, index_t total, std::span<index_t> budgets,
                                  workspace& scratch) const {
        const index_t bytes = workspace_bytes(scores.rows(), scores.candidates());
        if (!scratch.holds(bytes)) { return scratch.too_small(bytes); }
        const workspace::frame frame(scratch);
        const buffers memory = take(scores.rows(), scratch);
        if (const status s = allocator.allocate(scores, total, budgets, scratch); !s.ok()) { return s; }
        index_t kept = 0;
        for (index_t r = 0; r < scores.rows(); ++r) {
            const auto row = static_cast<std::size_t>(r);
            const bool competes = scores.length(r) > 0;
            const index_t kept_here = competes ? protected_tokens + budgets[row] : 0;
            kept += kept_here;
            memory.ideal[row] = rounded(kept_here);
            memory.caps[row] = competes ? pages_of(protected_tokens + scores.length(r)) : 0;
        }
        if (const status s = deal(memory, kept / page_tokens, scratch); !s.ok()) { return s; }
        for (index_t r = 0; r < scores.rows(); ++r) {
            const auto row = static_cast<std::size_t>(r);
            if (scores.length(r) == 0) { continue; }
            const index_t in_pages = memory.pages[row] * page_tokens - protected_tokens;
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

    // Pages of one row; to be dealt, with a fraction.
    [[nodiscard]] double rounded(index_t kept) const {
        if (rounding == page_rounding::up) { return static_cast<double>(pages_of(kept)); }
        const index_t least = kept == 0 ? 0 : std::max<index_t>(1, pages_of(protected_tokens));
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

} // namespace kvtrim
