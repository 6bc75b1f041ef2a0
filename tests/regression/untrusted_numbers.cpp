// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Numbers of an engine that no memory has: what they would have read, written or counted without an end is a status.

#include "compact/random_pages.hpp"
#include "support/states.hpp"

#include <kvtrim/cache/indexed_rows.hpp>
#include <kvtrim/cache/latent_cache.hpp>
#include <kvtrim/cache/layer.hpp>
#include <kvtrim/cache/paged_rows.hpp>
#include <kvtrim/cache/row_range.hpp>
#include <kvtrim/cache/scaled_rows.hpp>
#include <kvtrim/compact/compact_in_place.hpp>
#include <kvtrim/compact/compact_to_flat.hpp>
#include <kvtrim/compact/move_rows.hpp>
#include <kvtrim/compact/rerotate_keys.hpp>
#include <kvtrim/decode/cache_positions.hpp>
#include <kvtrim/decode/recent_queries.hpp>
#include <kvtrim/decode/running_scores.hpp>
#include <kvtrim/plan/prune_plan.hpp>
#include <kvtrim/score/query_statistics.hpp>

using namespace kvtrim;
using support::int32s;

namespace {

constexpr index_t most = std::numeric_limits<index_t>::max(), far = index_t{1} << 61;

// Four keys of one or two heads in pages of 16 tokens, each row at the next position.
struct rotation {
    std::vector<float> pool = std::vector<float>(2048, 1.0f);
    std::vector<float> frequencies = {1.0f, 0.1f};
    int32s from{5, 6, 7, 8, 5, 6, 7, 8}, to{6, 7, 8, 9, 6, 7, 8, 9};

    template <class Keys>
    status operator()(const Keys& keys) {
        int32s offsets;
        for (index_t g = 0; g <= extent(keys, 0); ++g) {
            offsets.push_back(static_cast<std::int32_t>(4 * g));
        }
        const auto rows = static_cast<std::size_t>(offsets.back());
        const auto before = pool;
        growing_workspace memory;
        const rope r{.inverse_frequencies = frequencies};
        workspace scratch = memory.of_bytes(rerotate_keys_bytes(keys, r));
        const status s = rerotate_keys(keys, r, {offsets, std::span(from).first(rows)},
                                       {offsets, std::span(to).first(rows)}, scratch);
        CHECK((pool == before) == !s.ok());
        pool = before;
        return s;
    }
};

} // namespace

