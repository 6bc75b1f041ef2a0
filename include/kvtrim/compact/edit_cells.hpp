// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Caches whose cell holds one token for all heads and layers (llama.cpp): one token set from the scores of all
// layers (compact/cell_scores.hpp), and the position ranges that the engine removes and shifts.
//
//   keep_whole_positions  the same plan, and all cells that share a position with one that stays
//   edit_cells            remove(token_range)      arguments of seq_rm(sequence, begin, end): as few as possible, ascending
//                         shift(position_shift)    arguments of seq_add(sequence, begin, end, delta): one per run of
//                                                  tokens that move by the same distance, in an order in which no two
//                                                  tokens meet
//
// Cells that share a position: with multi-position RoPE (M-RoPE: Qwen2-VL and others) all tokens of an image stand at one
// position of the sequence. An engine that removes by position removes all of them or none, so all stay where one is
// kept, and edit_cells reports how many more these are (cell_edit_report). State that the caller keeps per cell follows the
// plan of keep_whole_positions.
//
// Closing: keep_positions shifts nothing, and always works. towards_first: survivors follow the first one without gaps
// (the end of the sequence comes closer; a shared prefix that is kept whole is not shifted). towards_horizon: survivors
// before the horizon close up to it from below, so the newest tokens, and the position of the next one, stay. Cells that
// share a position are shifted together, and keep the distance to the position behind them: an image takes as many
// positions as its longer side, which only that distance shows.
// Tokens at positions from `horizon` on (drafts that may be undone) are neither removed nor shifted.
// Shifts rotate keys: llama.cpp refuses them for M-RoPE; cells that other sequences share are shifted
// for those too.
//
// Cost: linear in tokens.

#include <kvtrim/compact/cell_scores.hpp>
#include <kvtrim/compact/project_to_shared.hpp>

namespace KVTRIM_NAMESPACE {

/// Tokens at positions [begin, end) get position + delta.
struct position_shift {
    index_t begin = 0; ///< first position
    index_t end = 0;   ///< behind the last one
    index_t delta = 0; ///< below 0: towards the start

    friend constexpr bool operator==(const position_shift&, const position_shift&) = default;
};

/// What happens to the gaps between positions; see the top of this header.
enum class closing : std::uint8_t { keep_positions, towards_first, towards_horizon };

/// What edit_cells() may do.
struct cell_edit_options {
    index_t horizon = std::numeric_limits<index_t>::max(); ///< tokens at this position or behind stay
    closing close = closing::keep_positions;               ///< of the gaps
};

/// What edit_cells() left.
struct cell_edit_report {
    index_t kept_cells = 0; ///< all that stay
    /// Of these, those that the plan evicts: they share a position with one that it keeps.
    index_t shared_cells = 0;
};

namespace detail {

// The cells [begin, end) at one position.
struct position_group {
    index_t begin = 0, end = 0;
    index_t position = 0;
    index_t span = 1; // positions that it takes when it is closed up
    bool stays = false;
};

// The cells of a sequence position by position, upwards or downwards, beside the cells that a plan keeps.
class position_groups {
  public:
    position_groups(std::span<const keep_plan::table_index> kept, std::span<const std::int32_t> positions)
        : kept_(kept), positions_(positions) {}

    // Whether positions ascend from 0 on and the kept cells are of this sequence.
    [[nodiscard]] status validate() const {
        for (std::size_t i = 0; i < positions_.size(); ++i) {
            if (positions_[i] < 0 || (i > 0 && positions_[i] < positions_[i - 1])) {
                return {errc::plan_mismatch, "positions of a sequence must not descend, from 0 or above"};
            }
        }
        index_t next = 0;
        for (const auto cell : kept_) {
            if (cell < next || cell >= std::ssize(positions_)) {
                return {errc::plan_mismatch, "the plan keeps cells that the sequence does not have"};
            }
            next = index_t{cell} + 1;
        }
        return {};
    }

    template <class Fn>
    void ascending(Fn&& fn) const {
        std::size_t next_kept = 0;
        for (index_t begin = 0; begin < std::ssize(positions_);) {
            position_group group = group_at(begin, end_of(begin));
            while (next_kept < kept_.size() && kept_[next_kept] < group.end) {
                group.stays = true;
                ++next_kept;
            }
            fn(group);
            begin = group.end;
        }
    }
    template <class Fn>
    void descending(Fn&& fn) const {
        std::size_t kept_left = kept_.size();
        for (index_t end = std::ssize(positions_); end > 0;) {
            index_t begin = end - 1;
            while (begin > 0 && at(begin - 1) == at(end - 1)) { --begin; }
            position_group group = group_at(begin, end);
            while (kept_left > 0 && kept_[kept_left - 1] >= group.begin) {
                group.stays = true;
                --kept_left;
            }
            fn(group);
            end = begin;
        }
    }

  private:
    [[nodiscard]] index_t at(index_t cell) const { return positions_[static_cast<std::size_t>(cell)]; }
    [[nodiscard]] index_t end_of(index_t begin) const {
        index_t end = begin + 1;
        while (end < std::ssize(positions_) && at(end) == at(begin)) { ++end; }
        return end;
    }
    [[nodiscard]] position_group group_at(index_t begin, index_t end) const {
        const bool keeps_distance = end - begin > 1 && end < std::ssize(positions_);
        return {begin, end, at(begin), keeps_distance ? at(end) - at(begin) : 1, false};
    }

