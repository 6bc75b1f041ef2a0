// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/compact/plan_page_moves.hpp>

#include "compact/random_pages.hpp"

#include <algorithm>
#include <vector>

using namespace kvtrim;
using support::int32s;
using support::plan_moves;
using support::plan_of;
using moves = std::vector<slot_move>;

namespace {

template <class T>
std::vector<T> list(std::span<const T> values) {
    return {values.begin(), values.end()};
}

// One row over pages 0, 1, 2, ...
struct one_row {
    int32s indptr, indices, last;

    one_row(index_t tokens, index_t page_tokens) {
        const index_t pages = (tokens + page_tokens - 1) / page_tokens;
        indptr = {0, static_cast<std::int32_t>(pages)};
        indices.resize(static_cast<std::size_t>(pages));
        std::iota(indices.begin(), indices.end(), 0);
        last = {static_cast<std::int32_t>(pages == 0 ? 0 : tokens - (pages - 1) * page_tokens)};
    }
    [[nodiscard]] page_table table() const { return {indptr, indices, last}; }
};

constexpr move_order all_orders[]{move_order::fewest, move_order::from_tail, move_order::in_order};

// The fewest moves for one row of owned pages, over every choice of pages and of the one that ends the row.
index_t fewest_moves(const keep_plan& plan, index_t heads, index_t pages, index_t page_tokens) {
    const index_t kept = plan.kept_tokens(0);
    const index_t needed = (kept + page_tokens - 1) / page_tokens;
    const index_t used = kept - (needed - 1) * page_tokens;
    index_t most_in_place = 0;
    for (unsigned chosen = 0; chosen < 1u << pages; ++chosen) {
        for (index_t last = 0; last < pages; ++last) {
            index_t in_place = 0;
            index_t count = 0;
            for (index_t page = 0; page < pages; ++page) {
                if ((chosen >> page & 1u) == 0) { continue; }
                ++count;
                for (index_t head = 0; head < heads; ++head) {
                    for (const auto token : plan.row(head)) {
                        const index_t offset = token - page * page_tokens;
                        in_place += offset >= 0 && offset < (page == last ? used : page_tokens) ? 1 : 0;
                    }
                }
            }
            const bool is_choice = count == needed && (chosen >> last & 1u) == 1;
            if (is_choice) { most_in_place = std::max(most_in_place, in_place); }
        }
    }
    return kept * heads - most_in_place;
}

} // namespace

TEST_CASE("plan_page_moves: each order of moves on the example of its header", "[compact]") {
    const one_row row(12, 4);
    const keep_plan plan = plan_of({{0, 1, 3, 6, 8, 9, 10}}); // a b . c | . . d . | e f g .
    const page_pool pool{.pages = 3, .page_tokens = 4};
    const auto planned = [&](move_order order) {
        return plan_moves(plan, row.table(), pool, {.order = order}).plan;
    };

    const move_plan fewest = planned(move_order::fewest);
    CHECK(list(fewest.moves(0)) == moves{{6, 2}});
    CHECK(list(fewest.table().indices) == int32s{0, 2});
    CHECK(list(fewest.table().indptr) == int32s{0, 2});
    CHECK(list(fewest.table().last_page_len) == int32s{3});
    CHECK(list(fewest.freed_pages()) == int32s{1});
    CHECK(list(fewest.origins(0)) == int32s{0, 1, 6, 3, 8, 9, 10});

    const move_plan from_tail = planned(move_order::from_tail);
    CHECK(list(from_tail.moves(0)) == moves{{8, 2}, {9, 4}, {10, 5}});
    CHECK(list(from_tail.table().indices) == int32s{0, 1});
    CHECK(list(from_tail.freed_pages()) == int32s{2});
    CHECK(list(from_tail.origins(0)) == int32s{0, 1, 8, 3, 9, 10, 6});

    const move_plan in_order = planned(move_order::in_order);
    CHECK(list(in_order.moves(0)) == moves{{3, 2}, {6, 3}, {8, 4}, {9, 5}, {10, 6}});
    CHECK(list(in_order.table().indices) == int32s{0, 1});
    CHECK(list(in_order.origins(0)) == list(plan.row(0)));

    const int32s old_positions{50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61};
    int32s positions(7);
    REQUIRE(fewest.gather_positions(0, std::span(old_positions), std::span(positions)).ok());
    CHECK(positions == int32s{50, 51, 56, 53, 58, 59, 60});
    for (const move_order order : all_orders) {
        const move_plan unshared = planned(order);
        CHECK(unshared.released_pages().empty());
        CHECK(planned(order).taken_pages() == 0);
        CHECK(planned(order).extra_tokens() == 0);
        CHECK(planned(order).heads() == 1);
    }
}

