// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Random ragged layouts: a plan is made and carried out, then every row is compared with what it held before.

#include "compact/random_pages.hpp"

#include <cmath>

using namespace kvtrim;
using support::int32s;
using support::paged_cache;

namespace {

struct random_case {
    paged_cache cache;
    index_t heads; // of the plan
    keep_plan plan;
    page_move_options options;
};

random_case any_case(support::random& r, double shared) {
    random_case c;
    c.cache = support::random_pages(r, support::random_lengths(r, 4, r.chance(0.05) ? 300 : 40), shared);
    c.heads = r.chance(0.5) ? c.cache.heads : 1;
    c.plan = support::random_page_plan(r, c.cache, c.heads);
    c.options = {r.one_of({move_order::fewest, move_order::from_tail, move_order::in_order}),
                 r.one_of({shared_pages::stay_whole, shared_pages::copied})};
    return c;
}

page_pool pool_of(const random_case& c) {
    return {.pages = c.cache.pages,
            .page_tokens = c.cache.page_tokens,
            .heads = c.heads,
            .ref_counts = c.cache.ref_counts,
            .free_pages = c.cache.free_pages};
}

template <class T>
bool same_row(const paged_memory<T>& now, std::int32_t slot, const paged_memory<T>& before,
              std::int32_t old_slot, index_t head) {
    return std::memcmp(now.row(slot, head), before.row(old_slot, head),
                       static_cast<std::size_t>(now.row_length) * sizeof(T)) == 0;
}

// The tokens that a row of the plan must hold afterwards: what is kept, and the rest of shared pages that stay whole.
std::set<std::int32_t> expected_tokens(const random_case& c, index_t plan_row) {
    const auto kept = c.plan.row(plan_row);
    std::set<std::int32_t> expected(kept.begin(), kept.end());
    if (c.options.shared == shared_pages::copied) { return expected; }
    const index_t row = plan_row / c.heads;
    for (index_t head = 0; head < c.heads; ++head) { // one head with a survivor keeps the page for all
        for (const auto token : c.plan.row(row * c.heads + head)) {
            const index_t page = token / c.cache.page_tokens;
            const auto id =
                static_cast<std::size_t>(c.cache.table().row(row)[static_cast<std::size_t>(page)]);
            if (c.cache.ref_counts[id] < 2) { continue; }
            const index_t end = std::min((page + 1) * c.cache.page_tokens, c.cache.tokens(row));
            for (index_t t = page * c.cache.page_tokens; t < end; ++t) {
                expected.insert(static_cast<std::int32_t>(t));
            }
        }
    }
    return expected;
}

// An empty text, or what is wrong with the rows after the moves.
std::string wrong_rows(const random_case& c, paged_cache& before, paged_cache& after,
                       const move_plan& moved) {
    const index_t page_tokens = after.page_tokens;
    for (index_t plan_row = 0; plan_row < moved.rows(); ++plan_row) {
        const index_t row = plan_row / c.heads;
        const auto origins = moved.origins(plan_row);
        if (moved.table().tokens(row, page_tokens) != std::ssize(origins)) { return "another length"; }
        const auto expected = expected_tokens(c, plan_row);
        if (std::set<std::int32_t>(origins.begin(), origins.end()) != expected) { return "other tokens"; }
        if (expected.size() != origins.size()) { return "a token twice"; }
        const bool ordered = std::is_sorted(origins.begin(), origins.end());
        if (c.options.order == move_order::in_order && !ordered) { return "out of order"; }
        const index_t first_head = c.heads == 1 ? 0 : plan_row % c.heads;
        const index_t end_head = c.heads == 1 ? after.heads : first_head + 1;
        for (index_t i = 0; i < std::ssize(origins); ++i) {
            const auto slot = support::slot_of(moved.table(), row, i, page_tokens);
            const auto old =
                support::slot_of(before.table(), row, origins[static_cast<std::size_t>(i)], page_tokens);
            for (index_t head = first_head; head < end_head; ++head) {
                const bool same =
                    same_row(after.keys(), slot, before.keys(), old, head) &&
                    same_row(after.values(), slot, before.values(), old, head) &&
                    same_row(after.stored_positions(), slot, before.stored_positions(), old, head);
                if (!same) { return "other bits"; }
            }
        }
    }
    return {};
}

// An empty text, or what is wrong with the pages: each owned one is freed or still named, each shared one is untouched.
std::string wrong_pages(const random_case& c, paged_cache& before, paged_cache& after,
                        const move_plan& moved) {
    int32s named = before.indices; // what the table names and got, against what it names, freed and released
    named.insert(named.end(), before.free_pages.begin(), before.free_pages.begin() + moved.taken_pages());
    const page_table table = moved.table();
    int32s accounted(table.indices.begin(), table.indices.end());
    accounted.insert(accounted.end(), moved.freed_pages().begin(), moved.freed_pages().end());
    accounted.insert(accounted.end(), moved.released_pages().begin(), moved.released_pages().end());
    std::sort(named.begin(), named.end());
    std::sort(accounted.begin(), accounted.end());
    if (named != accounted) { return "pages are lost or doubled"; }
    std::set<std::int32_t> written;
    for (index_t row = 0; row < moved.rows(); ++row) {
        for (const slot_move m : moved.moves(row)) {
            written.insert(m.to / static_cast<std::int32_t>(after.page_tokens));
        }
    }
    for (const auto page : moved.freed_pages()) {
        if (std::count(table.indices.begin(), table.indices.end(), page) > 0) {
            return "a freed page is named";
        }
        if (before.ref_counts[static_cast<std::size_t>(page)] > 1) { return "a shared page is freed"; }
        if (c.options.order != move_order::in_order && written.count(page) > 0) {
            return "a freed page is written";
        }
    }
    for (const auto page : moved.released_pages()) {
        if (before.ref_counts[static_cast<std::size_t>(page)] < 2) { return "an owned page is released"; }
    }
    for (std::int32_t page = 0; page < before.pages; ++page) {
        if (written.count(page) > 0 && before.ref_counts[static_cast<std::size_t>(page)] > 1) {
            return "a shared page is written";
        }
        if (written.count(page) > 0) { continue; }
        const auto begin = static_cast<std::ptrdiff_t>(page * before.layout(before.key_dim).page_stride);
        const auto size = static_cast<std::size_t>(before.layout(before.key_dim).page_stride) * sizeof(float);
        if (std::memcmp(before.k.data() + begin, after.k.data() + begin, size) != 0) {
            return "a page is written that no move names";
        }
    }
    for (index_t row = 0; row < table.rows(); ++row) {
        const index_t pages = table.pages(row);
        if ((table.tokens(row, after.page_tokens) + after.page_tokens - 1) / after.page_tokens != pages) {
            return "a page too many";
        }
    }
    return validate(table, before.pages, before.page_tokens).ok() ? "" : "an invalid table";
}

// Attention of one query over the rows of one head that `slots` name.
std::vector<double> attention(const paged_memory<float>& keys, const paged_memory<float>& values,
                              index_t head, const std::vector<double>& query, const int32s& slots) {
    std::vector<double> out(static_cast<std::size_t>(values.row_length), 0.0);
    double sum = 0;
    for (const auto slot : slots) {
        double logit = 0;
        for (std::size_t d = 0; d < query.size(); ++d) {
            logit += query[d] * static_cast<double>(keys.row(slot, head)[d]);
        }
        sum += std::exp(logit);
        for (std::size_t d = 0; d < out.size(); ++d) {
            out[d] += std::exp(logit) * static_cast<double>(values.row(slot, head)[d]);
        }
    }
    for (double& x : out) { x /= sum; }
    return out;
}

} // namespace