    std::span<const keep_plan::table_index> kept_;
    std::span<const std::int32_t> positions_;
};

// Joins neighbours that move by the same distance into one call.
template <class Shift>
class shift_runs {
  public:
    explicit shift_runs(Shift& shift) : shift_(shift) {}

    void add(index_t position, index_t delta) {
        if (delta != run_.delta) {
            finish();
            run_ = {position, position + 1, delta};
        }
        run_.begin = std::min(run_.begin, position);
        run_.end = std::max(run_.end, position + 1);
    }
    void finish() {
        if (run_.delta != 0) { shift_(run_); }
        run_ = {};
    }

  private:
    Shift& shift_;
    position_shift run_;
};

} // namespace detail

/// Calls remove for each range of positions that goes, then shift for each that moves; their order is that of
/// execution. kept: the cells that stay, as indices of positions, ascending; positions: of all cells of the
/// sequence, not descending. Returns plan_mismatch (cells the sequence does not have, or positions that descend),
/// or invalid_parameter (a token at or behind the horizon would be removed, or shifted by towards_first),
/// with no call made and no report.
template <class Remove, class Shift>
[[nodiscard]] status edit_cells(std::span<const keep_plan::table_index> kept,
                                std::span<const std::int32_t> positions, const cell_edit_options& options,
                                Remove&& remove, Shift&& shift, cell_edit_report* report = nullptr) {
    const detail::position_groups groups(kept, positions);
    if (const status s = groups.validate(); !s.ok()) { return s; }

    index_t kept_cells = 0;
    index_t first = -1; // position of the first survivor
    index_t target = 0; // where the next one would follow without a gap
    index_t end = -1;   // what survivors before the horizon close up to
    bool removes_behind = false, shifts_behind = false;
    groups.ascending([&](const detail::position_group& group) {
        const bool behind = group.position >= options.horizon;
        if (behind && end < 0) { end = group.position; }
        removes_behind = removes_behind || (behind && !group.stays);
        if (!group.stays) { return; }
        if (first < 0) { first = target = group.position; }
        shifts_behind = shifts_behind || (behind && target != group.position);
        target += group.span;
        kept_cells += group.end - group.begin;
    });
    if (end < 0 && !positions.empty()) { end = index_t{positions.back()} + 1; }
    if (removes_behind) {
        return {errc::invalid_parameter, "edit_cells: a token behind the horizon would be removed"};
    }
    if (shifts_behind && options.close == closing::towards_first) {
        return {errc::invalid_parameter, "edit_cells: a token behind the horizon would be shifted"};
    }

    token_range gone{0, 0};
    const auto finish_range = [&] {
        if (gone.size() > 0) { remove(gone); }
        gone = {0, 0};
    };
    groups.ascending([&](const detail::position_group& group) {
        if (group.stays) { return finish_range(); }
        gone = {gone.size() > 0 ? gone.begin : group.position, group.position + 1};
    });
    finish_range();

    detail::shift_runs runs(shift);
    if (options.close == closing::towards_first) {
        target = first;
        groups.ascending([&](const detail::position_group& group) {
            if (!group.stays) { return; }
            runs.add(group.position, target - group.position);
            target += group.span;
        });
    } else if (options.close == closing::towards_horizon) {
        groups.descending([&](const detail::position_group& group) {
            if (!group.stays || group.position >= options.horizon) { return; }
            end -= group.span;
            runs.add(group.position, end - group.position);
        });
    }
    runs.finish();
    if (report != nullptr) { *report = {kept_cells, kept_cells - std::ssize(kept)}; }
    return {};
}

/// Writes the plan of what edit_cells() leaves: the cells of the plan's one row, and all that share a position with one of
/// them. Returns plan_mismatch, index_overflow, or invalid_parameter if `out` is the plan that is read or has the positions; with out
/// unchanged.
[[nodiscard]] inline status keep_whole_positions(const keep_plan& plan,
                                                 std::span<const std::int32_t> positions, keep_plan& out) {
    if (plan.rows() != 1) {
        return {errc::plan_mismatch, "one token set for all heads is a plan of one row", 1};
    }
    if (&plan == &out || out.holds(positions)) {
        return {errc::invalid_parameter, "keep_whole_positions: the output must be another plan"};
    }
    const detail::position_groups groups(plan.row(0), positions);
    if (const status s = groups.validate(); !s.ok()) { return s; }
    index_t count = 0;
    groups.ascending(
        [&](const detail::position_group& group) { count += group.stays ? group.end - group.begin : 0; });
    if (const status s = out.reset(std::span(&count, 1)); !s.ok()) { return s; }
    auto next = out.writable_row(0).begin();
    groups.ascending([&](const detail::position_group& group) {
        for (index_t c = group.begin; group.stays && c < group.end; ++c) {
            *next++ = static_cast<keep_plan::table_index>(c);
        }
    });
    return {};
}

} // namespace KVTRIM_NAMESPACE
