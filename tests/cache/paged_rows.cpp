// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/cache/paged_rows.hpp>

#include "support/policy_oracle.hpp"

#include <kvtrim/cache/indexed_rows.hpp>
#include <kvtrim/cache/list_cells.hpp>
#include <kvtrim/cache/ragged.hpp>
#include <kvtrim/policy/criticalkv.hpp>
#include <kvtrim/score/recency.hpp>

#include <numeric>

using namespace kvtrim;
using namespace support;

namespace {

template <class Keys, class Values>
trace trace_of(const Keys& k, const Values& v, const layer_data& layer, const eviction_request& request) {
    return run(ada_criticalkv(),
               kvtrim::layer(k, v).with_queries(layer.queries()).with_output_projection(layer.projection()),
               request);
}

void check_same(const trace& a, const trace& b) {
    REQUIRE(a.answer.ok());
    CHECK(a.plan == b.plan);
    CHECK(a.importance == b.importance);
    CHECK(a.attention == b.attention);
}

std::vector<std::int32_t> permutation(index_t count, support::random& r) {
    std::vector<std::int32_t> order(static_cast<std::size_t>(count));
    std::iota(order.begin(), order.end(), 0);
    for (std::size_t i = order.size(); i > 1; --i) {
        std::swap(order[i - 1], order[static_cast<std::size_t>(r.between(0, static_cast<index_t>(i) - 1))]);
    }
    return order;
}

// A pool full of NaN whose pages a table hands out in random order.
struct paged_cache {
    page_layout layout;
    std::vector<std::int32_t> indptr{0}, indices, last_page_len;
    std::vector<float> pool;

    // lengths [rows of the table] in tokens
    paged_cache(const std::vector<index_t>& lengths, const page_layout& pages, support::random& r)
        : layout(pages) {
        index_t used = 0;
        for (const index_t tokens : lengths) {
            const index_t count = (tokens + layout.page_tokens - 1) / layout.page_tokens;
            used += count;
            indptr.push_back(static_cast<std::int32_t>(used));
            last_page_len.push_back(
                static_cast<std::int32_t>(count == 0 ? 0 : tokens - (count - 1) * layout.page_tokens));
        }
        indices = permutation(used + 3, r);
        indices.resize(static_cast<std::size_t>(used));
        pool.assign(static_cast<std::size_t>((used + 3) * layout.page_stride), std::nanf(""));
    }

    [[nodiscard]] page_table table() const { return {indptr, indices, last_page_len}; }

    // Writes head `from` of a view as a row of the table, at `head` of its pages.
    void store(const support::view& rows, index_t from, index_t row, index_t head, index_t tokens) {
        const auto pages = table().row(row);
        for (index_t t = 0; t < tokens; ++t) {
            const index_t at = pages[static_cast<std::size_t>(t / layout.page_tokens)] * layout.page_stride +
                               t % layout.page_tokens * layout.token_stride + head * layout.head_stride;
            for (index_t d = 0; d < rows.extent(2); ++d) {
                pool[static_cast<std::size_t>(at + d)] = rows(from, t, d);
            }
        }
    }
};

} // namespace

TEST_CASE("paged_rows: the plan and every score are those of the contiguous cache", "[cache][paged]") {
    for_random_layers(
        611, 16, [](const layer_data& layer, const eviction_request& request, support::random& r) {
            const layer_shape& s = layer.shape;
            const index_t page_tokens = r.one_of({1, 2, 3, 16, 1000});
            const bool nhd = r.chance(0.5);
            const auto in_pages = [&](const support::view& rows) {
                const index_t dim = rows.extent(2);
                paged_cache cache({5, 0, s.tokens},
                                  nhd ? nhd_pages(page_tokens, s.kv_heads, dim)
                                      : hnd_pages(page_tokens, s.kv_heads, dim),
                                  r);
                REQUIRE(validate(cache.table(), std::ssize(cache.indices) + 3, page_tokens).ok());
                for (index_t g = 0; g < s.kv_heads; ++g) { cache.store(rows, g, 2, g, s.tokens); }
                return cache;
            };
            const auto source = [&](const paged_cache& cache, const support::view& rows) {
                return paged_rows<float>(cache.pool.data(), cache.layout, cache.table(), 2, s.kv_heads,
                                         rows.extent(2));
            };
            const paged_cache keys = in_pages(layer.keys()), values = in_pages(layer.values());
            check_same(trace_of(source(keys, layer.keys()), source(values, layer.values()), layer, request),
                       trace_of(layer.keys(), layer.values(), layer, request));
        });
}

