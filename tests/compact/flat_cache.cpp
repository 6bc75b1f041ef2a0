// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/compact/flat_cache.hpp>

#include <kvtrim/compact/compact_in_place.hpp>
#include <kvtrim/compact/compact_to_flat.hpp>

#include "compact/random_cache.hpp"

using namespace kvtrim;

namespace {

// A flat cache with keys of its own beside it, and the rows that each head must have.
struct grown_cache {
    flat_cache table;
    index_t dim;
    std::vector<f16> keys;
    std::vector<std::vector<std::uint16_t>>
        expected; // the first element of each row; the others follow from it
    index_t moved_rows = 0;
    index_t appended_rows = 0;
    index_t allocations = 0;

    grown_cache(index_t heads, index_t head_dim, double growth)
        : table(heads, growth), dim(head_dim), expected(static_cast<std::size_t>(heads)) {}

    [[nodiscard]] flat_rows<f16> view() { return {keys.data(), table, dim}; }

    void append(support::random& r, index_t count) {
        status s = table.append(count);
        if (s.code() == errc::no_room) {
            const index_t rows = s.needed();
            CHECK(rows >= table.capacity());
            if (rows > table.capacity()) {
                ++allocations;
                keys.resize(static_cast<std::size_t>(rows * dim), f16{0xdead});
            }
            CHECK(table
                      .spread(rows,
                              [&](index_t from, index_t to, index_t n) {
                                  flat_rows<f16>(keys.data(), table, dim).move(from, to, n);
                                  moved_rows += n;
                              })
                      .ok());
            CHECK(table.capacity() == rows);
            s = table.append(count);
        }
        CHECK(s.ok());
        for (index_t g = 0; g < table.kv_heads(); ++g) {
            for (index_t i = table.rows(g) - count; i < table.rows(g); ++i) {
                const auto first = static_cast<std::uint16_t>(r.bits());
                expected[static_cast<std::size_t>(g)].push_back(first);
                for (index_t d = 0; d < dim; ++d) {
                    view().row(g, i)[d] = {static_cast<std::uint16_t>(first + static_cast<std::uint16_t>(d))};
                }
                ++appended_rows;
            }
        }
    }
    void cut(const keep_plan& plan) {
        CHECK(compact_in_place(view(), plan).ok());
        CHECK(table.compact(plan).ok());
        for (index_t g = 0; g < table.kv_heads(); ++g) {
            std::vector<std::uint16_t> left;
            for (const auto token : plan.row(g)) {
                left.push_back(expected[static_cast<std::size_t>(g)][static_cast<std::size_t>(token)]);
            }
            expected[static_cast<std::size_t>(g)] = left;
        }
    }
    [[nodiscard]] bool holds_its_rows() {
        for (index_t g = 0; g < table.kv_heads(); ++g) {
            const auto& rows = expected[static_cast<std::size_t>(g)];
            if (table.rows(g) != std::ssize(rows)) { return false; }
            if (table.row(g, table.rows(g)) > table.begins()[static_cast<std::size_t>(g) + 1]) {
                return false;
            }
            for (index_t i = 0; i < table.rows(g); ++i) {
                for (index_t d = 0; d < dim; ++d) {
                    const auto want = static_cast<std::uint16_t>(rows[static_cast<std::size_t>(i)] + d);
                    if (view().row(g, i)[d].bits != want) { return false; }
                }
            }
        }
        return true;
    }
};

} // namespace

TEST_CASE("flat_cache: through any appends and evictions each head holds its rows, bit for bit",
          "[compact][properties]") {
    support::random r(1);
    for (int round = 0; round < 150; ++round) {
        grown_cache cache(r.between(0, 5), r.between(1, 3), r.one_of({0.05, 0.25, 1.0, 3.0}));
        for (int step = 0; step < 30; ++step) {
            if (r.chance(0.2)) {
                cache.cut(support::any_plan(r, support::lengths_of(cache.view())));
            } else {
                cache.append(r, r.chance(0.1) ? 0 : r.between(1, r.chance(0.2) ? 20 : 2));
            }
            CAPTURE(round, step);
            REQUIRE(cache.holds_its_rows());
        }
    }
}

