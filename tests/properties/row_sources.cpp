// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Every source of rows gives the same rows to every call of the reader.

#include <kvtrim/cache/filled.hpp>
#include <kvtrim/cache/ggml_tensor_rows.hpp>
#include <kvtrim/cache/indexed_rows.hpp>
#include <kvtrim/cache/paged_rows.hpp>
#include <kvtrim/cache/row_range.hpp>
#include <kvtrim/compact/flat_cache.hpp>
#include <kvtrim/decode/recent_queries.hpp>

#include "support/checks.hpp"
#include "support/cpu_levels.hpp"

#include <numeric>
#include <vector>

using namespace kvtrim;

namespace {

constexpr index_t heads = 2, tokens = 70, dim = 37;

float number(index_t head, index_t t, index_t d) {
    return static_cast<float>((head * 71 + t * 13 + d * 5) % 127) - 60.0f; // exact in every element
}

template <class T, class Place>
std::vector<T> laid_out(index_t elements, Place&& place, index_t step = 1) {
    std::vector<T> memory(static_cast<std::size_t>(elements));
    for (index_t h = 0; h < heads; ++h) {
        for (index_t t = 0; t < tokens; ++t) {
            for (index_t d = 0; d < dim; ++d) {
                memory[static_cast<std::size_t>(place(h, t) + d * step)] =
                    element_traits<T>::from_float(number(h, t, d));
            }
        }
    }
    return memory;
}

template <class Rows>
void check_runs(const Rows& rows) {
    std::vector<std::byte> memory(static_cast<std::size_t>(row_tile::bytes(dim)));
    workspace scratch(memory);
    const row_tile tile(dim, scratch);
    REQUIRE(scratch.fits());
    REQUIRE(tile.rows() > 0);
    int wrong = 0;
    for (index_t h = 0; h < heads; ++h) {
        for (const auto& [begin, end] : {std::pair<index_t, index_t>{0, tokens}, {3, 3}, {15, 17}, {9, 70}}) {
            index_t next = begin;
            for_each_row(rows, h, {begin, end}, tile, [&](index_t t, std::span<const float> row) {
                wrong += t == next++ && std::ssize(row) == dim ? 0 : 1;
                for (index_t d = 0; d < dim; ++d) {
                    wrong += row[static_cast<std::size_t>(d)] == number(h, t, d) ? 0 : 1;
                }
            });
            wrong += next == end ? 0 : 1;
            std::vector<float> copy(static_cast<std::size_t>((end - begin) * dim));
            load_rows(rows, h, begin, end - begin, copy.data());
            for (std::size_t i = 0; i < copy.size(); ++i) {
                const auto at = static_cast<index_t>(i);
                wrong += copy[i] == number(h, begin + at / dim, at % dim) ? 0 : 1;
            }
            if constexpr (!std::is_void_v<stored_element<Rows>>) {
                using element = stored_element<Rows>;
                std::vector<element> kept(copy.size());
                if (!keeps<element>(rows)) { continue; }
                const auto as_kept = read_rows<element>(rows, h, begin, end - begin, kept.data());
                load_rows(rows, h, begin, end - begin, kept.data());
                for (std::size_t i = 0; i < copy.size(); ++i) {
                    const auto at = static_cast<index_t>(i);
                    wrong += to_float(kept[i]) == copy[i] ? 0 : 1;
                    wrong += to_float(as_kept.row(at / dim)[at % dim]) == copy[i] ? 0 : 1;
                }
            }
        }
    }
    CHECK(wrong == 0);
}

template <class T>
void check_every_source() {
    const auto in_order = [](index_t h, index_t t) { return (h * tokens + t) * dim; };
    auto rows = laid_out<T>(heads * tokens * dim, in_order);
    const strided plain(rows.data(), {heads, tokens, dim});
    check_runs(plain);
    const auto transposed = laid_out<T>(
        heads * dim * tokens, [](index_t h, index_t t) { return h * dim * tokens + t; }, tokens);
    check_runs(strided(transposed.data(), {heads, tokens, dim}, {dim * tokens, 1, tokens}));
    const auto channels = laid_out<T>(
        heads * tokens * dim * 2, [](index_t h, index_t t) { return (h * tokens + t) * dim * 2; }, 2);
    check_runs(strided(channels.data(), {heads, tokens, dim}, {tokens * dim * 2, dim * 2, 2}));
    const std::vector<index_t> lengths(heads, tokens);
    check_runs(filled(plain, lengths));
    const std::vector<std::int32_t> offsets{0, tokens, 2 * tokens};
    check_runs(ragged<T>(rows.data(), offsets, dim));

    auto later = laid_out<T>(heads * (tokens + 9) * dim,
                             [](index_t h, index_t t) { return (h * (tokens + 9) + t + 7) * dim; });
    check_runs(row_range(strided(later.data(), {heads, tokens + 9, dim}), 7, tokens));
    const std::vector<std::int32_t> far{0, tokens + 9, 2 * (tokens + 9)};
    check_runs(row_range(ragged<T>(later.data(), far, dim), 7, tokens));

    constexpr index_t page_tokens = 16, pages = 5;
    const std::vector<std::int32_t> order{4, 2, 3, 0, 1, 7, 6, 9, 5, 8}, indptr{0, pages, 2 * pages},
        last{6, 6};
    const page_table table{indptr, order, last};
    const auto pool = laid_out<T>(pages * page_tokens * heads * dim, [&](index_t h, index_t t) {
        return ((order[static_cast<std::size_t>(t / page_tokens)] * page_tokens + t % page_tokens) * heads +
                h) *
               dim;
    });
    const paged_rows paged(pool.data(), nhd_pages(page_tokens, heads, dim, pages), table, 0, heads, dim);
    REQUIRE(validate(paged).ok());
    check_runs(paged);
    const auto head_pool = laid_out<T>(2 * pages * page_tokens * dim, [&](index_t h, index_t t) {
        return (order[static_cast<std::size_t>(h * pages + t / page_tokens)] * page_tokens +
                t % page_tokens) *
               dim;
    });
    const paged_head_rows paged_heads(head_pool.data(), {page_tokens, page_tokens * dim, dim, 0, 2 * pages},
                                      table, 0, heads, dim);
    REQUIRE(validate(paged_heads).ok());
    check_runs(paged_heads);

    std::vector<std::int32_t> slots(tokens);
    std::iota(slots.begin(), slots.end(), 0);
    std::rotate(slots.begin(), slots.begin() + 23, slots.end());
    const auto cells = laid_out<T>(tokens * heads * dim, [&](index_t h, index_t t) {
        return (slots[static_cast<std::size_t>(t)] * heads + h) * dim;
    });
    check_runs(indexed_rows(strided(cells.data(), {heads, tokens, dim}, {dim, heads * dim, 1}), slots));
    std::vector<std::int32_t> same(tokens);
    std::iota(same.begin(), same.end(), 0);
    check_runs(indexed_rows(paged, same));

    recent_queries<T> ring(heads, tokens, dim);
    REQUIRE(ring.validate().ok());
    const auto none = laid_out<T>(heads * tokens * dim, in_order);
    REQUIRE(
        ring.append(strided(none.data(), {heads, 33, dim}, {tokens * dim, dim, 1})).ok()); // and out again
    REQUIRE(ring.append(plain).ok());
    check_runs(ring.view());
}

} // namespace

