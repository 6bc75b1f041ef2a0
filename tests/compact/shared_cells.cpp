// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/compact/shared_cells.hpp>

#include <kvtrim/select/shared.hpp>

#include "compact/random_cache.hpp"
#include "support/random_scores.hpp"

#include <map>
#include <set>

using namespace kvtrim;
using namespace support;

namespace {

using int32s = std::vector<std::int32_t>;

struct edits {
    status answer;
    std::vector<token_range> removed;
    std::vector<position_shift> shifts;
};

edits edit(const int32s& kept, const int32s& positions, const cell_edit_options& options = {}) {
    edits e;
    e.answer = edit_cells(
        kept, positions, options, [&](token_range r) { e.removed.push_back(r); },
        [&](position_shift s) { e.shifts.push_back(s); });
    return e;
}

// A sequence in an engine: tokens by position. The names and the meaning of the terms are the engine's.
struct sequence {
    std::map<index_t, std::int32_t> token_at;

    void seq_rm(index_t begin, index_t end) {
        token_at.erase(token_at.lower_bound(begin), token_at.lower_bound(end));
    }
    // Whether no two tokens met.
    [[nodiscard]] bool seq_add(index_t begin, index_t end, index_t delta) {
        std::map<index_t, std::int32_t> moved;
        for (const auto& [position, token] : token_at) {
            const index_t now = position + (position >= begin && position < end ? delta : 0);
            if (!moved.emplace(now, token).second) { return false; }
        }
        token_at = moved;
        return true;
    }
};

} // namespace

TEST_CASE("edit_cells: ranges and shifts of an example", "[compact]") {
    const int32s positions{0, 1, 2, 3, 4, 5, 6, 7};
    const int32s kept{0, 3, 4, 7};
    const auto removed = std::vector<token_range>{{1, 3}, {5, 7}};
    CHECK(edit(kept, positions).removed == removed);
    CHECK(edit(kept, positions).shifts.empty());
    const edits first = edit(kept, positions, {.close = closing::towards_first});
    CHECK(first.removed == removed);
    CHECK(first.shifts == std::vector<position_shift>{{3, 5, -2}, {7, 8, -4}});
    const edits up = edit(kept, positions, {.horizon = 7, .close = closing::towards_horizon});
    CHECK(up.removed == removed);
    CHECK(up.shifts == std::vector<position_shift>{{3, 5, 2}, {0, 1, 4}});
    CHECK(edit(kept, positions, {.close = closing::towards_horizon}).shifts ==
          up.shifts); // the end of the sequence
    // Gaps that earlier cuts left need no ranges of their own.
    CHECK(edit({0, 3}, {5, 9, 20, 30}).removed == std::vector<token_range>{{9, 21}});
    CHECK(edit({0, 1, 2}, {5, 9, 10}, {.close = closing::towards_first}).shifts ==
          std::vector<position_shift>{{9, 11, -3}});
    CHECK(edit({}, {}).answer.ok());
    CHECK(edit({}, {3, 4}).removed == std::vector<token_range>{{3, 5}});
}

