// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/compact/edit_cells.hpp>

#include <kvtrim/policy/criticalkv.hpp>
#include <kvtrim/rerank/shared.hpp>

#include "compact/random_cache.hpp"
#include "support/random_layer.hpp"
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
    cell_edit_report report{-1, -1};
};

edits edit(const int32s& kept, const int32s& positions, const cell_edit_options& options = {}) {
    edits e;
    e.answer = edit_cells(
        kept, positions, options, [&](token_range r) { e.removed.push_back(r); },
        [&](position_shift s) { e.shifts.push_back(s); }, &e.report);
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
        CHECK(e.report.kept_cells == std::ssize(kept));
        CHECK(e.report.shared_cells == 0);
    }
}

namespace {

// Text at 0 ... 9, an image of 64 tokens that all stand at position 10, text from `next` on.
int32s vision_sequence(std::int32_t next, std::int32_t text_after) {
    int32s positions;
    for (std::int32_t p = 0; p < 10; ++p) { positions.push_back(p); }
    positions.insert(positions.end(), 64, 10);
    for (std::int32_t p = 0; p < text_after; ++p) { positions.push_back(next + p); }
    return positions;
}

int32s without(index_t cells, const std::vector<token_range>& gone) {
    int32s kept;
    for (index_t c = 0; c < cells; ++c) {
        const auto holds = [&](const token_range& r) { return r.begin <= c && c < r.end; };
        if (std::none_of(gone.begin(), gone.end(), holds)) { kept.push_back(static_cast<std::int32_t>(c)); }
    }
    return kept;
}

} // namespace

TEST_CASE("edit_cells: an image whose tokens share a position stays or goes as a whole",
          "[compact][vision]") {
    for (const std::int32_t next : {11, 18}) { // an image of 8 x 8 takes 8 positions of M-RoPE
        const int32s positions = vision_sequence(next, 20);
        const auto cells = std::ssize(positions);
        // Some of the image and some text: the image stays, and the report says how much more that is.
        const int32s some = without(cells, {{2, 5}, {12, 70}, {80, 85}});
        const edits stays = edit(some, positions);
        REQUIRE(stays.answer.ok());
        CHECK(stays.removed == std::vector<token_range>{{2, 5}, {next + 6, next + 11}});
        CHECK(stays.report.kept_cells == cells - 3 - 5);
        CHECK(stays.report.shared_cells == 58);
        // None of it, and its neighbours: one range.
        const edits goes = edit(without(cells, {{8, 76}}), positions);
        REQUIRE(goes.answer.ok());
        CHECK(goes.removed == std::vector<token_range>{{8, next + 2}});
        CHECK(goes.report.shared_cells == 0);
        // All of it.
        CHECK(edit(without(cells, {}), positions).removed.empty());
        // A horizon behind the image, and at it.
        CHECK(edit(some, positions, {.horizon = next + 12}).answer.ok());
        CHECK(edit(some, positions, {.horizon = 10}).answer.code() ==
              errc::invalid_parameter); // text would go
        CHECK(edit(without(cells, {{2, 5}, {12, 70}}), positions, {.horizon = 10}).answer.ok());
        CHECK(edit(without(cells, {{10, 74}}), positions, {.horizon = 10}).answer.code() ==
              errc::invalid_parameter);
    }
}

