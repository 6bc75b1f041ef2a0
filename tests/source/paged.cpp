// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/source/paged.hpp>

#include "support/policy_oracle.hpp"

#include <kvtrim/policy/criticalkv.hpp>
#include <kvtrim/source/cells.hpp>
#include <kvtrim/source/indexed.hpp>

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

TEST_CASE("paged_rows: the plan and every score are those of the contiguous cache", "[source][paged]") {
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

TEST_CASE("paged_head_rows: heads of different length, each with pages of its own", "[source][paged]") {
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

TEST_CASE("paged_rows: f16 and bf16 pages give the floats of their elements", "[source][paged]") {
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

TEST_CASE("write_page_table: a block table with lengths, and what is refused", "[source][paged]") {
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

TEST_CASE("indexed_rows: slots in any order give the plan and scores of the sequence", "[source][indexed]") {
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
          "[source][cells]") {
    const std::vector<std::int32_t> positions{3, -1, 0, 7, 1, 2, 5, 4};
    using enum cell_use;
    const std::vector<cell_use> uses{owned, not_used, shared, not_used, shared, owned, shared, owned};
    const auto use = [&](index_t cell) { return uses[static_cast<std::size_t>(cell)]; };
    std::vector<std::int32_t> room(positions.size());
    const cell_list all = list_cells(positions, use, room);
    CHECK(std::vector(all.cells.begin(), all.cells.end()) == std::vector<std::int32_t>{2, 4, 5, 0, 7, 6});
    CHECK(all.shared_prefix == 2);
    const cell_list own = list_cells(positions, use, room, {.skip_shared = true});
    CHECK(std::vector(own.cells.begin(), own.cells.end()) == std::vector<std::int32_t>{5, 0, 7});
    CHECK(own.shared_prefix == 0);
    CHECK(list_cells({}, use, {}).cells.empty());
    // Two cells of one position, as multi-position RoPE has them: by cell.
    const std::vector<std::int32_t> equal{5, 5, 1};
    const auto every = [](index_t) { return owned; };
    const cell_list ties = list_cells(equal, every, room);
    CHECK(std::vector(ties.cells.begin(), ties.cells.end()) == std::vector<std::int32_t>{2, 0, 1});
}