TEST_CASE("edit_cells: an engine that follows them holds the kept tokens, closed up, and nothing behind the "
          "horizon changed",
          "[compact][properties]") {
    support::random r(1);
    for (int round = 0; round < 2000; ++round) {
        int32s positions;
        for (index_t i = r.between(0, 40); i > 0; --i) {
            const auto gap = static_cast<std::int32_t>(r.chance(0.2) ? r.between(2, 9) : 1);
            positions.push_back((positions.empty() ? -1 : positions.back()) + gap);
        }
        const auto cells = static_cast<index_t>(positions.size());
        const keep_plan plan = any_plan(r, {cells});
        int32s kept(plan.row(0).begin(), plan.row(0).end());
        const closing close =
            r.one_of({closing::keep_positions, closing::towards_first, closing::towards_horizon});
        cell_edit_options options{.close = close};
        index_t tail = 0; // cells behind the horizon
        if (r.chance(0.5) && cells > 0) {
            tail = r.between(0, std::min<index_t>(cells, 4));
            options.horizon =
                tail == 0 ? positions.back() + 1 : positions[static_cast<std::size_t>(cells - tail)];
            kept.erase(std::lower_bound(kept.begin(), kept.end(), cells - tail), kept.end());
            for (index_t i = cells - tail; i < cells; ++i) { kept.push_back(static_cast<std::int32_t>(i)); }
        }
        CAPTURE(round, positions, kept, close, options.horizon);
        const edits e = edit(kept, positions, options);
        if (!e.answer.ok()) {
            CHECK(e.answer.code() == errc::invalid_parameter);
            CHECK((close == closing::towards_first && tail > 0));
            CHECK((e.removed.empty() && e.shifts.empty()));
            continue;
        }
        sequence s;
        for (index_t i = 0; i < cells; ++i) {
            s.token_at[positions[static_cast<std::size_t>(i)]] = static_cast<std::int32_t>(i);
        }
        bool ascending = true;
        index_t runs = 0; // of neighbours that go
        for (index_t i = 0; i < cells; ++i) {
            const bool goes = !std::binary_search(kept.begin(), kept.end(), i);
            const bool went = i > 0 && !std::binary_search(kept.begin(), kept.end(), i - 1);
            runs += goes && !went ? 1 : 0;
        }
        for (std::size_t i = 0; i < e.removed.size(); ++i) {
            ascending = ascending && (i == 0 || e.removed[i - 1].end <= e.removed[i].begin);
            s.seq_rm(e.removed[i].begin, e.removed[i].end);
        }
        CHECK(ascending);
        CHECK(std::ssize(e.removed) == runs);
        bool apart = true;
        for (const position_shift& shift : e.shifts) {
            apart = apart && shift.delta != 0 && s.seq_add(shift.begin, shift.end, shift.delta);
        }
        CHECK(apart);
        int32s left;
        std::vector<index_t> now;
        for (const auto& [position, token] : s.token_at) {
            left.push_back(token);
            now.push_back(position);
        }
        CHECK(left == kept);
        const auto before = std::ssize(kept) - tail;
        std::set<index_t> distances; // minimal: one shift for each distance but 0
        for (std::size_t i = 0; i < kept.size(); ++i) {
            const index_t old = positions[static_cast<std::size_t>(kept[i])];
            if (now[i] != old) { distances.insert(now[i] - old); }
            const bool behind = static_cast<index_t>(i) >= before;
            if (behind || close == closing::keep_positions) { CHECK(now[i] == old); }
            if (close == closing::towards_first) { CHECK(now[i] == now[0] + static_cast<index_t>(i)); }
            if (close == closing::towards_horizon && !behind) {
                const index_t end =
                    tail > 0 ? positions[static_cast<std::size_t>(cells - tail)] : positions.back() + 1;
                CHECK(now[i] == end - before + static_cast<index_t>(i));
            }
        }
        CHECK(distances.size() == e.shifts.size());
    }
}

TEST_CASE("edit_cells: what it cannot do is refused, with no call made", "[compact][errors]") {
    const auto refusal = [](const int32s& kept, const int32s& positions,
                            const cell_edit_options& options = {}) {
        const edits e = edit(kept, positions, options);
        CHECK((e.removed.empty() && e.shifts.empty()));
        return e.answer.code();
    };
    CHECK(refusal({0, 4}, {0, 1, 2, 3}) == errc::plan_mismatch);
    CHECK(refusal({-1}, {0, 1, 2, 3}) == errc::plan_mismatch);
    CHECK(refusal({1, 0}, {0, 1, 2, 3}) == errc::plan_mismatch);
    CHECK(refusal({1, 1}, {0, 1, 2, 3}) == errc::plan_mismatch);
    CHECK(refusal({0}, {0, 1, 1, 3}) == errc::plan_mismatch);
    CHECK(refusal({0}, {-2, 1, 2, 3}) == errc::plan_mismatch);
    CHECK(refusal({0, 1, 3}, {0, 1, 2, 3}, {.horizon = 2}) == errc::invalid_parameter);
    CHECK(refusal({0, 1}, {0, 1, 2, 3}, {.horizon = 3}) == errc::invalid_parameter);
    CHECK(refusal({0, 2, 3}, {0, 1, 2, 3}, {.horizon = 3, .close = closing::towards_first}) ==
          errc::invalid_parameter);
    CHECK(refusal({0, 1, 2, 3}, {0, 1, 2, 3}, {.horizon = 3, .close = closing::towards_first}) == errc::ok);
}

