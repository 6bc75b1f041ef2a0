// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Cells that hold one token for all heads and layers: scores of many layers folded to one token set, and the edits that an
// engine makes.
//
// Model: a list of (cell, position), edited as llama.cpp's seq_rm and seq_add edit it: ranges of positions removed, then
// ranges shifted in the order of the calls, where no two positions may meet on the way.

#include "input.hpp"

#include <kvtrim/compact/edit_cells.hpp>

#include <algorithm>
#include <map>
#include <set>

using namespace kvtrim;

namespace {

using int32s = std::vector<std::int32_t>;

void fold(fuzz::input& in) {
    const index_t tokens = in.between(0, 30), layers = in.between(0, 4), heads = in.between(1, 3);
    constexpr head_reduction reductions[] = {head_reduction::sum, head_reduction::maximum,
                                             head_reduction::votes, head_reduction::squares};
    // Refused, or few: a plan has an entry for each cell that is kept.
    const index_t any = in.hostile(tokens, 8);
    const bool is_many = any > 4096 && any <= std::numeric_limits<std::int32_t>::max();
    const cell_scores::request asked{is_many ? tokens : any,
                                     in.hostile(in.between(0, 31), 8),
                                     {.sink_tokens = in.hostile(in.between(0, 4), 8),
                                      .pinned_tokens = in.hostile(in.between(0, 4), 8),
                                      .window_tokens = in.hostile(in.between(0, 4), 8),
                                      .rollback_tokens = in.hostile(in.between(0, 4), 8)},
                                     in.one_of(reductions)};
    growing_workspace memory;
    workspace scratch = memory.of_bytes(std::min<index_t>(asked.workspace_bytes(), 1 << 20));
    cell_scores scores(asked, scratch);
    index_t added = 0;
    for (index_t l = 0; l < layers; ++l) {
        const index_t candidates = in.hostile(asked.validate().ok() ? asked.range().size() : tokens, 8) & 63;
        std::vector<float> values = fuzz::values(in, heads * candidates);
        std::vector<index_t> offsets;
        for (index_t g = 0; g <= heads; ++g) { offsets.push_back(in.hostile(g * candidates, 2)); }
        added += scores.add({offsets, values}).ok() ? 1 : 0;
    }
    keep_plan plan;
    const status answer = scores.plan(plan);
    if (!answer.ok()) {
        FUZZ_CHECK(plan == keep_plan{} && added == 0);
        return;
    }
    const index_t kept = std::min(asked.kept_tokens, asked.tokens);
    FUZZ_CHECK(plan.rows() == 1 && plan.total_tokens() == kept);
    FUZZ_CHECK(plan.check_invariants([&](index_t) { return asked.tokens; }));
    const std::set<std::int32_t> held(plan.kept().begin(), plan.kept().end());
    for (index_t t = 0; t < asked.tokens; ++t) {
        if (t < asked.range().begin || t >= asked.range().end) {
            FUZZ_CHECK(held.count(static_cast<std::int32_t>(t)) == 1);
        }
    }
}

void edit(fuzz::input& in) {
    int32s positions;
    std::int32_t next = static_cast<std::int32_t>(in.between(0, 3));
    for (index_t cells = in.between(0, 30); cells > 0; --cells) {
        positions.push_back(static_cast<std::int32_t>(in.hostile(next, 2)));
        if (!in.chance(48)) { next += static_cast<std::int32_t>(in.chance(48) ? in.between(1, 9) : 1); }
    }
    int32s kept;
    fuzz::stream s(in.number<std::uint16_t>());
    const std::uint64_t share = in.byte();
    for (std::size_t c = 0; c < positions.size(); ++c) {
        if ((s.bits() >> 20) % 256 <= share) { kept.push_back(static_cast<std::int32_t>(c)); }
    }
    if (!kept.empty() && in.chance(8)) { kept[0] = in.number<std::int32_t>(); }
    constexpr closing closings[] = {closing::keep_positions, closing::towards_first,
                                    closing::towards_horizon};
    const cell_edit_options options{in.chance(128) ? std::numeric_limits<index_t>::max()
                                                   : in.hostile(in.between(0, 40)),
                                    in.one_of(closings)};

    std::vector<token_range> removed;
    std::vector<position_shift> shifts;
    cell_edit_report report{-1, -1};
    const status answer = edit_cells(
        std::span<const keep_plan::table_index>(kept), positions, options,
        [&](token_range r) { removed.push_back(r); }, [&](position_shift m) { shifts.push_back(m); },
        &report);

    const bool sorted =
        std::is_sorted(positions.begin(), positions.end()) && (positions.empty() || positions.front() >= 0);
    bool kept_fits = true;
    for (std::size_t i = 0; i < kept.size(); ++i) {
        kept_fits =
            kept_fits && kept[i] >= 0 && kept[i] < std::ssize(positions) && (i == 0 || kept[i] > kept[i - 1]);
    }
    std::set<std::int32_t> staying; // positions
    if (kept_fits) {
        for (const auto c : kept) { staying.insert(positions[static_cast<std::size_t>(c)]); }
    }
    keep_plan plan, whole;
    const index_t count = std::ssize(kept);
    FUZZ_CHECK(plan.reset(std::span(&count, 1)).ok());
    std::ranges::copy(kept, plan.writable_row(0).begin());
    const status wholes = keep_whole_positions(plan, positions, whole);
    FUZZ_CHECK(wholes.ok() == (sorted && kept_fits));
    int32s expected; // cells
    for (std::size_t c = 0; c < positions.size(); ++c) {
        if (staying.count(positions[c]) > 0) { expected.push_back(static_cast<std::int32_t>(c)); }
    }
    if (wholes.ok()) { FUZZ_CHECK(std::ranges::equal(whole.row(0), expected)); }

    if (!answer.ok()) {
        FUZZ_CHECK(removed.empty() && shifts.empty() && report.kept_cells == -1);
        bool removes_behind = false;
        for (const auto p : positions) {
            removes_behind = removes_behind || (p >= options.horizon && staying.count(p) == 0);
        }
        FUZZ_CHECK(!sorted || !kept_fits || removes_behind || options.close == closing::towards_first);
        return;
    }
    FUZZ_CHECK(sorted && kept_fits);
    FUZZ_CHECK(report.kept_cells == std::ssize(expected) &&
               report.shared_cells == std::ssize(expected) - std::ssize(kept));

    // The engine's side.
    std::vector<std::pair<index_t, index_t>> cells; // cell, position
    for (std::size_t c = 0; c < positions.size(); ++c) { cells.emplace_back(c, positions[c]); }
    for (std::size_t i = 0; i < removed.size(); ++i) {
        FUZZ_CHECK(removed[i].size() > 0 && (i == 0 || removed[i].begin >= removed[i - 1].end));
        std::erase_if(
            cells, [&](const auto& c) { return c.second >= removed[i].begin && c.second < removed[i].end; });
    }
    FUZZ_CHECK(cells.size() == expected.size());
    const auto remaining = cells;
    const auto groups = [&] { // cells at each position
        std::map<index_t, std::set<index_t>> all;
        for (const auto& c : cells) { all[c.second].insert(c.first); }
        return all;
    };
    const std::size_t positions_left = groups().size();
    for (const position_shift& m : shifts) {
        FUZZ_CHECK(m.begin < m.end && m.delta != 0);
        for (auto& c : cells) {
            if (c.second >= m.begin && c.second < m.end) { c.second += m.delta; }
        }
        FUZZ_CHECK(groups().size() == positions_left); // no two met
    }
    index_t last = -1;
    for (std::size_t i = 0; i < cells.size(); ++i) {
        FUZZ_CHECK(cells[i].second >= last && cells[i].second >= 0); // still in order
        last = cells[i].second;
        FUZZ_CHECK(remaining[i].second < options.horizon || cells[i].second == remaining[i].second);
        if (options.close == closing::keep_positions) { FUZZ_CHECK(cells[i].second == remaining[i].second); }
    }
    // Where each position is that of one cell, closing leaves no gap.
    std::set<std::int32_t> distinct(positions.begin(), positions.end());
    if (distinct.size() == positions.size() && options.close == closing::towards_first) {
        for (std::size_t i = 1; i < cells.size(); ++i) {
            FUZZ_CHECK(cells[i].second == cells[i - 1].second + 1);
        }
    }
}

} // namespace

void run(fuzz::input& in) {
    if (in.chance(100)) {
        fold(in);
    } else {
        edit(in);
    }
}