TEST_CASE("paged_head_rows: heads of different length, each with pages of its own", "[cache][paged]") {
    for_random_layers(612, 16, [](const layer_data& layer, eviction_request request, support::random& r) {
        const layer_shape& s = layer.shape;
        std::vector<index_t> lengths;
        for (index_t g = 0; g < s.kv_heads; ++g) { lengths.push_back(r.between(s.queries, s.tokens)); }
        const ragged_cache k(layer.keys(), lengths), v(layer.values(), lengths);
        request.protect = {.window_tokens = s.queries};
        const index_t budget =
            random_budget(r, kvtrim::layer(k.get(), v.get()).with_queries(layer.queries()), request.protect);
        if (budget == 0) { return; }
        request.budget = over_all_heads(budget);

        std::vector<index_t> rows(static_cast<std::size_t>(s.kv_heads), 7); // another request before it
        rows.insert(rows.end(), lengths.begin(), lengths.end());
        const index_t page_tokens = r.one_of({1, 4, 16});
        const auto in_pages = [&](const support::view& data) {
            paged_cache cache(rows, nhd_pages(page_tokens, 1, data.extent(2)), r);
            for (index_t g = 0; g < s.kv_heads; ++g) {
                cache.store(data, g, s.kv_heads + g, 0, lengths[static_cast<std::size_t>(g)]);
            }
            return cache;
        };
        const auto source = [&](const paged_cache& cache, const support::view& data) {
            return paged_head_rows<float>(cache.pool.data(), cache.layout, cache.table(), 1, s.kv_heads,
                                          data.extent(2));
        };
        const paged_cache keys = in_pages(layer.keys()), values = in_pages(layer.values());
        check_same(trace_of(source(keys, layer.keys()), source(values, layer.values()), layer, request),
                   trace_of(k.get(), v.get(), layer, request));
    });
}

TEST_CASE("paged_rows: f16 and bf16 pages give the floats of their elements", "[cache][paged]") {
    const layer_data layer =
        random_layer({.kv_heads = 2, .group = 1, .tokens = 21, .head_dim = 40, .queries = 1}, 613);
    const auto check = [&]<class T>(T) {
        const page_layout pages = nhd_pages(8, 2, 40);
        const std::vector<std::int32_t> indptr{0, 3}, indices{2, 0, 1}, last{5};
        std::vector<T> pool(static_cast<std::size_t>(3 * pages.page_stride));
        for (index_t i = 0; i < std::ssize(pool); ++i) {
            pool[static_cast<std::size_t>(i)] =
                element_traits<T>::from_float(layer.k[static_cast<std::size_t>(i) % layer.k.size()]);
        }
        const paged_rows<T> rows(pool.data(), pages, {indptr, indices, last}, 0, 2, 40);
        REQUIRE(rows.extent(1) == 21);
        CHECK(rows.row_bytes() == 80);
        std::vector<float> tile(21 * 40);
        rows.load_rows(1, 3, 18, tile.data());
        for (index_t t = 0; t < 18; ++t) {
            const index_t page = indices[static_cast<std::size_t>((t + 3) / 8)];
            const index_t at = page * pages.page_stride + (t + 3) % 8 * 80 + 40;
            for (index_t d = 0; d < 40; ++d) {
                REQUIRE(tile[static_cast<std::size_t>(t * 40 + d)] ==
                        to_float(pool[static_cast<std::size_t>(at + d)]));
            }
        }
    };
    check(f16{});
    check(bf16{});
}

TEST_CASE("write_page_table: a block table with lengths, and what is refused", "[cache][paged]") {
    const std::vector<std::int32_t> blocks{4, 9, -1, 7, -1, -1, 1, 2, 3};
    std::vector<std::int32_t> tokens{5, 0, 12};
    std::vector<std::int32_t> indptr(4, -7), indices(5, -7), last(3, -7);
    page_table table{};
    REQUIRE(write_page_table({blocks, 3, tokens}, 4, indptr, indices, last, table).ok());
    CHECK(indptr == std::vector<std::int32_t>{0, 2, 2, 5});
    CHECK(indices == std::vector<std::int32_t>{4, 9, 1, 2, 3});
    CHECK(last == std::vector<std::int32_t>{1, 0, 4});
    CHECK(validate(table, 10, 4).ok());
    CHECK(table.tokens(0, 4) == 5);
    CHECK(table.tokens(1, 4) == 0);

    const auto before = indices;
    const auto refused = [&](errc code, index_t page_tokens, std::size_t room) {
        const status s = write_page_table({blocks, 3, tokens}, page_tokens, indptr,
                                          std::span(indices).first(room), last, table);
        CHECK(s.code() == code);
        CHECK(indices == before);
    };
    refused(errc::invalid_table, 4, 4);
    refused(errc::invalid_parameter, 0, 5);
    refused(errc::invalid_table, 3, 5); // 12 tokens in 3 pages of 3
    tokens[1] = -1;
    refused(errc::invalid_table, 4, 5);
}