TEST_CASE("plan_page_moves: fewest moves no more than any choice of pages, from_tail what lies "
          "beyond the new length",
          "[compact][oracle]") {
    support::random r(1);
    for (int round = 0; round < 400; ++round) {
        const index_t page_tokens = r.chance(0.1) ? r.between(60, 140) : r.between(1, 5);
        const index_t pages = r.between(1, 5);
        const index_t heads = r.between(1, 3);
        const one_row row(pages * page_tokens - r.between(0, page_tokens - 1), page_tokens);
        support::paged_cache cache;
        cache.page_tokens = page_tokens;
        cache.indptr = row.indptr;
        cache.indices = row.indices;
        cache.last_page_len = row.last;
        const keep_plan plan = support::random_page_plan(r, cache, heads);
        const page_pool pool{.pages = pages, .page_tokens = page_tokens, .heads = heads};
        CAPTURE(round, page_tokens, pages, heads, list(plan.kept()));
        const auto count = [&](move_order order) {
            const auto planned = plan_moves(plan, row.table(), pool, {.order = order});
            CHECK(planned.answer.ok());
            return planned.plan.total_moves();
        };
        CHECK(count(move_order::fewest) == fewest_moves(plan, heads, pages, page_tokens));
        const index_t new_length = plan.kept_tokens(0);
        CHECK(count(move_order::from_tail) == std::count_if(plan.kept().begin(), plan.kept().end(),
                                                            [&](index_t t) { return t >= new_length; }));
        if (heads == 1) { // pages without survivors drop out, then the rest closes up
            index_t slot = 0, changed = 0;
            std::vector<index_t> order;
            for (const auto token : plan.kept()) {
                const index_t page = token / page_tokens;
                if (order.empty() || order.back() != page) { order.push_back(page); }
            }
            for (const auto token : plan.kept()) {
                const index_t page = order[static_cast<std::size_t>(slot / page_tokens)];
                changed += page * page_tokens + slot % page_tokens != token ? 1 : 0;
                ++slot;
            }
            CHECK(count(move_order::in_order) == changed);
        }
    }
}

TEST_CASE("plan_page_moves: what is kept whole stays as it is, what keeps nothing gives all its pages back",
          "[compact]") {
    const int32s indptr{0, 2, 2, 4}, indices{5, 1, 0, 3}, last{2, 0, 4};
    const page_pool pool{.pages = 6, .page_tokens = 4};
    for (const move_order order : all_orders) {
        const auto same = plan_moves(plan_of({{0, 1, 2, 3, 4, 5}, {}, {0, 1, 2, 3, 4, 5, 6, 7}}),
                                     {indptr, indices, last}, pool, {.order = order});
        REQUIRE(same.answer.ok());
        CHECK(same.plan.total_moves() == 0);
        CHECK(list(same.plan.table().indptr) == indptr);
        CHECK(list(same.plan.table().indices) == indices);
        CHECK(list(same.plan.table().last_page_len) == last);
        CHECK(same.plan.freed_pages().empty());
        const auto none = plan_moves(plan_of({{}, {}, {}}), {indptr, indices, last}, pool, {.order = order});
        REQUIRE(none.answer.ok());
        CHECK(list(none.plan.table().indptr) == int32s{0, 0, 0, 0});
        CHECK(list(none.plan.table().last_page_len) == int32s{0, 0, 0});
        CHECK(list(none.plan.freed_pages()) == indices);
    }
}

