// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Caches whose cell holds one token for all heads and layers (llama.cpp): one token set from the scores of all
// layers, and the position ranges that the engine removes and shifts.
//
//   cell_scores     folds the rows of layer after layer (sum, maximum or votes: select/row_fold.hpp); plan() keeps
//                   the best
//   edit_cells      remove(token_range)      arguments of seq_rm(sequence, begin, end): as few as possible, ascending
//                   shift(position_shift)    arguments of seq_add(sequence, begin, end, delta): one per run of
//                                            tokens that move by the same distance, in an order in which no two
//                                            tokens meet
//
// Closing: keep_positions shifts nothing. towards_first: survivors follow the first one without gaps (the end of
// the sequence comes closer; a shared prefix that is kept whole is not shifted). towards_horizon: survivors before
// the horizon close up to it from below, so the newest tokens, and the position of the next one, stay.
// Tokens at positions from `horizon` on (drafts that may be undone) are neither removed nor shifted.
// Shifts rotate keys: engines refuse them for multi-position RoPE; cells that other sequences share are shifted
// for those too.
//
// Cost: linear in tokens; a fold per row. Workspace of cell_scores: select/row_fold.hpp.

#include <kvtrim/compact/shared_set.hpp>
#include <kvtrim/select/row_fold.hpp>

namespace kvtrim {

class cell_scores {
  public:
    // What is asked of all layers: of `tokens` cells `kept_tokens` stay, protected ones included.
    struct request {
        index_t tokens = 0;
        index_t kept_tokens = 0;
        protection protect = {};
        head_reduction reduction = head_reduction::votes;

        [[nodiscard]] token_range range() const { return candidates(protect, tokens); }
        [[nodiscard]] index_t budget() const {
            return std::min(kept_tokens, tokens) - tokens + range().size();
        }

        // Bad input: a budget of nothing or below the protected tokens (needed: tokens), negative numbers.
        [[nodiscard]] status validate() const {
            const protection& p = protect;
            if (tokens < 0 || p.sink_tokens < 0 || p.pinned_tokens < 0 || p.window_tokens < 0 ||
                p.rollback_tokens < 0) {
                return {errc::invalid_parameter, "cell_scores: token counts must not be negative"};
            }
            if (tokens > std::numeric_limits<keep_plan::table_index>::max()) {
                return {errc::index_overflow, "a plan addresses at most 2^31 - 1 tokens", tokens};
            }
            if (kept_tokens <= 0) { return {errc::budget_zero, "the budget must be at least one token"}; }
            if (budget() < 0) {
                return {errc::budget_below_protection, "the protected tokens alone exceed the budget",
                        tokens - range().size()};
            }
            return {};
        }
        // 0 for what validate() refuses.
        [[nodiscard]] index_t workspace_bytes() const {
            if (!validate().ok()) { return 0; }
            workspace counting = workspace::counting();
            static_cast<void>(cell_scores(*this, counting));
            return counting.needed_bytes();
        }
    };

    // Requires a valid request. The memory must live, and its workspace stay untouched below it, until plan() is
    // done.
    cell_scores(const request& asked, workspace& memory)
        : asked_(asked), fold_(asked.reduction, asked.range().size(), memory),
          status_(memory.fits() ? status{} : memory.too_small()) {
        if (status_.ok()) { fold_.begin(); }
    }

    // The importance rows of one layer, as a scorer writes them: one per KV head, a column per candidate.
    // Returns errc::rows_differ, with nothing added, or workspace_too_small.
    [[nodiscard]] status add(const score_rows& layer) {
        if (!status_.ok()) { return status_; }
        for (index_t r = 0; r < layer.rows(); ++r) {
            if (layer.length(r) != asked_.range().size()) {
                return {errc::rows_differ, "one token set for all heads needs rows of one length"};
            }
        }
        for (index_t r = 0; r < layer.rows(); ++r) { fold_.add(layer.row(r), asked_.budget()); }
        return {};
    }

    // One row: protected tokens and the best of the others. Returns errc::workspace_too_small.
    [[nodiscard]] status plan(keep_plan& out) const {
        if (!status_.ok()) { return status_; }
        const token_range range = asked_.range();
        const index_t kept = std::min(asked_.kept_tokens, asked_.tokens);
        if (const status s = out.reset(std::span(&kept, 1)); !s.ok()) { return s; }
        auto next = out.writable_row(0).begin();
        const auto keep = [&](index_t t) { *next++ = static_cast<keep_plan::table_index>(t); };
        const auto importance = fold_.finish(asked_.budget());
        for (index_t t = 0; t < range.begin; ++t) { keep(t); }
        top_k_cut cut = find_top_k(importance, asked_.budget());
        for_each_above(importance, cut, [&](index_t c) { keep(range.begin + c); });
        for (index_t t = range.end; t < asked_.tokens; ++t) { keep(t); }
        return {};
    }