TEST_CASE("indexed_rows: slots in any order give the plan and scores of the sequence", "[cache][indexed]") {
    for_random_layers(
        614, 16, [](const layer_data& layer, const eviction_request& request, support::random& r) {
            const layer_shape& s = layer.shape;
            const index_t slots = s.tokens + 9;
            std::vector<std::int32_t> indices = permutation(slots, r);
            indices.resize(static_cast<std::size_t>(s.tokens));
            if (r.chance(0.5)) { std::sort(indices.begin(), indices.end()); } // long runs
            REQUIRE(validate_indices(indices, slots).ok());
            const auto in_slots = [&](const support::view& rows) { // [slots, kv_heads, row length]
                const index_t dim = rows.extent(2);
                std::vector<float> floats(static_cast<std::size_t>(slots * s.kv_heads * dim), std::nanf(""));
                for (index_t g = 0; g < s.kv_heads; ++g) {
                    for (index_t t = 0; t < s.tokens; ++t) {
                        const index_t slot = indices[static_cast<std::size_t>(t)];
                        for (index_t d = 0; d < dim; ++d) {
                            floats[static_cast<std::size_t>((slot * s.kv_heads + g) * dim + d)] =
                                rows(g, t, d);
                        }
                    }
                }
                return floats;
            };
            const auto source = [&](const std::vector<float>& floats, const support::view& rows) {
                const index_t dim = rows.extent(2);
                return indexed_rows(strided<const float, 3>(floats.data(), {s.kv_heads, slots, dim},
                                                            {dim, s.kv_heads * dim, 1}),
                                    indices);
            };
            const std::vector<float> k = in_slots(layer.keys()), v = in_slots(layer.values());
            check_same(trace_of(source(k, layer.keys()), source(v, layer.values()), layer, request),
                       trace_of(layer.keys(), layer.values(), layer, request));
        });
    const std::vector<std::int32_t> bad{0, 3, 2}, negative{0, -1};
    CHECK(validate_indices(bad, 3).code() == errc::invalid_table);
    CHECK(validate_indices(negative, 3).code() == errc::invalid_table);
    CHECK(validate_indices(bad, 4).ok());
    CHECK(validate_indices({}, 0).ok());
}

TEST_CASE("list_cells: the cells of one sequence by position, shared ones counted or left out",
          "[cache][cells]") {
    const std::vector<std::int32_t> positions{3, -1, 0, 7, 1, 2, 5, 4};
    using enum cell_use;
    const std::vector<cell_use> uses{owned, not_used, shared, not_used, shared, owned, shared, owned};
    const auto use = [&](index_t cell) { return uses[static_cast<std::size_t>(cell)]; };
    std::vector<std::int32_t> room(positions.size());
    cell_list all, own, none, ties;
    REQUIRE(list_cells(positions, use, room, all).ok());
    CHECK(std::vector(all.cells.begin(), all.cells.end()) == std::vector<std::int32_t>{2, 4, 5, 0, 7, 6});
    CHECK(all.shared_prefix == 2);
    REQUIRE(list_cells(positions, use, room, own, {.skip_shared = true}).ok());
    CHECK(std::vector(own.cells.begin(), own.cells.end()) == std::vector<std::int32_t>{5, 0, 7});
    CHECK(own.shared_prefix == 0);
    REQUIRE(list_cells({}, use, {}, none).ok());
    CHECK(none.cells.empty());
    // Two cells of one position, as multi-position RoPE has them: by cell.
    const std::vector<std::int32_t> equal{5, 5, 1};
    const auto every = [](index_t) { return owned; };
    REQUIRE(list_cells(equal, every, room, ties).ok());
    CHECK(std::vector(ties.cells.begin(), ties.cells.end()) == std::vector<std::int32_t>{2, 0, 1});
}