TEST_CASE(
    "page moves: each row holds exactly its tokens, bit for bit, shared pages are untouched, no page is lost",
    "[properties][compact]") {
    support::random r(901);
    std::array<int, 3> planned{};
    int refused = 0;
    for (int round = 0; round < 4000; ++round) {
        random_case c = any_case(r, round % 2 == 0 ? 0.0 : 0.6);
        const auto p = support::plan_moves(c.plan, c.cache.table(), pool_of(c), c.options);
        CAPTURE(round, c.heads, c.cache.page_tokens, c.options.order, c.options.shared);
        if (!p.answer.ok()) { // only what sharing forbids
            ++refused;
            const bool may_refuse =
                (p.answer.code() == errc::page_shared || p.answer.code() == errc::rows_differ) &&
                c.options.shared == shared_pages::stay_whole && round % 2 == 1;
            CHECK(may_refuse);
            CHECK(p.plan == move_plan{});
            continue;
        }
        ++planned[static_cast<std::size_t>(c.options.order)];
        paged_cache before = c.cache;
        c.cache.move(p.plan);
        const std::string rows = wrong_rows(c, before, c.cache, p.plan);
        const std::string pages = wrong_pages(c, before, c.cache, p.plan);
        CHECK(rows.empty());
        CHECK(pages.empty());
        CAPTURE(rows, pages);
        REQUIRE((rows + pages).empty());
    }
    CHECK(refused < 800);
    CHECK(*std::min_element(planned.begin(), planned.end()) > 900);
}

TEST_CASE("page moves: unless order is kept, moves may run in any order and rows at any time",
          "[properties][compact]") {
    support::random r(902);
    for (int round = 0; round < 300; ++round) {
        random_case c = any_case(r, 0.3);
        if (c.options.order == move_order::in_order) { c.options.order = move_order::fewest; }
        c.options.shared = shared_pages::copied;
        const auto p = support::plan_moves(c.plan, c.cache.table(), pool_of(c), c.options);
        REQUIRE(p.answer.ok());
        paged_cache backwards = c.cache;
        c.cache.move(p.plan);
        const auto keys = backwards.keys();
        for (index_t row = p.plan.rows(); row-- > 0;) {
            const auto moves = p.plan.moves(row);
            for (std::size_t i = moves.size(); i-- > 0;) {
                for (index_t head = 0; head < backwards.heads; ++head) {
                    if (c.heads > 1 && head != row % c.heads) { continue; }
                    std::memcpy(keys.row(moves[i].to, head), keys.row(moves[i].from, head),
                                static_cast<std::size_t>(keys.row_length) * sizeof(float));
                }
            }
        }
        CHECK(support::bytes_of(backwards.k) == support::bytes_of(c.cache.k));
    }
}