TEST_CASE("cell_scores: layer after layer gives what shared gives for the rows of all layers at once",
          "[compact]") {
    support::random r(2);
    for (int round = 0; round < 200; ++round) {
        const auto columns = static_cast<std::size_t>(r.between(0, 60));
        const auto layers = r.between(1, 3);
        const auto heads = r.between(1, 3);
        oracle::matrix all;
        for (index_t row = 0; row < layers * heads; ++row) {
            all.emplace_back();
            for (std::size_t c = 0; c < columns; ++c) {
                all.back().push_back(static_cast<double>(r.between(0, 20)));
            }
        }
        const protection protect{.sink_tokens = r.between(0, 3), .window_tokens = r.between(1, 4)};
        const index_t tokens = static_cast<index_t>(columns) + protect.prefix() + protect.suffix();
        const index_t budget = r.between(0, static_cast<index_t>(columns));
        const auto reduction =
            r.one_of({head_reduction::sum, head_reduction::maximum, head_reduction::votes});
        const cell_scores::request request{tokens, tokens - static_cast<index_t>(columns) + budget, protect,
                                           reduction};
        REQUIRE(request.validate().ok());
        growing_workspace memory;
        workspace scratch = memory.of_bytes(request.workspace_bytes());
        cell_scores cells(request, scratch);
        for (index_t layer = 0; layer < layers; ++layer) {
            score_memory rows(oracle::matrix(all.begin() + layer * heads, all.begin() + (layer + 1) * heads));
            CHECK(cells.add(rows.importance_rows()).ok());
        }
        keep_plan plan;
        REQUIRE(cells.plan(plan).ok());
        score_memory together(all);
        std::vector<index_t> budgets(all.size(), budget);
        growing_workspace more;
        workspace at_once = more.of_bytes(1 << 14);
        REQUIRE(shared{reduction}.before_selection(together.get(), budgets, at_once).ok());
        int32s expected;
        for (index_t t = 0; t < protect.prefix(); ++t) { expected.push_back(static_cast<std::int32_t>(t)); }
        top_k_cut cut = find_top_k(together.importance_rows().row(0), budget);
        for_each_above(together.importance_rows().row(0), cut, [&](index_t c) {
            expected.push_back(static_cast<std::int32_t>(protect.prefix() + c));
        });
        for (index_t t = tokens - protect.suffix(); t < tokens; ++t) {
            expected.push_back(static_cast<std::int32_t>(t));
        }
        CAPTURE(round, columns, layers, heads, budget, reduction);
        CHECK(int32s(plan.row(0).begin(), plan.row(0).end()) == expected);
    }
}

TEST_CASE("cell_scores: bad input is named, rows of another length and a small workspace add nothing",
          "[compact][errors]") {
    const cell_scores::request good{.tokens = 10, .kept_tokens = 6, .protect = {.window_tokens = 4}};
    CHECK(good.validate().ok());
    CHECK(cell_scores::request{10, 0, {}}.validate().code() == errc::budget_zero);
    CHECK(cell_scores::request{10, 3, {.window_tokens = 4}}.validate().code() ==
          errc::budget_below_protection);
    CHECK(cell_scores::request{10, 3, {.window_tokens = 4}}.validate().needed() == 4);
    CHECK(cell_scores::request{-1, 3, {}}.validate().code() == errc::invalid_parameter);
    CHECK(cell_scores::request{10, 3, {.sink_tokens = -1}}.validate().code() == errc::invalid_parameter);
    CHECK(cell_scores::request{index_t{1} << 31, 3, {}}.validate().code() == errc::index_overflow);
    CHECK(cell_scores::request{10, 0, {}}.workspace_bytes() == 0);

    growing_workspace memory;
    workspace scratch = memory.of_bytes(good.workspace_bytes());
    cell_scores cells(good, scratch);
    score_memory uneven(oracle::matrix{{9, 9, 9, 9, 9, 9}, {9, 9, 9, 9, 9}});
    CHECK(cells.add(uneven.importance_rows()).code() == errc::rows_differ);
    score_memory rows(oracle::matrix{{0, 5, 0, 0, 7, 0}});
    CHECK(cells.add(rows.importance_rows()).ok());
    keep_plan plan;
    CHECK(cells.plan(plan).ok());
    CHECK(plan == plan_of({{1, 4, 6, 7, 8, 9}}));

    std::vector<std::byte> few(static_cast<std::size_t>(good.workspace_bytes()) - 65);
    workspace small(few);
    cell_scores none(good, small);
    keep_plan out = made_before();
    CHECK(none.add(rows.importance_rows()).code() == errc::workspace_too_small);
    CHECK(none.plan(out).code() == errc::workspace_too_small);
    CHECK(out == made_before());
    // More than there is: everything stays.
    const cell_scores::request all{.tokens = 3, .kept_tokens = 9};
    workspace enough = memory.of_bytes(all.workspace_bytes());
    cell_scores whole(all, enough);
    CHECK(whole.plan(plan).ok());
    CHECK(plan == plan_of({{0, 1, 2}}));
}