TEST_CASE("edit_cells: an image closes up as one, with the positions that it takes", "[compact][vision]") {
    for (const std::int32_t next : {11, 18}) {
        const int32s positions = vision_sequence(next, 20);
        const auto cells = std::ssize(positions);
        const int32s kept = without(cells, {{2, 5}, {12, 70}, {80, 85}}); // text 3, image, text 6 ... 10
        const edits down = edit(kept, positions, {.close = closing::towards_first});
        REQUIRE(down.answer.ok());
        CHECK(down.shifts == std::vector<position_shift>{{5, next + 6, -3}, {next + 11, next + 20, -8}});
        const edits up = edit(kept, positions, {.close = closing::towards_horizon});
        REQUIRE(up.answer.ok());
        CHECK(up.shifts == std::vector<position_shift>{{5, next + 6, 5}, {0, 2, 8}});
        // The text right behind the image goes: the image keeps its positions to itself.
        const edits gap = edit(without(cells, {{74, 79}}), positions, {.close = closing::towards_first});
        REQUIRE(gap.answer.ok());
        CHECK(gap.shifts == std::vector<position_shift>{{next + 5, next + 20, -5}});
    }
    // An image at the end: nothing says yet how many positions it takes, and it does not move up.
    const int32s ends_with_image = vision_sequence(11, 0);
    const edits up = edit(without(74, {{3, 6}}), ends_with_image, {.close = closing::towards_horizon});
    CHECK(up.shifts == std::vector<position_shift>{{0, 3, 3}});
    const edits down = edit(without(74, {{3, 6}}), ends_with_image, {.close = closing::towards_first});
    CHECK(down.shifts == std::vector<position_shift>{{6, 11, -3}});
}

TEST_CASE(
    "edit_cells: sequences with any number of tokens at a position keep whole positions, in order and apart",
    "[compact][vision][properties]") {
    support::random r(3);
    for (int round = 0; round < 2000; ++round) {
        int32s positions;
        std::int32_t position = 0;
        for (index_t i = r.between(0, 25); i > 0; --i) {
            const index_t shared = r.chance(0.2) ? r.between(2, 6) : 1;
            positions.insert(positions.end(), static_cast<std::size_t>(shared), position);
            position += static_cast<std::int32_t>(r.chance(0.3) ? r.between(2, 5) : 1);
        }
        const auto cells = std::ssize(positions);
        const keep_plan plan = any_plan(r, {cells});
        const int32s kept(plan.row(0).begin(), plan.row(0).end());
        const closing close =
            r.one_of({closing::keep_positions, closing::towards_first, closing::towards_horizon});
        CAPTURE(round, positions, kept, close);
        const edits e = edit(kept, positions, {.close = close});
        REQUIRE(e.answer.ok());
        std::multimap<index_t, std::int32_t> engine; // position -> cell
        std::set<std::int32_t> at_kept_positions;
        for (std::int32_t c = 0; c < cells; ++c) {
            engine.emplace(positions[static_cast<std::size_t>(c)], c);
        }
        for (const auto c : kept) { at_kept_positions.insert(positions[static_cast<std::size_t>(c)]); }
        for (const token_range& range : e.removed) {
            engine.erase(engine.lower_bound(range.begin), engine.lower_bound(range.end));
        }
        int32s left, whole;
        for (const auto& [at, cell] : engine) { left.push_back(cell); }
        std::sort(left.begin(), left.end());
        for (std::int32_t c = 0; c < cells; ++c) {
            if (at_kept_positions.count(positions[static_cast<std::size_t>(c)]) > 0) { whole.push_back(c); }
        }
        CHECK(left == whole);
        CHECK(e.report.kept_cells == std::ssize(whole));
        CHECK(e.report.shared_cells == std::ssize(whole) - std::ssize(kept));
        keep_plan widened;
        REQUIRE(keep_whole_positions(plan, positions, widened).ok());
        CHECK(int32s(widened.row(0).begin(), widened.row(0).end()) == whole);
        for (const position_shift& shift :
             e.shifts) { // tokens that share a position go on doing so, others never meet
            std::multimap<index_t, std::int32_t> moved;
            for (const auto& [at, cell] : engine) {
                moved.emplace(at + (at >= shift.begin && at < shift.end ? shift.delta : 0), cell);
            }
            engine = moved;
            std::map<index_t, std::int32_t> old_of;
            for (const auto& [at, cell] : engine) {
                const auto old = old_of.emplace(at, positions[static_cast<std::size_t>(cell)]).first->second;
                REQUIRE(old == positions[static_cast<std::size_t>(cell)]);
            }
        }
        std::map<std::int32_t, index_t> now; // by old position
        for (const auto& [at, cell] : engine) { now[positions[static_cast<std::size_t>(cell)]] = at; }
        index_t follows = -1; // where the next one is without a gap
        for (const auto& [old, at] : now) {
            if (close == closing::keep_positions) { CHECK(at == old); }
            if (close != closing::keep_positions && follows >= 0) { CHECK(at == follows); }
            const auto next = std::upper_bound(positions.begin(), positions.end(), old);
            const bool is_shared = std::count(positions.begin(), positions.end(), old) > 1;
            follows = at + (is_shared && next != positions.end() ? *next - old : 1);
        }
        if (!now.empty() && close == closing::towards_first) {
            CHECK(now.begin()->second == now.begin()->first);
        }
        if (!now.empty() && close == closing::towards_horizon) { CHECK(follows == positions.back() + 1); }
    }
}