TEST_CASE("row sources: each of them gives the same rows to every call, at every level",
          "[properties][cache]") {
    support::at_each_cpu_level([] {
        check_every_source<float>();
        check_every_source<f16>();
        check_every_source<bf16>();
        check_every_source<double>();
    });
}

TEST_CASE("row sources: rows that lie in memory are not copied", "[properties][cache]") {
    const auto rows =
        laid_out<bf16>(heads * tokens * dim, [](index_t h, index_t t) { return (h * tokens + t) * dim; });
    bf16* const nowhere = nullptr;
    const std::vector<std::int32_t> offsets{0, tokens, 2 * tokens};
    const ragged<const bf16> uneven(rows.data(), offsets, dim);
    CHECK(read_rows<bf16>(uneven, 1, 5, 60, nowhere).data == rows.data() + (tokens + 5) * dim);
    CHECK(read_rows<bf16>(row_range(uneven, 5, 60), 1, 2, 58, nowhere).data ==
          rows.data() + (tokens + 7) * dim);
    const std::vector<std::int32_t> indptr{0, 2}, pages{1, 0}, last{16};
    const page_table table{indptr, pages, last};
    const paged_rows paged(rows.data(), nhd_pages(16, 2, dim, 2), table, 0, 2, dim);
    const auto in_page = read_rows<bf16>(paged, 1, 17, 15, nowhere);
    CHECK(in_page.data == rows.data() + 3 * dim);
    CHECK(in_page.stride == 2 * dim);
    std::vector<bf16> tile(static_cast<std::size_t>(2 * dim));
    CHECK(read_rows<bf16>(paged, 1, 15, 2, tile.data()).data == tile.data());
    const std::vector<std::int32_t> slots{8, 9, 10, 3};
    const indexed_rows indexed(strided(rows.data(), {heads, tokens, dim}), slots);
    CHECK(read_rows<bf16>(indexed, 0, 0, 3, nowhere).data == rows.data() + 8 * dim);
    CHECK(read_rows<bf16>(indexed, 0, 2, 2, tile.data()).data == tile.data());
}