TEST_CASE("plan_page_moves: a window of new tokens stays where it is", "[compact]") {
    const one_row row(64, 4);
    oracle::token_set kept{0, 9, 18, 27, 36}; // one of some pages, then four whole pages
    for (std::size_t t = 48; t < 64; ++t) { kept.push_back(t); }
    const page_pool pool{.pages = 16, .page_tokens = 4};
    const auto fewest = plan_moves(plan_of({kept}), row.table(), pool).plan;
    CHECK(fewest.total_moves() ==
          3); // 0 stays in its page, and 36 in the one slot of the page that ends the row
    const auto from_tail =
        plan_moves(plan_of({kept}), row.table(), pool, {.order = move_order::from_tail}).plan;
    CHECK(from_tail.total_moves() == 18);
}

TEST_CASE("slot_move: one that was given no slots names the first one twice", "[compact]") {
    CHECK(slot_move{} == slot_move{0, 0});
}

TEST_CASE("plan_page_moves: heads that share pages move their own tokens", "[compact]") {
    const one_row row(8, 4);
    const page_pool pool{.pages = 2, .page_tokens = 4, .heads = 2};
    const auto p =
        plan_moves(plan_of({{0, 1, 5}, {4, 6, 7}}), row.table(), pool, {.order = move_order::from_tail});
    REQUIRE(p.answer.ok());
    CHECK(p.plan.heads() == 2);
    CHECK(list(p.plan.moves(0)) == moves{{5, 2}});
    CHECK(list(p.plan.moves(1)) == moves{{4, 0}, {6, 1}, {7, 2}});
    CHECK(list(p.plan.origins(0)) == int32s{0, 1, 5});
    std::vector<float> slots(16); // [2 pages, 4 slots, 2 heads]
    std::iota(slots.begin(), slots.end(), 0.0f);
    REQUIRE(move_rows(paged_memory<float>{slots.data(), nhd_pages(4, 2, 1), 2, 1}, p.plan).ok());
    CHECK(std::vector<float>(slots.begin(), slots.begin() + 6) == std::vector<float>{0, 9, 2, 13, 10, 15});
    CHECK(list(p.plan.table().indices) == int32s{0});
    // Four survivors in the second page, two in the first.
    const auto fewest = plan_moves(plan_of({{0, 1, 5}, {4, 6, 7}}), row.table(), pool);
    CHECK(list(fewest.plan.table().indices) == int32s{1});
    CHECK(fewest.plan.total_moves() == 3); // 0, 1 of head 0 and 7 of head 1, whose slot is not used
    const auto uneven = plan_moves(plan_of({{0, 1}, {4}}), row.table(), pool);
    CHECK(uneven.answer.code() == errc::rows_differ);
}

TEST_CASE("plan_page_moves: a shared page stays whole, or its survivors are copied", "[compact]") {
    const one_row row(16, 4);
    const int32s ref_counts{2, 1, 3, 1, 1, 1};
    const int32s free_pages{5, 4};
    const keep_plan plan = plan_of({{1, 4, 5, 6, 7, 12, 13}}); // . b . . | all | none, shared | two
    const page_pool pool{.pages = 6, .page_tokens = 4, .ref_counts = ref_counts, .free_pages = free_pages};

    const auto whole = plan_moves(plan, row.table(), pool).plan;
    CHECK(whole.extra_tokens() == 3);
    CHECK(whole.total_moves() == 0);
    CHECK(list(whole.table().indices) == int32s{0, 1, 3});
    CHECK(list(whole.table().last_page_len) == int32s{2});
    CHECK(list(whole.origins(0)) == int32s{0, 1, 2, 3, 4, 5, 6, 7, 12, 13});
    CHECK(list(whole.released_pages()) == int32s{2});
    CHECK(whole.freed_pages().empty());

    const auto copied = plan_moves(plan, row.table(), pool, {.shared = shared_pages::copied}).plan;
    CHECK(copied.extra_tokens() == 0);
    CHECK(list(copied.moves(0)) == moves{{1, 14}}); // into a hole of an owned page
    CHECK(list(copied.table().indices) == int32s{1, 3});
    CHECK(list(copied.released_pages()) == int32s{0, 2});
    CHECK(copied.taken_pages() == 0);

    const page_move_options in_order{.order = move_order::in_order, .shared = shared_pages::copied};
    const auto ordered = plan_moves(plan, row.table(), pool, in_order).plan;
    CHECK(ordered.taken_pages() == 1);
    CHECK(list(ordered.table().indices) == int32s{5, 1});
    CHECK(list(ordered.moves(0)) == moves{{1, 20}, {4, 21}, {5, 22}, {6, 23}, {7, 4}, {12, 5}, {13, 6}});
    CHECK(list(ordered.freed_pages()) == int32s{3});
    CHECK(list(ordered.released_pages()) == int32s{0, 2});
}