TEST_CASE("keep_whole_positions: bad input is refused with the output unchanged",
          "[compact][vision][errors]") {
    const int32s positions = vision_sequence(11, 5);
    keep_plan plan = plan_of({{0, 12, 76}});
    const auto refusal = [&](const keep_plan& from, const int32s& at) {
        keep_plan out = made_before();
        const status s = keep_whole_positions(from, at, out);
        CHECK(out == made_before());
        return s.code();
    };
    CHECK(refusal(plan_of({{0}, {1}}), positions) == errc::plan_mismatch);
    CHECK(refusal(keep_plan{}, positions) == errc::plan_mismatch);
    CHECK(refusal(plan_of({{0, 79}}), positions) == errc::plan_mismatch);
    CHECK(refusal(plan, {3, 2, 1}) == errc::plan_mismatch);
    CHECK(keep_whole_positions(plan, positions, plan).code() == errc::invalid_parameter);
    CHECK(plan == plan_of({{0, 12, 76}}));
}

TEST_CASE("edit_cells: what it cannot do is refused, with no call made", "[compact][errors]") {
    const auto refusal = [](const int32s& kept, const int32s& positions,
                            const cell_edit_options& options = {}) {
        const edits e = edit(kept, positions, options);
        CHECK((e.removed.empty() && e.shifts.empty()));
        CHECK((e.answer.ok() || e.report.kept_cells == -1));
        return e.answer.code();
    };
    CHECK(refusal({0, 4}, {0, 1, 2, 3}) == errc::plan_mismatch);
    CHECK(refusal({-1}, {0, 1, 2, 3}) == errc::plan_mismatch);
    CHECK(refusal({1, 0}, {0, 1, 2, 3}) == errc::plan_mismatch);
    CHECK(refusal({1, 1}, {0, 1, 2, 3}) == errc::plan_mismatch);
    CHECK(refusal({0}, {0, 2, 1, 3}) == errc::plan_mismatch);
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
        const auto reduction = r.one_of(
            {head_reduction::sum, head_reduction::maximum, head_reduction::votes, head_reduction::squares});
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

TEST_CASE("cell_scores: selected tokens, marked by infinity, are refused where scores are folded, and "
          "counted by votes",
          "[compact]") {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    for (const auto reduction :
         {head_reduction::sum, head_reduction::maximum, head_reduction::votes, head_reduction::squares}) {
        const cell_scores::request request{
            .tokens = 5, .kept_tokens = 3, .protect = {.window_tokens = 1}, .reduction = reduction};
        growing_workspace memory;
        workspace scratch = memory.of_bytes(request.workspace_bytes());
        cell_scores cells(request, scratch);
        score_memory scored({{1, 2, 3, 4}}), selected({{infinity, 2, infinity, 1}});
        CHECK(cells.add(scored.importance_rows()).ok());
        const bool counts = reduction == head_reduction::votes;
        CHECK(cells.add(selected.importance_rows()).code() == (counts ? errc::ok : errc::invalid_parameter));
        keep_plan plan;
        REQUIRE(cells.plan(plan).ok());
        const int32s kept(plan.row(0).begin(), plan.row(0).end());
        CHECK(kept == (counts ? int32s{0, 2, 4} : int32s{2, 3, 4}));
    }
}

TEST_CASE("cell_scores: a policy's layers are added by what its scorer gives, before any selection",
          "[compact]") {
    const protection protect{.sink_tokens = 2, .window_tokens = 8};
    const cell_scores::request request{
        .tokens = 60, .kept_tokens = 20, .protect = protect, .reduction = head_reduction::sum};
    growing_workspace own, other, memory;
    workspace scratch = own.of_bytes(request.workspace_bytes()),
              again = other.of_bytes(request.workspace_bytes());
    cell_scores by_policy(request, scratch), by_hand(request, again);
    const attention_options attention{.scale = 0.3f};
    for (std::uint64_t l = 0; l < 3; ++l) {
        const support::layer_data data = support::random_layer({.tokens = 60}, l);
        REQUIRE(by_policy.add(criticalkv(), data.inputs(), attention, memory).ok());
        score_table table;
        REQUIRE(criticalkv()
                    .score(data.inputs(), {.budget = {}, .protect = protect, .attention = attention}, table,
                           memory)
                    .ok());
        REQUIRE(by_hand.add(table.scores().importance_rows()).ok());
    }
    keep_plan got, expected;
    REQUIRE(by_policy.plan(got).ok());
    REQUIRE(by_hand.plan(expected).ok());
    CHECK(got == expected);

    const support::layer_data other_length = support::random_layer({.tokens = 61}, 1);
    CHECK(by_policy.add(criticalkv(), other_length.inputs(), attention, memory).code() == errc::rows_differ);
    CHECK(by_policy.add(criticalkv(), other_length.inputs(), {.scale = -1}, memory).code() ==
          errc::invalid_parameter);
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
    for (const protection wrong : {protection{.sink_tokens = -1}, protection{.pinned_tokens = -1},
                                   protection{.window_tokens = -1}, protection{.rollback_tokens = -1}}) {
        CHECK(cell_scores::request{10, 3, wrong}.validate().code() == errc::invalid_parameter);
    }
    CHECK(cell_scores::request{index_t{1} << 31, 3, {}}.validate().code() == errc::index_overflow);
    CHECK(cell_scores::request{10, 0, {}}.workspace_bytes() == 0);

    growing_workspace memory;
    workspace scratch = memory.of_bytes(good.workspace_bytes());
    cell_scores cells(good, scratch);
    score_memory uneven(oracle::matrix{{9, 9, 9, 9, 9, 9}, {9, 9, 9, 9, 9}});
    CHECK(cells.add(uneven.importance_rows()).code() == errc::rows_differ);
    score_memory rows(oracle::matrix{{0, 5, 0, 0, 7, 0}});
    CHECK(cells.add(score_rows{{}, {}}).code() == errc::invalid_table);
    const std::vector<index_t> beyond{0, 6};
    CHECK(cells.add(score_rows{beyond, rows.importance_rows().values.first(5)}).code() ==
          errc::invalid_table);
    CHECK(cells.add(rows.importance_rows()).ok());
    keep_plan plan;
    CHECK(cells.plan(plan).ok());
    CHECK(plan == plan_of({{1, 4, 6, 7, 8, 9}}));

    for (const cell_scores::request& wrong :
         {cell_scores::request{-1, 3, {}}, cell_scores::request{10, 3, {.window_tokens = 4}},
          cell_scores::request{10, 0, {}}, cell_scores::request{index_t{1} << 62, 3, {}}}) {
        workspace any = memory.of_bytes(1 << 16);
        cell_scores refused(wrong, any);
        keep_plan out = made_before();
        CHECK(refused.validate() == wrong.validate());
        CHECK(refused.add(rows.importance_rows()) == wrong.validate());
        CHECK(refused.plan(out) == wrong.validate());
        CHECK(out == made_before());
    }

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
