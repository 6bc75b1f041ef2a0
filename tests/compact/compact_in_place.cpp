// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/compact/compact_in_place.hpp>

#include <kvtrim/cache/ggml_rows.hpp>

#include <kvtrim/compact/compact_to_flat.hpp>

#include "compact/random_cache.hpp"
#include "core/own_views.hpp"

#include <string>
#include <vector>

namespace {

using namespace kvtrim;
using support::random_cache;

// Which elements lie outside the survivors' rows and must not have been written: all that no view element maps to.
template <class T>
std::vector<bool> mapped(const strided<T, 3>& v, const std::vector<T>& elements) {
    std::vector<bool> is_mapped(elements.size(), false);
    for (index_t g = 0; g < v.extent(0); ++g) {
        for (index_t t = 0; t < v.extent(1); ++t) {
            for (index_t d = 0; d < v.extent(2); ++d) {
                is_mapped[static_cast<std::size_t>(&v(g, t, d) - elements.data())] = true;
            }
        }
    }
    return is_mapped;
}

// Compacts and compares; an empty text if all is right.
template <class T>
std::string compact_and_check(random_cache<T> cache, const keep_plan& plan) {
    const std::vector<T> expected = support::survivors(cache.view(), plan);
    const std::vector<T> before = cache.elements;
    const std::vector<bool> is_mapped = mapped(cache.view(), cache.elements);
    std::vector<T> gathered(expected.size());
    if (!gather(cache.view(), plan, std::span(gathered)).ok()) { return "gather refused"; }
    compaction_report report;
    if (!compact_in_place(cache.view(), plan, &report).ok()) { return "refused"; }
    std::vector<T> moved;
    for (index_t g = 0; g < plan.rows(); ++g) {
        for (index_t i = 0; i < plan.kept_tokens(g); ++i) {
            for (index_t d = 0; d < cache.extents[2]; ++d) { moved.push_back(cache.view()(g, i, d)); }
        }
    }
    if (support::bytes_of(moved) != support::bytes_of(expected)) { return "survivors differ"; }
    if (support::bytes_of(gathered) != support::bytes_of(expected)) { return "gathered rows differ"; }
    for (std::size_t i = 0; i < before.size(); ++i) {
        if (!is_mapped[i] && std::memcmp(&before[i], &cache.elements[i], sizeof(T)) != 0) {
            return "wrote between the rows";
        }
    }
    const auto row_size = cache.extents[2] * static_cast<index_t>(sizeof(T));
    if (report.bytes_before != cache.extents[0] * cache.extents[1] * row_size ||
        report.bytes_after != plan.total_tokens() * row_size) {
        return "wrong report";
    }
    return {};
}

} // namespace

TEMPLATE_TEST_CASE(
    "compact_in_place: survivors lie bit for bit at the front of their head, in any memory order",
    "[compact]", float, double, f16, bf16) {
    support::random r(sizeof(TestType));
    for (int round = 0; round < 200; ++round) {
        const auto cache = support::any_cache<TestType>(r, support::any_cache_shape(r));
        const std::vector<index_t> lengths(static_cast<std::size_t>(cache.extents[0]), cache.extents[1]);
        CAPTURE(round, cache.extents, cache.strides);
        CHECK(compact_and_check(cache, support::any_plan(r, lengths)) == "");
    }
}

TEST_CASE("compact_in_place: the orders of real engines work, with rows that touch and rows that do not",
          "[compact]") {
    support::random r(5);
    const std::vector<index_t> lengths(3, 33);
    const std::vector<std::array<std::size_t, 3>> orders{{0, 1, 2}, {1, 0, 2}, {0, 2, 1}, {2, 1, 0}};
    for (const auto& order : orders) {
        for (const bool gaps : {false, true}) {
            for (const bool backwards : {false, true}) {
                CAPTURE(order, gaps, backwards);
                const random_cache<f16> cache(r, {3, 33, 24}, order, gaps, backwards);
                CHECK(compact_and_check(cache, support::any_plan(r, lengths)) == "");
            }
        }
    }
}