TEST_CASE("rerotate_keys: pages whose slots, heads or neighbours overlap are refused, as are indices into "
          "such rows",
          "[regression][paged]") {
    rotation rotate;
    float* const pool = rotate.pool.data();
    const int32s two{0, 2}, pages{3, 1}, full{4}, indptr{0, 2, 4}, four{0, 3, 1, 2}, lengths{4, 4};
    const page_table table{two, pages, full}, of_heads{indptr, four, lengths};
    struct {
        page_layout layout;
        errc answer;
    } const tries[] = {
        {{4, 32, 8, 4}, errc::ok},                 // token-major
        {{4, 32, 4, 16}, errc::ok},                // head-major
        {{4, 64, 8, 4}, errc::ok},                 // keys and values by turns
        {{4, 0, 0, 0}, errc::views_overlap},       // everything in one row
        {{4, 32, 8, 0}, errc::views_overlap},      // heads in one row
        {{4, 32, 8, 3}, errc::views_overlap},      // heads nearer than a row is long
        {{4, 32, 0, 4}, errc::views_overlap},      // tokens in one row
        {{4, 32, 7, 4}, errc::views_overlap},      // a token's last head in the next token
        {{4, 31, 8, 4}, errc::views_overlap},      // pages nearer than they are long
        {{4, 0, 8, 4}, errc::views_overlap},       // pages in one place
        {{4, far, 8, 4}, errc::invalid_parameter}, // beyond what memory can hold
        {{4, 32, -far, 4}, errc::invalid_parameter},
        {{4, 32, 8, most}, errc::invalid_parameter},
    };
    // 8 tokens in two pages, of which the first four rows are rotated.
    for (const auto& [layout, answer] : tries) {
        CAPTURE(layout.page_stride, layout.token_stride, layout.head_stride);
        const paged_rows keys(pool, layout, table, 0, 2, 4);
        CHECK(rotate(keys).code() == answer);
        CHECK(rotate(row_range(keys, 4, 4)).code() == answer);
        CHECK(keys.validate().code() ==
              (answer == errc::invalid_parameter ? answer : errc::ok));        // may be read
        if (layout.head_stride != 4 || layout.page_stride == 64) { continue; } // pages of one head have none
        const errc without_heads = layout.token_stride == 7 || layout.page_stride == 31 ? errc::ok : answer;
        CHECK(rotate(paged_head_rows(pool, layout, of_heads, 0, 2, 4)).code() == without_heads);
        const paged_memory<float> moved{pool, layout, 2, 4};
        const auto planned =
            support::plan_moves(support::plan_of({{1, 5}}), table, {.pages = 4, .page_tokens = 4});
        CHECK(move_rows(moved, planned.plan).code() == answer);
    }
    const int32s slots{9, 3, 5, 1};
    for (const index_t stride : {0, 3, 4}) {
        CAPTURE(stride);
        const strided<float, 3> rows(pool, {1, 16, 4}, {0, stride, 1});
        CHECK(rotate(indexed_rows(rows, slots)).code() == (stride == 4 ? errc::ok : errc::views_overlap));
        CHECK(rotate(row_range(rows, 2, 4)).code() == (stride == 4 ? errc::ok : errc::views_overlap));
    }
}

TEST_CASE("views whose extents and strides lead out of any memory are empty, whoever multiplies them",
          "[regression][errors]") {
    std::vector<float> data(64);
    std::vector<std::int8_t> codes(64);
    const auto is_refused = [](const auto& view) {
        return validate(view).code() == errc::invalid_parameter && extent(view, 0) == 0 &&
               extent(view, 1) == 0;
    };
    const int32s one{0, 1}, second{1}, full{4};
    const page_table table{one, second, full};
    for (const page_layout& layout :
         {nhd_pages(4, 2, far), hnd_pages(4, 2, far), nhd_pages(4, far, 4), hnd_pages(4, far, 4),
          nhd_pages(4, most, most), hnd_pages(4, most, most)}) {
        CHECK(is_refused(paged_rows(data.data(), layout, table, 0, 3, 4)));
        const auto planned =
            support::plan_moves(support::plan_of({{1}}), table, {.pages = 2, .page_tokens = 4});
        CHECK_FALSE(move_rows(paged_memory<float>{data.data(), layout, 3, 4}, planned.plan).ok());
    }
    CHECK(nhd_pages(most, 2, 2).validate().code() == errc::index_overflow);
    for (const index_t stride : {far, -far, most, -most - 1}) {
        const scale_table<const float> of_tokens{data.data(), {4, 1, 0}};
        using rows = scaled_rows<const std::int8_t>;
        CHECK(is_refused(rows(codes.data(), {2, 3, 4}, {stride, 4}, of_tokens)));
        CHECK(is_refused(rows(codes.data(), {2, 3, 4}, {12, stride}, of_tokens)));
        CHECK(is_refused(rows(codes.data(), {2, 3, 4}, {12, 4}, {data.data(), {stride, 1, 0}})));
        CHECK(is_refused(rows(codes.data(), {2, 3, 4}, {12, 4}, {data.data(), {3, stride, 0}})));
    }
    // A part of a row that cannot be is none, though it would fit by itself.
    const latent_cache<float> wide(data.data(), 4, 8, {far, {far / 2, 8}, {0, 4}});
    CHECK(is_refused(wide.values()));
    CHECK(is_refused(wide.rotary()));
}