TEST_CASE("plan_page_moves: a plan made again says nothing of what it said before", "[compact]") {
    const one_row row(16, 4);
    const int32s ref_counts{2, 1, 3, 1, 1, 1}, free_pages{5, 4};
    const keep_plan cut = plan_of({{1, 4, 5, 6, 7, 12, 13}}), other = plan_of({{0, 9}});
    const page_pool shared{.pages = 6, .page_tokens = 4, .ref_counts = ref_counts, .free_pages = free_pages};
    const page_pool own{.pages = 4, .page_tokens = 4};
    growing_workspace memory;
    const auto plan_into = [&](move_plan& out, const keep_plan& kept, const page_pool& pool,
                               shared_pages rule) {
        workspace scratch = memory.of_bytes(plan_page_moves_bytes(row.table(), pool));
        REQUIRE(plan_page_moves(kept, row.table(), pool, {.shared = rule}, out, scratch).ok());
    };
    move_plan fresh, again;
    plan_into(fresh, other, own, shared_pages::stay_whole);
    plan_into(again, cut, shared, shared_pages::stay_whole);
    CHECK(again.extra_tokens() == 3);
    plan_into(again, other, own, shared_pages::stay_whole);
    CHECK(again == fresh);
    plan_into(again, cut, shared, shared_pages::copied);
    plan_into(again, other, own, shared_pages::stay_whole);
    CHECK(again == fresh);
}

TEST_CASE("plan_page_moves: copies that owned pages cannot hold take free pages, and say how many they need",
          "[compact]") {
    const one_row row(12, 4);
    const int32s ref_counts{2, 2, 2, 1, 1};
    const keep_plan plan = plan_of({{0, 1, 2, 4, 5, 6, 8, 9, 10, 11}}); // the last page is kept whole
    page_pool pool{.pages = 5, .page_tokens = 4, .ref_counts = ref_counts};
    const page_move_options copied{.shared = shared_pages::copied};
    const auto none = plan_moves(plan, row.table(), pool, copied);
    CHECK(none.answer.code() == errc::pages_too_few);
    CHECK(none.answer.needed() == 2);
    CHECK(none.plan == move_plan{});
    CHECK(none.plan.taken_pages() == 0);
    const int32s free_pages{4, 3};
    pool.free_pages = free_pages;
    const auto p = plan_moves(plan, row.table(), pool, copied);
    REQUIRE(p.answer.ok());
    CHECK(p.plan.taken_pages() == 2);
    CHECK(list(p.plan.table().indices) == int32s{2, 4, 3});
    CHECK(list(p.plan.moves(0)) == moves{{0, 16}, {1, 17}, {2, 18}, {4, 19}, {5, 12}, {6, 13}});
    CHECK(list(p.plan.origins(0)) == int32s{8, 9, 10, 11, 0, 1, 2, 4, 5, 6});

    for (const int32s& bad : {int32s{4, 4}, int32s{4, 0}, int32s{5, 3}, int32s{-1, 3}}) {
        pool.free_pages = bad;
        CHECK(plan_moves(plan, row.table(), pool, copied).answer.code() == errc::invalid_table);
    }
}