TEST_CASE("compact_in_place: keeping all rows changes no byte, keeping none neither", "[compact]") {
    support::random r(6);
    auto cache = support::any_cache<float>(r, {2, 9, 4});
    const auto before = support::bytes_of(cache.elements);
    CHECK(compact_in_place(cache.view(), support::plan_of({{0, 1, 2, 3, 4, 5, 6, 7, 8}, {}})).ok());
    CHECK(support::bytes_of(cache.elements) == before);
}

TEST_CASE("compact_in_place: rows without elements need no memory", "[compact][odd]") {
    const keep_plan plan = support::plan_of({{1, 2}, {2}});
    for (const index_t step : {1, 3}) {
        for (const index_t row : {0, 10}) {
            const strided<float, 3> cache(nullptr, {2, 3, 0}, {3 * row, row, step});
            CHECK(compact_in_place(cache, plan).ok());
        }
    }
}

TEST_CASE("compact_in_place: a plan for another cache is refused and leaves every byte", "[compact]") {
    support::random r(7);
    auto cache = support::any_cache<float>(r, {3, 10, 4});
    const auto before = support::bytes_of(cache.elements);
    for (const keep_plan& plan : support::wrong_plans(support::lengths_of(cache.view()))) {
        compaction_report report{1, 2};
        CHECK(compact_in_place(cache.view(), plan, &report).code() == errc::plan_mismatch);
        CHECK(report.bytes_before == 1);
        CHECK(report.bytes_after == 2);
    }
    CHECK(support::bytes_of(cache.elements) == before);
}

TEST_CASE("compact_in_place: keys and values are cut together", "[compact]") {
    support::random r(8);
    for (int round = 0; round < 20; ++round) {
        auto keys = support::any_cache<f16>(r, {3, 20, 8});
        auto values = support::any_cache<bf16>(r, {3, 20, 5});
        const keep_plan plan = support::any_plan(r, {20, 20, 20});
        auto keys_alone = keys;
        auto values_alone = values;
        compaction_report report;
        REQUIRE(compact_in_place(keys.view(), values.view(), plan, &report).ok());
        REQUIRE(compact_in_place(keys_alone.view(), plan).ok());
        REQUIRE(compact_in_place(values_alone.view(), plan).ok());
        CHECK(support::bytes_of(keys.elements) == support::bytes_of(keys_alone.elements));
        CHECK(support::bytes_of(values.elements) == support::bytes_of(values_alone.elements));
        CHECK(report.bytes_before == 60 * (16 + 10));
        CHECK(report.bytes_after == plan.total_tokens() * (16 + 10));
    }
}

TEST_CASE("compact_in_place: if the plan does not fit the values or the keys alone, neither changes",
          "[compact]") {
    support::random r(9);
    const keep_plan plan = support::plan_of({{1, 4}, {2, 3}});
    for (const auto& [key_tokens, value_tokens] : {std::pair{5, 4}, std::pair{4, 5}}) {
        auto keys = support::any_cache<float>(r, {2, key_tokens, 4});
        auto values = support::any_cache<float>(r, {2, value_tokens, 4});
        const auto keys_before = support::bytes_of(keys.elements);
        const auto values_before = support::bytes_of(values.elements);
        CHECK(compact_in_place(keys.view(), values.view(), plan).code() == errc::plan_mismatch);
        CHECK(support::bytes_of(keys.elements) == keys_before);
        CHECK(support::bytes_of(values.elements) == values_before);
    }
}

TEST_CASE("compact_in_place: an mdspan-like view is compacted as a strided one", "[compact]") {
    support::random r(10);
    std::vector<float> elements = support::random_elements<float>(r, 2 * 7 * 3);
    std::vector<float> same = elements;
    const keep_plan plan = support::plan_of({{1, 5, 6}, {0, 3}});
    REQUIRE(compact_in_place(own::mdspan_like<float>(elements.data(), {2, 7, 3}, {3, 6, 1}), plan).ok());
    REQUIRE(compact_in_place(strided<float, 3>(same.data(), {2, 7, 3}, {3, 6, 1}), plan).ok());
    CHECK(support::bytes_of(elements) == support::bytes_of(same));
}