TEST_CASE("flat_cache: a row is moved a few times at most for each that is appended, whatever the length",
          "[compact]") {
    for (const double growth : {0.1, 0.25, 1.0}) {
        support::random r(2);
        grown_cache cache(3, 1, growth);
        cache.append(r, 500);
        cache.cut(support::plan_of({{0, 1, 2}, {4}, {}})); // very uneven heads
        const index_t before = cache.appended_rows;
        for (int token = 0; token < 6000; ++token) { cache.append(r, 1); }
        const auto moved =
            static_cast<double>(cache.moved_rows) / static_cast<double>(cache.appended_rows - before);
        CAPTURE(growth, moved, cache.allocations);
        CHECK(moved < 1 / growth + 1);
        CHECK(static_cast<double>(cache.table.capacity()) <
              (1 + growth) * static_cast<double>(cache.table.total_rows()) + 2000);
        CHECK(cache.allocations < 60);
    }
}

TEST_CASE("flat_cache: what an eviction frees is room, also for other heads, without new memory",
          "[compact]") {
    support::random r(3);
    grown_cache cache(2, 2, 0.25);
    cache.append(r, 100);
    const index_t capacity = cache.table.capacity();
    CHECK(capacity == 200);
    std::vector<std::size_t> all(100);
    std::iota(all.begin(), all.end(), std::size_t{0});
    cache.cut(support::plan_of({all, {3, 5}})); // head 0 has no room, head 1 has all of it
    CHECK(cache.table.room() == 0);
    cache.append(r, 1);
    CHECK(cache.table.capacity() == capacity);
    CHECK(cache.table.room() == 48);
    CHECK(cache.holds_its_rows());
}

TEST_CASE("flat_cache: it takes over what compact_to_flat left, and spreads into another memory",
          "[compact]") {
    support::random r(4);
    support::random_cache<float> cache(r, {3, 12, 2}, {0, 1, 2}, false, false);
    const keep_plan plan = support::plan_of({{0, 5, 11}, {}, {2, 3}});
    const std::vector<float> expected = support::survivors(cache.view(), plan);
    REQUIRE(compact_to_flat(cache.view(), plan).ok());
    flat_cache table(plan);
    CHECK(table.capacity() == 5);
    CHECK(table.room() == 0);
    std::vector<float> wide(14 * 2, -1.0f);
    REQUIRE(table
                .spread_into(14,
                             [&](index_t from, index_t to, index_t rows) {
                                 std::copy_n(cache.elements.begin() + from * 2, rows * 2,
                                             wide.begin() + to * 2);
                             })
                .ok());
    CHECK(std::vector<std::int32_t>(table.begins().begin(), table.begins().end()) ==
          std::vector<std::int32_t>{0, 6, 9, 14});
    CHECK(std::vector<std::int32_t>(table.lengths().begin(), table.lengths().end()) ==
          std::vector<std::int32_t>{3, 0, 2});
    const flat_rows<float> rows(wide.data(), table, 2);
    std::vector<float> tile(6), got;
    for (index_t g = 0; g < 3; ++g) {
        rows.load_rows(g, 0, rows.rows(g), tile.data());
        got.insert(got.end(), tile.begin(), tile.begin() + rows.rows(g) * 2);
    }
    CHECK(support::bytes_of(got) == support::bytes_of(expected));
    CHECK(rows.extent(1) == 3);
    CHECK(flat_cache(keep_plan{}).kv_heads() == 0);
    CHECK(flat_cache(0).append(5).ok());
}

TEST_CASE("flat_cache: spread over less memory, down to the rows themselves, every head holds its rows",
          "[compact]") {
    std::vector<int> rows(30);
    flat_cache table(3);
    const auto move = [&](index_t from, index_t to, index_t n) {
        std::memmove(rows.data() + to, rows.data() + from, static_cast<std::size_t>(n) * sizeof(int));
    };
    REQUIRE(table.spread(30, move).ok());
    REQUIRE(table.append(4).ok());
    for (int g = 0; g < 3; ++g) {
        for (int i = 0; i < 4; ++i) { rows[static_cast<std::size_t>(table.row(g, i))] = 10 * g + i; }
    }
    for (const index_t less : {20, 12}) {
        index_t calls = 0;
        REQUIRE(table
                    .spread(less,
                            [&](index_t from, index_t to, index_t n) {
                                CHECK(from != to);
                                move(from, to, n);
                                ++calls;
                            })
                    .ok());
        CHECK(calls == 2); // the first head stays where it is
        CHECK(table.capacity() == less);
        for (int g = 0; g < 3; ++g) {
            for (int i = 0; i < 4; ++i) {
                CHECK(rows[static_cast<std::size_t>(table.row(g, i))] == 10 * g + i);
            }
        }
    }
    CHECK(table.room() == 0);
}