TEST_CASE("plan_page_moves: a shared page in the way of a change is refused, and may be copied",
          "[compact]") {
    const one_row row(7, 4);
    const int32s free_pages{2, 3};
    const auto plan_with = [&](const int32s& ref_counts, const keep_plan& plan, move_order order,
                               shared_pages shared) {
        const page_pool pool{
            .pages = 4, .page_tokens = 4, .ref_counts = ref_counts, .free_pages = free_pages};
        return plan_moves(plan, row.table(), pool, {order, shared});
    };
    const int32s last_is_shared{1, 2, 1, 1};
    const keep_plan cut = plan_of({{0, 4, 5, 6}});
    for (const move_order order : all_orders) {
        CHECK(plan_with(last_is_shared, cut, order, shared_pages::stay_whole).answer.code() ==
              errc::page_shared);
        const auto p = plan_with(last_is_shared, cut, order, shared_pages::copied);
        CHECK(p.answer.ok());
        CHECK(list(p.plan.table().indices) == int32s{0});
        // Nothing has to change here: what the plan evicts lies in the shared page.
        const auto whole =
            plan_with(last_is_shared, plan_of({{0, 1, 2, 3, 5}}), order, shared_pages::stay_whole);
        CHECK(whole.answer.ok());
        CHECK(whole.plan.extra_tokens() == 2);
        CHECK(list(whole.plan.table().last_page_len) == int32s{3});
    }
    // A shared prefix is no hindrance to order.
    const int32s first_is_shared{2, 1, 1, 1};
    const auto ordered = plan_with(first_is_shared, plan_of({{0, 1, 2, 3, 6}}), move_order::in_order,
                                   shared_pages::stay_whole);
    CHECK(ordered.answer.ok());
    CHECK(list(ordered.plan.moves(0)) == moves{{6, 4}});
}

TEST_CASE("plan_page_moves: heads that share a page which stays whole must still keep equally many",
          "[compact]") {
    const one_row row(8, 4);
    const int32s ref_counts{2, 1};
    const page_pool pool{.pages = 2, .page_tokens = 4, .heads = 2, .ref_counts = ref_counts};
    CHECK(plan_moves(plan_of({{0, 5}, {4, 5}}), row.table(), pool).answer.code() == errc::rows_differ);
    const auto p = plan_moves(plan_of({{0, 5}, {1, 7}}), row.table(), pool);
    CHECK(p.answer.ok());
    CHECK(p.plan.extra_tokens() == 6);
}