TEST_CASE(
    "list_cells: too little room and a cell in use without a position are refused, with nothing written",
    "[cache][cells][errors]") {
    const std::vector<std::int32_t> positions{3, -1, 0};
    std::vector<std::int32_t> room(3, -7);
    cell_list list{room, 5};
    const auto all_but_one = [](index_t cell) { return cell == 1 ? cell_use::not_used : cell_use::owned; };
    const status s = list_cells(positions, all_but_one, std::span(room).first(2), list);
    CHECK(s.code() == errc::no_room);
    CHECK(s.needed() == 3);
    const auto every = [](index_t) { return cell_use::shared; };
    CHECK(list_cells(positions, every, room, list).code() == errc::invalid_table);
    CHECK(room == std::vector<std::int32_t>(3, -7));
    CHECK(list.cells.data() == room.data());
    CHECK(list.shared_prefix == 5);
    CHECK(list_cells(positions, all_but_one, room, list).ok()); // a cell that nobody uses may have none
}

TEST_CASE(
    "indexed_rows: slots that the pool lacks, or that not every head has, give an empty source that says "
    "why",
    "[cache][indexed][errors]") {
    std::vector<float> floats(2 * 4 * 3);
    const strided<const float, 3> slots(floats.data(), {2, 4, 3});
    const std::vector<std::int32_t> good{3, 0}, beyond{0, 4}, negative{-1};
    CHECK(indexed_rows(slots, good).validate().ok());
    for (const auto& indices : {beyond, negative}) {
        const indexed_rows rows(slots, indices);
        CHECK(rows.validate().code() == errc::invalid_table);
        CHECK(rows.extent(1) == 0);
        CHECK(kvtrim::layer(rows).validate().code() == errc::invalid_table);
    }
    const std::vector<std::int32_t> ends{0, 4, 6};
    const indexed_rows uneven(ragged<const float>(floats.data(), ends, 3), good);
    CHECK(uneven.validate().code() == errc::rows_differ);
    CHECK(uneven.extent(1) == 0);
    const indexed_rows of_none(strided<const float, 3>(nullptr, {2, 4, 3}), good);
    CHECK(of_none.validate().code() == errc::invalid_parameter);
    CHECK(of_none.extent(1) == 0);
}

namespace {

// One request of three pages of 16 tokens in a pool of 5, and what the rows read of a changed table say.
struct small_table {
    std::vector<std::int32_t> indptr{0, 3}, indices{4, 0, 2}, last{5};
    page_layout layout = nhd_pages(16, 2, 3, 5);
    index_t request = 0, kv_heads = 2, head_dim = 3;
    std::vector<float> pool = std::vector<float>(5 * 16 * 2 * 3);

    [[nodiscard]] paged_rows<float> rows() const {
        return {pool.data(), layout, {indptr, indices, last}, request, kv_heads, head_dim};
    }
    [[nodiscard]] paged_head_rows<float> head_rows() const {
        return {pool.data(), layout, {indptr, indices, last}, request, kv_heads, head_dim};
    }
};

template <class Rows>
errc refusal(const Rows& rows) {
    const status s = rows.validate();
    if (!s.ok()) {
        for (std::size_t r = 0; r < 3; ++r) { CHECK(rows.extent(r) == 0); }
        CHECK(kvtrim::layer(rows).validate().code() == s.code());
        keep_plan plan = made_before();
        growing_workspace memory;
        CHECK(eviction_policy{recency{}, uniform{}, by_importance{}}
                  .plan(kvtrim::layer(rows), {.budget = per_head(3)}, plan, memory)
                  .code() == s.code());
        CHECK(plan == made_before());
    }
    return s.code();
}

} // namespace

TEST_CASE("paged rows: last_page_len of 0 or more than a page is refused, not read out of bounds (flashinfer "
          "issue 320)",
          "[cache][paged][errors]") {
    small_table t;
    CHECK(refusal(t.rows()) == errc::ok);
    CHECK(t.rows().extent(1) == 2 * 16 + 5);
    for (const std::int32_t last : {20, 17, 0, -1}) { // 0: an engine that computes length % page_tokens
        t.last = {last};
        CHECK(refusal(t.rows()) == errc::invalid_table);
    }
    t.last = {16};
    CHECK(refusal(t.rows()) == errc::ok);
    t.indptr = {0, 0};
    t.last = {-3}; // not read where the row is empty
    CHECK(refusal(t.rows()) == errc::ok);
    CHECK(t.rows().extent(1) == 0);
}