TEST_CASE("flat_cache: too little memory, too much, and plans of other caches change nothing",
          "[compact][errors]") {
    flat_cache table(support::plan_of({{0, 1}, {0, 1, 2}}), 1.0);
    const auto no_call = [](index_t, index_t, index_t) { CHECK(false); };
    CHECK(table.append(1).code() == errc::no_room);
    CHECK(table.append(1).needed() == 5 + 2 * 3);
    CHECK(table.append(7).needed() == 5 + 2 * 7);
    CHECK(table.spread(4, no_call).code() == errc::no_room);
    CHECK(table.spread(4, no_call).needed() == 5);
    CHECK(table.spread_into(index_t{1} << 31, no_call).code() == errc::index_overflow);
    CHECK(table.compact(support::plan_of({{0, 1}})).code() == errc::plan_mismatch);
    CHECK(table.compact(support::plan_of({{0, 2}, {0}})).code() == errc::plan_mismatch);
    CHECK(table.total_rows() == 5);
    CHECK(table.capacity() == 5);
}

TEST_CASE("flat_cache: without heads it is a table that starts with 0, whatever memory it was spread over",
          "[compact]") {
    flat_cache table(0);
    const auto never = [](auto...) { FAIL("no head has rows"); };
    CHECK(table.append(5).ok());
    CHECK(table.spread(9, never).ok());
    CHECK(table.spread_into(7, never).ok());
    CHECK(table.begins().size() == 1);
    CHECK(table.begins()[0] == 0);
    CHECK(table.capacity() == 0);
    CHECK(table.rows_for(3) == 0);
}

TEST_CASE("flat_cache: wrong numbers make a cache without heads, and each call answers why",
          "[compact][errors]") {
    constexpr index_t huge = index_t{1} << 62;
    constexpr double infinity = std::numeric_limits<double>::infinity();
    const auto no_call = [](index_t, index_t, index_t) { CHECK(false); };
    const std::vector<std::pair<index_t, double>> wrong{
        {-1, 0.25}, {huge, 0.25},  {flat_cache::most_heads + 1, 0.25},           {2, 0.0},
        {2, -1.0},  {2, infinity}, {2, std::numeric_limits<double>::quiet_NaN()}};
    for (const auto& [heads, growth] : wrong) {
        flat_cache table(heads, growth);
        CAPTURE(heads, growth);
        CHECK(table.validate().code() == errc::invalid_parameter);
        CHECK(table.kv_heads() == 0);
        CHECK(table.capacity() == 0);
        CHECK(table.append(1) == table.validate());
        CHECK(table.spread(5, no_call) == table.validate());
        CHECK(table.spread_into(5, no_call) == table.validate());
        CHECK(table.compact(keep_plan{}) == table.validate());
        float element = 0;
        const flat_rows<float> rows(&element, table, 1);
        CHECK(rows.validate() == table.validate());
        CHECK(rows.extent(2) == 0);
    }
    CHECK_FALSE(flat_cache(support::plan_of({{0, 1}}), -1.0).validate().ok());
}

TEST_CASE("flat_cache: no number of tokens or rows overflows, what no table can hold is said before memory "
          "is taken",
          "[compact][errors]") {
    constexpr index_t most = std::numeric_limits<index_t>::max();
    flat_cache table(support::plan_of({{0, 1}, {0, 1, 2}}), 1e300);
    CHECK(table.append(-1).code() == errc::invalid_parameter);
    CHECK(table.rows_for(-1) == flat_cache::most_rows); // 1e300 times as much room, as far as a table goes
    CHECK(table.rows_for(most) == most);
    CHECK(table.rows_for((most - 5) / 2) == 5 + (most - 5) / 2 * 2);
    CHECK(table.append(1) == status{errc::no_room, "", flat_cache::most_rows});
    CHECK(table.append(index_t{1} << 30) == status{errc::index_overflow, "", 5 + (index_t{2} << 30)});
    CHECK(table.append(most) == status{errc::index_overflow, "", most});
    const auto no_call = [](index_t, index_t, index_t) { CHECK(false); };
    CHECK(table.spread(most, no_call).code() == errc::index_overflow);
    CHECK(table.spread(-1, no_call) == status{errc::no_room, "", 5});
    CHECK(table.total_rows() == 5);
    CHECK(table.capacity() == 5);
}