TEST_CASE("plan_page_moves: bad tables and plans of other caches are refused, with the output unchanged",
          "[compact][errors]") {
    struct tables {
        int32s indptr, indices, last;
    };
    const tables good{{0, 2, 3}, {0, 2, 1}, {3, 4}};
    const keep_plan plan = plan_of({{0, 6}, {3}});
    const page_pool pool{.pages = 3, .page_tokens = 4};
    const move_plan before = plan_moves(plan, {good.indptr, good.indices, good.last}, pool).plan;
    const auto refusal = [&](const tables& t, const page_pool& of, const keep_plan& kept) {
        move_plan out = before;
        growing_workspace memory;
        workspace scratch = memory.of_bytes(1 << 16);
        const status s = plan_page_moves(kept, {t.indptr, t.indices, t.last}, of, {}, out, scratch);
        CHECK(out == before);
        return s.code();
    };
    const auto table_refusal = [&](const tables& t) { return refusal(t, pool, plan); };
    CHECK(table_refusal({{0, 2, 3}, {0, 3, 1}, {3, 4}}) == errc::invalid_table);  // outside the pool
    CHECK(table_refusal({{0, 2, 3}, {0, -1, 1}, {3, 4}}) == errc::invalid_table); // before it
    CHECK(table_refusal({{0, 2, 3}, {0, 0, 1}, {3, 4}}) == errc::invalid_table);  // twice in a row
    CHECK(table_refusal({{0, 2, 3}, {0, 2, 2}, {3, 4}}) == errc::invalid_table);  // in two rows
    CHECK(table_refusal({{0, 2, 3}, {0, 2, 1}, {0, 4}}) == errc::invalid_table);  // an empty last page
    CHECK(table_refusal({{0, 2, 3}, {0, 2, 1}, {3, 5}}) == errc::invalid_table);
    CHECK(table_refusal({{0, 2, 3}, {0, 2, 1}, {3, -4}}) == errc::invalid_table);
    CHECK(table_refusal({{0, 4, 3}, {0, 2, 1}, {3, 4}}) == errc::invalid_table);  // descending
    CHECK(table_refusal({{0, -1, 3}, {0, 2, 1}, {3, 4}}) == errc::invalid_table); // negative
    CHECK(table_refusal({{1, 2, 3}, {0, 2, 1}, {3, 4}}) == errc::invalid_table);
    CHECK(table_refusal({{0, 2, 4}, {0, 2, 1}, {3, 4}}) == errc::invalid_table);
    const int32s ref_counts{1, 1, 2};
    CHECK(refusal({{0, 1, 4}, {2, 2, 2, 1}, {4, 4}}, {.pages = 3, .page_tokens = 4, .ref_counts = ref_counts},
                  plan_of({{0}, {0}})) == errc::invalid_table); // three times, of two owners
    CHECK(refusal(good, {.pages = 3, .page_tokens = 0}, plan) == errc::invalid_parameter);
    CHECK(refusal(good, {.pages = -1, .page_tokens = 4}, plan) == errc::invalid_parameter);
    CHECK(refusal(good, {.pages = index_t{1} << 31, .page_tokens = 4}, plan) == errc::index_overflow);
    CHECK(refusal(good, {.pages = 3, .page_tokens = index_t{1} << 62}, plan) == errc::index_overflow);
    CHECK(refusal(good, pool, plan_of({{0}})) == errc::plan_mismatch);
    CHECK(refusal(good, pool, plan_of({{0}, {4}})) == errc::plan_mismatch);
    CHECK(refusal(good, pool, plan_of({{7}, {0}})) == errc::plan_mismatch);
    CHECK(refusal(good, pool, plan_of({{1, 0}, {0}})) == errc::plan_mismatch);
    CHECK(refusal(good, {.pages = 3, .page_tokens = 4, .heads = 2}, plan) == errc::plan_mismatch);
    CHECK(plan_page_moves_bytes({good.indptr, good.indices, good.last}, {.pages = 2, .page_tokens = 4}) == 0);

    move_plan out = before;
    const index_t bytes = plan_page_moves_bytes({good.indptr, good.indices, good.last}, pool);
    std::vector<std::byte> few(static_cast<std::size_t>(bytes) - 65);
    workspace scratch(few);
    const status s = plan_page_moves(plan, {good.indptr, good.indices, good.last}, pool, {}, out, scratch);
    CHECK(s.code() == errc::workspace_too_small);
    CHECK(s.needed() == bytes);
    CHECK(out == before);
}

TEST_CASE(
    "plan_page_moves: ref_counts, heads and sizes that cannot be are refused, with the output unchanged",
    "[compact][errors]") {
    constexpr index_t huge = index_t{1} << 62;
    const one_row row(8, 4);
    const keep_plan plan = plan_of({{1, 5}});
    const move_plan before = plan_moves(plan, row.table(), {.pages = 2, .page_tokens = 4}).plan;
    const auto refusal = [&](const page_pool& pool) {
        move_plan out = before;
        growing_workspace memory;
        workspace scratch = memory.of_bytes(1 << 16);
        const status s =
            plan_page_moves(plan, row.table(), pool, {.shared = shared_pages::copied}, out, scratch);
        CHECK(out == before);
        CHECK(plan_page_moves_bytes(row.table(), pool) == 0);
        return s;
    };
    const auto with_counts = [&](const int32s& counts) {
        return refusal({.pages = 2, .page_tokens = 4, .ref_counts = counts});
    };
    CHECK(with_counts({1}) == status{errc::invalid_table, "", 2});
    CHECK(with_counts({1, 1, 1}) == status{errc::invalid_table, "", 2});
    CHECK(with_counts({1, -1}).code() == errc::invalid_table);
    CHECK(with_counts({std::numeric_limits<std::int32_t>::min(), 1}).code() == errc::invalid_table);
    for (const index_t heads : {index_t{0}, index_t{-1}, -huge}) {
        CHECK(refusal({.pages = 2, .page_tokens = 4, .heads = heads}).code() == errc::invalid_parameter);
    }
    for (const index_t heads : {index_t{1} << 30, huge, std::numeric_limits<index_t>::max()}) {
        CHECK(refusal({.pages = 2, .page_tokens = 4, .heads = heads}).code() == errc::index_overflow);
    }
    CHECK(refusal({.pages = 2, .page_tokens = -4}).code() == errc::invalid_parameter);
    // A table names a page that nobody owns: freed while it was still read.
    const int32s unowned{1, 0};
    CHECK(
        plan_moves(plan, row.table(), {.pages = 2, .page_tokens = 4, .ref_counts = unowned}).answer.code() ==
        errc::invalid_table);
    CHECK(plan_page_moves_bytes({int32s{0}, {}, {}}, {.pages = 0, .page_tokens = huge}) == 0);
}