TEST_CASE("prune_plan: heads without number of an empty chunk are refused, not counted",
          "[regression][plan]") {
    const segment_grid empty{.segment_tokens = 8, .block_tokens = 4, .first_token = 0, .end_token = 0};
    prune_plan plan;
    REQUIRE(plan.reset(empty, 3, {}).ok());
    const prune_plan before = plan;
    for (const index_t heads : {index_t{1} << 31, index_t{1} << 60, most}) {
        CHECK(plan.reset(empty, heads, {}) == status(errc::index_overflow, "", heads));
        CHECK(plan_dense(empty, heads, plan) == status(errc::index_overflow, "", heads));
    }
    CHECK(plan == before);
    constexpr index_t many = std::numeric_limits<std::int32_t>::max();
    REQUIRE(plan.reset(empty, many, {}).ok()); // and nobody counts to it
    for (int n = 0; n < 100; ++n) { CHECK((plan.check_invariants() && plan.planned_pairs() == 0)); }
}

TEST_CASE("query_statistics: counts beyond the positions that were added are refused",
          "[regression][state]") {
    const std::vector<float> q(2 * 3 * 4, 1.0f);
    growing_workspace memory;
    const auto add = [&](query_statistics& s) {
        workspace scratch = memory.of_bytes(s.workspace_bytes());
        return s.add(support::view(q.data(), {2, 3, 4}), scratch);
    };
    query_statistics restored(2, 4, 0);
    REQUIRE(add(restored).ok());
    for (const index_t count : {index_t{4}, most - 1, most}) {
        query_statistics s = restored;
        s.counts[1] = count;
        CHECK(s.validate().code() == errc::invalid_parameter);
        CHECK(add(s).code() == errc::invalid_parameter);
        CHECK(s.counts[1] == count);
    }
    restored.positions = most; // as large as can be, and full
    restored.counts = {most, most};
    CHECK(restored.validate().ok());
    CHECK(add(restored).code() == errc::invalid_parameter);
}

TEST_CASE(
    "states restored from bytes with hostile numbers refuse them, or live on: they grow, are cut and undone",
    "[regression][state]") {
    const auto cut = [](auto& state, index_t heads) {
        keep_plan plan;
        std::vector<index_t> counts(static_cast<std::size_t>(heads), 1);
        if (heads > 1000 || !plan.reset(counts).ok()) { return; }
        for (index_t g = 0; g < heads; ++g) { plan.writable_row(g)[0] = 0; }
        static_cast<void>(state.compact(plan));
    };
    cache_positions positions(2);
    REQUIRE(positions.append(6).ok());
    REQUIRE(positions.compact(support::plan_of({{0, 2, 5}, {1, 3, 5}})).ok());
    REQUIRE(positions.close_up().ok());
    support::check_damaged_bytes(positions, cache_positions(0), 400, true, [&](cache_positions& p) {
        for (const index_t count : {index_t{1}, most, -most}) { static_cast<void>(p.append(count)); }
        static_cast<void>(p.rollback(1));
        static_cast<void>(p.close_up({.pinned_tokens = 1}));
        cut(p, p.kv_heads());
    });
    running_scores scores(2, 2);
    const std::vector<float> attention(2 * 8, 0.125f);
    for (index_t t = 1; t <= 5; ++t) {
        REQUIRE(scores.append(1).ok());
        REQUIRE(scores.add(strided(attention.data(), {2, t})).ok());
    }
    REQUIRE(scores.append(1).ok());
    support::check_damaged_bytes(scores, running_scores(0), 600, true, [&](running_scores& s) {
        static_cast<void>(s.append(1));
        static_cast<void>(s.add(strided(attention.data(), {2, 8}), 1));
        for (const index_t count : {index_t{1}, most}) { static_cast<void>(s.rollback(count)); }
        static_cast<void>(s.add(strided(attention.data(), {2, 8}), 2));
        cut(s, s.kv_heads());
    });
    recent_queries<float> queries(2, 3, 4, 1);
    REQUIRE(queries.append(strided(attention.data(), {2, 2, 4})).ok());
    support::check_damaged_bytes(queries, recent_queries<float>(1, 1, 1), 200, true,
                                 [&](recent_queries<float>& q) {
                                     static_cast<void>(q.append(strided(attention.data(), {2, 2, 4})));
                                     for (const index_t count : {index_t{1}, most}) {
                                         static_cast<void>(q.rollback(count));
                                     }
                                     if (q.q_heads() > 1000 || q.head_dim() > 1000) { return; }
                                     std::vector<float> row(static_cast<std::size_t>(q.head_dim()));
                                     const auto view = q.view();
                                     for (index_t h = 0; h < view.extent(0); ++h) {
                                         for (index_t t = 0; t < view.extent(1); ++t) {
                                             view.load_rows(h, t, 1, row.data());
                                         }
                                     }
                                 });
}