TEST_CASE("page moves: rows may run on any thread", "[properties][compact][executor]") {
    support::random r(905);
    for (int round = 0; round < 40; ++round) {
        random_case c = any_case(r, 0.5);
        c.options.shared = shared_pages::copied;
        const auto p = support::plan_moves(c.plan, c.cache.table(), pool_of(c), c.options);
        REQUIRE(p.answer.ok());
        paged_cache on_threads = c.cache;
        paged_cache shuffled = c.cache;
        c.cache.move(p.plan);
        const support::shuffling_executor in_any_order{static_cast<std::uint64_t>(round)};
        CHECK(move_rows(on_threads.keys(), p.plan, support::thread_executor{3}).ok());
        CHECK(move_rows(shuffled.keys(), p.plan, in_any_order).ok());
        CHECK(support::bytes_of(on_threads.k) == support::bytes_of(c.cache.k));
        CHECK(support::bytes_of(shuffled.k) == support::bytes_of(c.cache.k));
        paged_cache both = c.cache; // twice the same moves, of keys and of values, in one call
        REQUIRE(move_rows(c.cache.keys(), c.cache.values(), p.plan).ok());
        CHECK(move_rows(both.keys(), both.values(), p.plan, support::thread_executor{3}).ok());
        CHECK(support::bytes_of(both.k) == support::bytes_of(c.cache.k));
        CHECK(support::bytes_of(both.v) == support::bytes_of(c.cache.v));
    }
}

TEST_CASE("page moves: attention over the moved cache is masked attention over the full one",
          "[properties][compact]") {
    support::random r(903);
    int compared = 0;
    for (int round = 0; round < 300; ++round) {
        random_case c = any_case(r, 0.3);
        c.options.shared = shared_pages::copied;
        for (float& x : c.cache.k) { x = static_cast<float>(r.normal()); }
        for (float& x : c.cache.v) { x = static_cast<float>(r.normal()); }
        const auto p = support::plan_moves(c.plan, c.cache.table(), pool_of(c), c.options);
        REQUIRE(p.answer.ok());
        paged_cache before = c.cache;
        c.cache.move(p.plan);
        for (index_t plan_row = 0; plan_row < c.plan.rows(); ++plan_row) {
            if (c.plan.kept_tokens(plan_row) == 0) { continue; }
            const index_t row = plan_row / c.heads;
            const index_t head = plan_row % c.heads;
            int32s masked, moved;
            for (const auto token : c.plan.row(plan_row)) {
                masked.push_back(support::slot_of(before.table(), row, token, before.page_tokens));
            }
            for (index_t t = 0; t < p.plan.table().tokens(row, before.page_tokens); ++t) {
                moved.push_back(support::slot_of(p.plan.table(), row, t, before.page_tokens));
            }
            std::vector<double> query(static_cast<std::size_t>(before.key_dim));
            for (double& x : query) { x = r.normal(); }
            const auto expected = attention(before.keys(), before.values(), head, query, masked);
            const auto got = attention(c.cache.keys(), c.cache.values(), head, query, moved);
            double worst = 0;
            for (std::size_t d = 0; d < got.size(); ++d) {
                worst = std::max(worst, std::abs(got[d] - expected[d]));
            }
            CAPTURE(round, plan_row);
            CHECK(worst < 1e-12);
            ++compared;
        }
    }
    CHECK(compared > 500);
}

TEST_CASE("page moves: tables per (request, head) cut each head to its own length", "[properties][compact]") {
    support::random r(904);
    for (int round = 0; round < 300; ++round) {
        random_case c = any_case(r, 0.0); // a row is a (request, head): lengths and pages of its own
        c.cache.heads = 1;
        c.cache.fill(r);
        c.heads = 1;
        c.plan = support::random_page_plan(r, c.cache, 1);
        const auto p = support::plan_moves(c.plan, c.cache.table(), pool_of(c), c.options);
        REQUIRE(p.answer.ok());
        paged_cache before = c.cache;
        c.cache.move(p.plan);
        const std::string rows = wrong_rows(c, before, c.cache, p.plan);
        CHECK(rows.empty());
        index_t pages = 0;
        for (index_t row = 0; row < c.plan.rows(); ++row) {
            pages += (c.plan.kept_tokens(row) + before.page_tokens - 1) / before.page_tokens;
        }
        CHECK(std::ssize(p.plan.freed_pages()) == std::ssize(before.indices) - pages);
    }
}