TEST_CASE("plan_page_moves: tables of odd sizes, tails behind the last row included, are refused",
          "[compact][errors]") {
    const keep_plan plan = plan_of({{1, 5}});
    const page_pool pool{.pages = 4, .page_tokens = 4};
    const int32s none{}, zero{0}, two{0, 2}, three{0, 2, 3}, pages{0, 1}, tail{0, 1, 3}, full{4}, fulls{4, 4};
    for (const page_table& table :
         {page_table{two, pages, none}, page_table{two, pages, fulls}, page_table{none, pages, none},
          page_table{zero, pages, full}, page_table{three, pages, full}, page_table{two, tail, full},
          page_table{two, none, full}}) {
        const auto p = plan_moves(plan, table, pool);
        CHECK(p.answer.code() == errc::invalid_table);
        CHECK(p.plan == move_plan{});
    }
    move_plan planned = plan_moves(plan, {two, pages, full}, pool).plan;
    const move_plan before = planned;
    growing_workspace memory;
    workspace scratch = memory.of_bytes(1 << 12);
    CHECK(plan_page_moves(plan_of({{0}}), planned.table(), pool, {}, planned, scratch).code() ==
          errc::invalid_parameter);
    CHECK(planned == before);
}

TEST_CASE("move_plan: it knows every table of its own, and no other list", "[compact]") {
    const one_row row(12, 4);
    const move_plan plan =
        plan_moves(plan_of({{0, 1, 3, 6, 8, 9, 10}}), row.table(), {.pages = 3, .page_tokens = 4}).plan;
    const page_table own = plan.table();
    REQUIRE(plan.freed_pages().size() == 1);
    for (const std::span<const std::int32_t> table :
         {own.indptr, own.indices, own.last_page_len, plan.freed_pages(), plan.origins(0)}) {
        CHECK(plan.holds(table));
    }
    CHECK_FALSE(plan.holds(row.indices));
    CHECK_FALSE(plan.holds({}));
    CHECK(move_plan{}.taken_pages() == 0);
}