  private:
    request asked_;
    row_fold fold_;
    status status_;
};

// Tokens at positions [begin, end) get position + delta.
struct position_shift {
    index_t begin = 0;
    index_t end = 0;
    index_t delta = 0;

    friend constexpr bool operator==(const position_shift&, const position_shift&) = default;
};

enum class closing : std::uint8_t { keep_positions, towards_first, towards_horizon };

struct cell_edit_options {
    index_t horizon = std::numeric_limits<index_t>::max(); // a position
    closing close = closing::keep_positions;
};

namespace detail {

// Survivor i gets position `first` + i. Calls shift for each run that moves by one distance. All go down or all go
// up, the earlier the farther: in the order of the way they go, none meets another.
template <class Shift>
void shift_runs(std::span<const std::int32_t> kept, std::span<const std::int32_t> positions, index_t first,
                Shift&& shift) {
    const auto position = [&](std::size_t i) {
        return index_t{positions[static_cast<std::size_t>(kept[i])]};
    };
    const auto distance = [&](std::size_t i) { return first + static_cast<index_t>(i) - position(i); };
    const auto shift_run = [&](std::size_t begin, std::size_t last) {
        if (distance(begin) == 0) { return; }
        shift(position_shift{position(begin), position(last) + 1, distance(begin)});
    };
    const std::size_t count = kept.size();
    const bool downwards = count > 0 && distance(count - 1) < 0;
    if (downwards) {
        for (std::size_t begin = 0, i = 1; i <= count; ++i) {
            if (i < count && distance(i) == distance(begin)) { continue; }
            shift_run(begin, i - 1);
            begin = i;
        }
        return;
    }
    for (std::size_t last = count, i = count; i-- > 0;) {
        if (last == count) { last = i; }
        if (i > 0 && distance(i - 1) == distance(last)) { continue; }
        shift_run(i, last);
        last = count;
    }
}

} // namespace detail

// Calls remove for each range of positions that goes, then shift for each that moves; their order is that of
// execution. kept: the cells that stay, as indices of positions, ascending; positions: of all cells of the
// sequence, ascending. Returns errc::plan_mismatch (cells the sequence does not have, or positions that do not
// ascend), or invalid_parameter (a token at or behind the horizon would be removed, or shifted by towards_first),
// with no call made.
template <class Remove, class Shift>
[[nodiscard]] status edit_cells(std::span<const keep_plan::table_index> kept,
                                std::span<const std::int32_t> positions, const cell_edit_options& options,
                                Remove&& remove, Shift&& shift) {
    const index_t cells = std::ssize(positions);
    index_t before = 0; // cells before the horizon
    for (std::size_t i = 0; i < positions.size(); ++i) {
        if (positions[i] < 0 || (i > 0 && positions[i] <= positions[i - 1])) {
            return {errc::plan_mismatch, "positions of a sequence must ascend from 0 or above"};
        }
        before += positions[i] < options.horizon ? 1 : 0;
    }
    index_t next = 0;
    index_t kept_before = 0;
    for (const auto cell : kept) {
        if (cell < next || cell >= cells) {
            return {errc::plan_mismatch, "the plan keeps cells that the sequence does not have"};
        }
        next = index_t{cell} + 1;
        kept_before += cell < before ? 1 : 0;
    }
    if (std::ssize(kept) - kept_before != cells - before) {
        return {errc::invalid_parameter, "edit_cells: a token behind the horizon would be removed"};
    }
    const auto position = [&](index_t cell) { return index_t{positions[static_cast<std::size_t>(cell)]}; };
    const index_t first = kept.empty() ? 0 : position(kept.front());
    const bool pulls_all = options.close == closing::towards_first && before < cells;
    if (pulls_all && first + std::ssize(kept) - 1 != position(cells - 1)) {
        return {errc::invalid_parameter, "edit_cells: a token behind the horizon would be shifted"};
    }
    removed_ranges(kept, cells, [&](token_range range) {
        remove(token_range{position(range.begin), position(range.end - 1) + 1});
    });
    if (options.close == closing::towards_first) {
        detail::shift_runs(kept, positions, first, shift);
    } else if (options.close == closing::towards_horizon && before > 0) {
        const index_t end = before < cells ? position(before) : position(cells - 1) + 1;
        detail::shift_runs(kept.first(static_cast<std::size_t>(kept_before)), positions, end - kept_before,
                           shift);
    }
    return {};
}

} // namespace kvtrim