TEST_CASE("heads without number that hold no token are refused at once, not looked at one by one",
          "[regression]") {
    const float some[4] = {};
    const strided<const float, 3> one(some, {1, 1, 1});
    for (const index_t heads : {most, far, index_t{1} << 40, most_heads + 1}) {
        const strided<const float, 3> empty(some, {heads, 0, 1}, {0, 1, 1});
        const int32s none;
        CHECK(extent(indexed_rows(empty, std::span(none)), 1) == 0);
        CHECK(row_range(empty, 0, 1).validate().code() == errc::invalid_parameter);
        // Where the view does not refuse itself.
        const errc code = empty.validate().ok() ? errc::index_overflow : errc::invalid_parameter;
        CHECK((code == errc::index_overflow) == (heads < far));
        CHECK(layer(empty).validate().code() == code);
        CHECK(layer(empty, empty).validate().code() == code);
        CHECK(layer(one).with_queries(empty).validate().code() == code);
        CHECK(layer(one, one).with_output_projection(empty).validate().code() == code);
    }
}

TEST_CASE("heads that keep nothing are not looked for, whatever their strides", "[regression]") {
    float some[4] = {};
    const strided<float, 3> empty(some, {3, 0, 4}, {-(most / 2), most, 1});
    REQUIRE(empty.validate().ok());
    keep_plan plan;
    const std::vector<index_t> counts(3, 0);
    REQUIRE(plan.reset(counts).ok());
    CHECK(compact_in_place(empty, plan).ok());
    CHECK(gather(empty, plan, std::span<float>(some)).ok());
}

TEST_CASE("plan_page_moves: lists of the plan that is made anew are refused, and nothing is lost",
          "[regression][paged]") {
    const int32s indptr{0, 3}, indices{0, 1, 2}, last{4};
    move_plan made;
    growing_workspace memory;
    const auto plan_again = [&](const page_table& table, const page_pool& pool, const keep_plan& kept) {
        workspace scratch = memory.of_bytes(plan_page_moves_bytes(table, pool));
        return plan_page_moves(kept, table, pool, {}, made, scratch);
    };
    const page_pool pool{.pages = 4, .page_tokens = 4};
    REQUIRE(plan_again({indptr, indices, last}, pool, support::plan_of({{0, 1, 2, 3}})).ok());
    REQUIRE(made.freed_pages().size() == 2);
    const move_plan before = made;
    page_pool recycled = pool;
    recycled.free_pages = made.freed_pages();
    const keep_plan kept = support::plan_of({{0, 1}});
    const int32s one{0, 1}, page{3}, two{2};
    CHECK(plan_again({one, page, two}, recycled, kept).code() == errc::invalid_parameter);
    CHECK(plan_again({one, made.table().indices, two}, pool, kept).code() == errc::invalid_parameter);
    CHECK(plan_again(made.table(), pool, kept).code() == errc::invalid_parameter);
    CHECK(made == before);
}