TEST_CASE("move_rows: a memory that the plan was not made for is refused before a row moves",
          "[compact][errors]") {
    const one_row row(24, 4);
    const move_plan plan =
        plan_moves(plan_of({{1, 5, 23}}), row.table(), {.pages = 6, .page_tokens = 4}).plan;
    REQUIRE(plan.total_moves() > 0);
    CHECK(plan.page_tokens() == 4);
    CHECK(plan.pages_touched() == 6);
    const move_plan of_heads = plan_moves(plan_of({{1, 5}, {0, 1}}), one_row(8, 4).table(),
                                          {.pages = 2, .page_tokens = 4, .heads = 2})
                                   .plan;
    support::random r(7);
    std::vector<float> data = support::random_elements<float>(r, 6 * 4 * 3);
    const auto before = support::bytes_of(data);
    const auto refusal = [&](const paged_memory<float>& memory, const move_plan& made) {
        const status s = move_rows(memory, made);
        std::vector<float> others(96);
        const paged_memory<float> good{others.data(), nhd_pages(4, made.heads(), 1), made.heads(), 1};
        CHECK(move_rows(good, memory, made) == s); // both or neither
        CHECK(move_rows(memory, good, made) == s);
        CHECK(others == std::vector<float>(96));
        CHECK(support::bytes_of(data) == before);
        return s;
    };
    const auto layout = [](index_t page_tokens, index_t pages) {
        return nhd_pages(page_tokens, 3, 1, pages);
    };
    CHECK(refusal({data.data(), layout(8, 3), 3, 1}, plan) == status{errc::plan_mismatch, "", 4});
    CHECK(refusal({data.data(), layout(4, 5), 3, 1}, plan) == status{errc::plan_mismatch, "", 6});
    CHECK(refusal({data.data(), layout(4, 0), 3, 1}, plan) == status{errc::plan_mismatch, "", 6});
    CHECK(refusal({data.data(), layout(4, 6), 3, 1}, of_heads) == status{errc::plan_mismatch, "", 2});
    CHECK(refusal({nullptr, layout(4, 6), 3, 1}, plan).code() == errc::invalid_parameter);
    CHECK(refusal({data.data(), layout(4, 6), -3, 1}, plan).code() == errc::invalid_parameter);
    CHECK(refusal({data.data(), layout(4, 6), 3, -1}, plan).code() == errc::invalid_parameter);
    CHECK(refusal({data.data(), layout(4, -6), 3, 1}, plan).code() == errc::invalid_parameter);
    CHECK(refusal({data.data(), {0, 12, 3, 1}, 3, 1}, plan).code() == errc::invalid_parameter);
    CHECK(refusal({data.data(), {4, index_t{1} << 62, 3, 1}, 3, 1}, plan).code() == errc::invalid_parameter);
    CHECK(refusal({data.data(), {4, 12, std::numeric_limits<index_t>::min(), 1}, 3, 1}, plan).code() ==
          errc::invalid_parameter);
    CHECK(refusal({data.data(), layout(4, 6), 3, index_t{1} << 62}, plan).code() == errc::invalid_parameter);
    CHECK(move_rows(paged_memory<float>{data.data(), layout(4, 6), 3, 1}, plan).ok());
    CHECK(move_rows(paged_memory<float>{nullptr, {}, 0, 0}, move_plan{}).ok());
}

TEST_CASE("move_plan::gather_positions: tokens that change their order are not gathered in place",
          "[compact][errors]") {
    // The first page ends the row, so that its tokens come last.
    const move_plan plan =
        plan_moves(plan_of({{0, 4, 5, 6, 7}}), one_row(8, 4).table(), {.pages = 2, .page_tokens = 4}).plan;
    REQUIRE(plan.origins(0)[4] == 0);
    std::vector<index_t> positions{10, 11, 12, 13, 14, 15, 16, 17};
    const auto before = positions;
    CHECK(plan.gather_positions(0, std::span<const index_t>(positions), std::span(positions)).code() ==
          errc::views_overlap);
    CHECK(positions == before);
    std::vector<index_t> out(5);
    REQUIRE(plan.gather_positions(0, std::span<const index_t>(positions), std::span(out)).ok());
    CHECK(out == std::vector<index_t>{14, 15, 16, 17, 10});
}

TEST_CASE("move_plan::gather_positions: short outputs and positions, and rows of no plan, are refused",
          "[compact][errors]") {
    const move_plan plan =
        plan_moves(plan_of({{0, 1, 7}}), one_row(8, 4).table(), {.pages = 2, .page_tokens = 4}).plan;
    const std::vector<index_t> positions(8, 7);
    std::vector<index_t> out(3, -1);
    const auto answer = [&](index_t row, std::size_t cached, std::size_t room) {
        return plan.gather_positions(row, std::span(positions).first(cached), std::span(out).first(room));
    };
    CHECK(answer(0, 8, 2) == status{errc::invalid_parameter, "", 3});
    CHECK(answer(0, 7, 3) == status{errc::invalid_parameter, "", 8});
    CHECK(answer(1, 8, 3) == status{errc::plan_mismatch, "", 1});
    CHECK(answer(-1, 8, 3).code() == errc::plan_mismatch);
    CHECK(out == std::vector<index_t>(3, -1));
    CHECK(answer(0, 8, 3).ok());
}