TEST_CASE("row sources: rows of a type that only the run tells are asked first", "[properties][cache]") {
    std::vector<float> floats(2 * 3 * 4, 1.0f);
    std::vector<bf16> halves(2 * 3 * 4, bf16{0x3f80});
    const auto keys = [](int type, void* data, index_t size) {
        return ggml_tensor_rows(type, data, {2, 3, 4}, {12 * size, 4 * size, size});
    };
    const auto of_floats = keys(ggml_type_number<float>, floats.data(), 4);
    const auto of_halves = keys(ggml_type_number<bf16>, halves.data(), 2);
    CHECK_FALSE(keeps<bf16>(of_floats));
    CHECK(keeps<bf16>(of_halves));
    CHECK_FALSE(keeps<bf16>(row_range(of_floats, 1, 2)));
    CHECK(keeps<bf16>(row_range(of_halves, 1, 2)));
    static_assert(!is_made_of<ggml_tensor_rows, bf16> && !is_made_of<row_range<ggml_tensor_rows>, bf16>);
    std::vector<float> tile(8);
    CHECK(read_rows(row_range(of_floats, 1, 2), 1, 0, 2, tile.data()).data == tile.data());
    CHECK(tile == std::vector<float>(8, 1.0f));
}

TEST_CASE("row_tile: rows in a workspace that has no room for one are not read", "[properties][cache]") {
    std::vector<std::byte> memory(64);
    workspace scratch(memory);
    const row_tile tile(dim, scratch);
    CHECK(tile.rows() == 0);
    const std::vector<bf16> rows(static_cast<std::size_t>(heads * tokens * dim));
    for_each_row(strided(rows.data(), {heads, tokens, dim}), 0, {0, tokens}, tile,
                 [](index_t, std::span<const float>) { FAIL("a row was read"); });
    for (const index_t length : {index_t{0}, index_t{1}, index_t{128}, index_t{8192}, index_t{100000}}) {
        CHECK(row_tile::bytes(length) >= (length > 0 ? length * 4 : 0));
    }
    // Of no view: more than any memory holds.
    for (const index_t length :
         {index_t{-1}, std::numeric_limits<index_t>::min(), std::numeric_limits<index_t>::max()}) {
        CHECK(row_tile::bytes(length) > index_t{1} << 56);
    }
}