TEST_CASE("flat_rows: rows are written as those of any view, rounded, and no other is touched", "[compact]") {
    static_assert(row_store<flat_rows<f16>> && row_store<ragged<f16>>);
    static_assert(cache_view<flat_rows<const f16>> && !row_store<flat_rows<const f16>>);
    flat_cache table(support::plan_of({{0, 1}, {0, 1, 2}}));
    const f16 before{0xdead};
    std::vector<f16> memory(16, before); // of 8 rows, which have room between them
    REQUIRE(table.spread(8, [](index_t, index_t, index_t) {}).ok());
    const flat_rows<f16> rows(memory.data(), table, 2);
    const float tile[] = {1, 2, 3, 4.0001f};
    store_rows(rows, 1, 1, 2, tile);
    const auto first = static_cast<std::size_t>(2 * table.row(1, 1));
    for (std::size_t i = 0; i < memory.size(); ++i) {
        const bool is_written = first <= i && i < first + 4;
        CHECK(memory[i].bits ==
              (is_written ? element_traits<f16>::from_float(tile[i - first]) : before).bits);
    }
}

TEST_CASE("flat_rows: wrong numbers make an empty view", "[compact][errors]") {
    const flat_cache table(support::plan_of({{0, 1}}));
    std::vector<float> memory(2);
    for (const auto& rows : {flat_rows<float>(nullptr, table, 1), flat_rows<float>(memory.data(), table, -1),
                             flat_rows<float>(memory.data(), table, index_t{1} << 40)}) {
        CHECK(rows.validate().code() == errc::invalid_parameter);
        for (const std::size_t r : {0u, 1u, 2u}) { CHECK(rows.extent(r) == 0); }
        CHECK(compact_in_place(rows, support::plan_of({{1}})) == rows.validate());
    }
    CHECK(flat_rows<float>(nullptr, table, 0).validate().ok());
    CHECK(flat_rows<float>(memory.data(), table, 1).validate().ok());
    // So long that most_rows of them are what memory can address at most.
    constexpr index_t longest =
        std::numeric_limits<index_t>::max() / 16 / index_t{sizeof(float)} / flat_cache::most_rows;
    CHECK(flat_rows<float>(memory.data(), table, longest).validate().ok());
    CHECK(flat_rows<float>(memory.data(), table, longest + 1).validate().code() == errc::invalid_parameter);
}

TEST_CASE("spread_rows: keys and values move together, the same array twice moves once, an overlapping one "
          "is refused",
          "[compact]") {
    support::random r(5);
    for (int round = 0; round < 50; ++round) {
        flat_cache table(support::plan_of({{0, 1, 2}, {}, {0, 1}}));
        std::vector<f16> keys = support::random_elements<f16>(r, 40), values = keys;
        const auto first_row = [&](index_t g, index_t i) {
            return keys[static_cast<std::size_t>(table.row(g, i) * 2)].bits;
        };
        const std::vector<std::uint16_t> before{first_row(0, 0), first_row(0, 2), first_row(2, 0),
                                                first_row(2, 1)};
        const auto k = [&] { return flat_rows<f16>(keys.data(), table, 2); };
        const auto left = [&] {
            return std::vector<std::uint16_t>{first_row(0, 0), first_row(0, 2), first_row(2, 0),
                                              first_row(2, 1)};
        };
        const auto all = support::bytes_of(keys);
        const flat_rows<f16> shifted(keys.data() + 2, table, 2);
        CHECK(spread_rows(table, 14, k(), shifted).code() == errc::views_overlap);
        flat_cache other = table;
        CHECK(spread_rows(table, 14, k(), flat_rows<f16>(values.data(), other, 2)).code() ==
              errc::invalid_parameter);
        CHECK(spread_rows(table, 4, k(), k()) == status{errc::no_room, "", 5});
        CHECK(spread_rows(table, index_t{1} << 40, k(), k()).code() == errc::index_overflow);
        CHECK(support::bytes_of(keys) == all);
        CHECK(table.capacity() == 5);
        const bool same = r.chance(0.5);
        REQUIRE(
            spread_rows(table, r.between(5, 20), k(), same ? k() : flat_rows<f16>(values.data(), table, 2))
                .ok());
        CHECK(left() == before);
        if (!same) { CHECK(support::bytes_of(values) == support::bytes_of(keys)); }
    }
}