TEST_CASE("paged rows: a table that does not fit its pool, its request or 32 bits is refused",
          "[cache][paged][errors]") {
    const auto with = [](auto&& change) {
        small_table t;
        change(t);
        return refusal(t.rows());
    };
    CHECK(with([](auto& t) { t.indices[1] = 5; }) == errc::invalid_table);
    CHECK(with([](auto& t) { t.indices[1] = -1; }) == errc::invalid_table);
    CHECK(with([](auto& t) { t.layout.pages = 4; }) == errc::invalid_table);
    CHECK(with([](auto& t) { t.layout.pages = page_layout::unknown_pages; }) == errc::ok);
    CHECK(with([](auto& t) { t.layout.pages = -2; }) == errc::invalid_parameter);
    CHECK(with([](auto& t) { t.layout.pages = index_t{1} << 40; }) == errc::index_overflow);
    CHECK(with([](auto& t) { t.layout.page_tokens = 0; }) == errc::invalid_parameter);
    CHECK(with([](auto& t) { t.indptr = {0, 4}; }) == errc::invalid_table);
    CHECK(with([](auto& t) { t.indptr = {3, 0}; }) == errc::invalid_table);
    CHECK(with([](auto& t) { t.indptr = {-1, 3}; }) == errc::invalid_table);
    CHECK(with([](auto& t) { t.indptr = {0}; }) == errc::invalid_table);
    CHECK(with([](auto& t) { t.indptr = {}; }) == errc::invalid_table);
    CHECK(with([](auto& t) { t.request = 1; }) == errc::invalid_table);
    CHECK(with([](auto& t) { t.request = -1; }) == errc::invalid_table);
    CHECK(with([](auto& t) { t.kv_heads = -1; }) == errc::invalid_parameter);
    CHECK(with([](auto& t) { t.head_dim = -1; }) == errc::invalid_parameter);
    CHECK(with([](auto& t) { t.head_dim = index_t{1} << 60; }) == errc::invalid_parameter);
}

TEST_CASE("page layout: pages too large for a pool of unknown size answer no negative number of pages",
          "[cache][paged][errors]") {
    const page_layout unknown{.page_tokens = index_t{1} << 40};
    CHECK(unknown.validate().code() == errc::index_overflow);
    CHECK(unknown.validate().needed() == 0);
    CHECK(page_layout{.page_tokens = 1 << 20, .pages = 1 << 20}.validate().needed() == 1 << 20);
}

TEST_CASE("paged head rows: every head's own row of the table is checked", "[cache][paged][errors]") {
    const auto with = [](auto&& change) {
        small_table t;
        t.indptr = {0, 2, 3};
        t.last = {5, 16};
        change(t);
        return refusal(t.head_rows());
    };
    CHECK(with([](auto&) {}) == errc::ok);
    CHECK(with([](auto& t) { t.last[1] = 0; }) == errc::invalid_table);
    CHECK(with([](auto& t) { t.last[0] = 17; }) == errc::invalid_table);
    CHECK(with([](auto& t) { t.indices[2] = 5; }) == errc::invalid_table);
    CHECK(with([](auto& t) { t.kv_heads = 3; }) == errc::invalid_table);
    CHECK(with([](auto& t) { t.request = 1; }) == errc::invalid_table);
    CHECK(with([](auto& t) { t.request = index_t{1} << 62; }) ==
          errc::invalid_table); // no product past 64 bits
    CHECK(with([](auto& t) { t.kv_heads = index_t{1} << 62; }) != errc::ok);
}

TEST_CASE(
    "write_page_table: a negative page in use is refused with nothing written, an unused one is not read",
    "[cache][paged][errors]") {
    const std::vector<std::int32_t> lengths{17, 3};
    const auto answer = [&](const std::vector<std::int32_t>& pages) {
        std::vector<std::int32_t> indptr(3, -7), indices(4, -7), last(2, -7);
        page_table table;
        const status s = write_page_table({pages, 3, lengths}, 16, indptr, indices, last, table);
        if (!s.ok()) {
            CHECK(indptr == std::vector<std::int32_t>(3, -7));
            CHECK(indices == std::vector<std::int32_t>(4, -7));
            CHECK(last == std::vector<std::int32_t>(2, -7));
            CHECK(table.rows() == 0);
        }
        return s.code();
    };
    CHECK(answer({4, 0, -1, 2, -1, -1}) == errc::ok);
    CHECK(answer({4, -1, -1, 2, -1, -1}) == errc::invalid_table);
    CHECK(answer({4, 0, -1, -1, -1, -1}) == errc::invalid_table);
}