TEST_CASE("compact_in_place: a cache that moves its own rows is asked for each row that moves", "[compact]") {
    struct move {
        index_t head, from, to;
        bool operator==(const move&) const = default;
    };
    struct paged {
        std::vector<move>* moves;

        static index_t extent(std::size_t r) { return r == 0 ? 2 : r == 1 ? 6 : 1; }
        static index_t rows(index_t head) { return head == 0 ? 6 : 3; }
        static void load_rows(index_t, index_t, index_t, float*) {}
        void move_row(index_t head, index_t from, index_t to) const { moves->push_back({head, from, to}); }
    };
    std::vector<move> moves;
    const paged cache{&moves};
    CHECK(compact_in_place(cache, support::plan_of({{0, 3, 4}, {0, 3}})).code() == errc::plan_mismatch);
    CHECK(moves.empty());
    CHECK(compact_in_place(cache, support::plan_of({{0, 3, 4}, {0, 2}})).ok());
    CHECK(moves == std::vector<move>{{0, 3, 1}, {0, 4, 2}, {1, 2, 1}});
}

TEST_CASE(
    "compact_in_place: a cache that moves its own rows reports what they occupy, alone and as one of two",
    "[compact]") {
    struct packed { // four bits per channel
        static index_t extent(std::size_t r) { return r == 0 ? 2 : r == 1 ? 6 : 16; }
        static index_t rows(index_t head) { return head == 0 ? 6 : 3; }
        static index_t row_bytes() { return 8; }
        static void load_rows(index_t, index_t, index_t, float*) {}
        static void move_row(index_t, index_t, index_t) {}
    };
    const keep_plan plan = support::plan_of({{0, 3, 4}, {0, 2}});
    compaction_report report{1, 2};
    REQUIRE(compact_in_place(packed{}, plan, &report).ok());
    CHECK(report.bytes_before == 9 * 8);
    CHECK(report.bytes_after == 5 * 8);
    REQUIRE(compact_in_place(packed{}, packed{}, plan, &report).ok());
    CHECK(report.bytes_before == 2 * 9 * 8);
    CHECK(report.bytes_after == 2 * 5 * 8);
    const keep_plan wrong = support::plan_of({{0, 3, 4}, {0, 3}});
    CHECK(compact_in_place(packed{}, packed{}, wrong, &report).code() == errc::plan_mismatch);
    CHECK(report.bytes_after == 2 * 5 * 8);
    CHECK(compact_in_place(packed{}, plan, nullptr).ok());
}

TEST_CASE("compact_in_place: heads that move together report the bytes of whole tokens", "[compact]") {
    struct joined { // two heads of three elements in a row of four bytes
        bool together = true;

        static index_t extent(std::size_t r) { return r == 0 ? 2 : r == 1 ? 6 : 3; }
        static index_t row_bytes() { return 1; } // rounded down
        static index_t token_bytes() { return 4; }
        [[nodiscard]] bool heads_move_together() const { return together; }
        static void load_rows(index_t, index_t, index_t, float*) {}
        static void move_row(index_t, index_t, index_t) {}
        static void move_token(index_t, index_t) {}
    };
    const keep_plan plan = support::plan_of({{0, 3, 4}, {0, 3, 4}});
    compaction_report report;
    REQUIRE(compact_in_place(joined{}, plan, &report).ok());
    CHECK(report.bytes_before == 6 * 4);
    CHECK(report.bytes_after == 3 * 4);
    REQUIRE(compact_in_place(joined{false}, plan, &report).ok());
    CHECK(report.bytes_before == 2 * 6 * 1);
    CHECK(report.bytes_after == 2 * 3 * 1);
}

TEST_CASE("compact_in_place: blocks that heads would share, of no heads, are nothing to move",
          "[compact][odd]") {
    const auto cells = ggml_rows<block_q8_0>::heads_in_row(nullptr, {0, 3, 16}, 34);
    REQUIRE(cells.validate().ok());
    REQUIRE(cells.heads_move_together());
    CHECK(compact_in_place(cells, keep_plan{}).ok());
}
