// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/compact/write_move_sources.hpp>

#include "support/catch.hpp"

#include <initializer_list>
#include <vector>

namespace {

using namespace kvtrim;
using table = std::vector<std::int32_t>;

// A plan that keeps these tokens of each head.
keep_plan keeping(std::initializer_list<table> rows) {
    std::vector<index_t> counts;
    for (const table& row : rows) { counts.push_back(std::ssize(row)); }
    keep_plan plan;
    REQUIRE(plan.reset(counts).ok());
    index_t r = 0;
    for (const table& row : rows) { std::copy(row.begin(), row.end(), plan.writable_row(r++).begin()); }
    return plan;
}

struct written {
    status answer;
    table offsets, sources;
};

// Into tables of `width` columns whose entries were -1.
written write(const std::vector<keep_plan>& plans, const std::vector<index_t>& first, index_t width,
              index_t kv_heads = 2) {
    written w{{}, table(plans.size() + 1, -1), table(static_cast<std::size_t>(kv_heads * width), -1)};
    w.answer = write_move_sources(plans, first, w.offsets, w.sources);
    return w;
}

bool is_untouched(const written& w) {
    return w.offsets == table(w.offsets.size(), -1) && w.sources == table(w.sources.size(), -1);
}

} // namespace

TEST_CASE(
    "write_move_sources: tokens behind the prefix, request after request, with room behind them left alone",
    "[compact]") {
    const std::vector<keep_plan> plans{keeping({{0, 1, 5, 9}, {0, 1, 2, 3}}), keeping({{4}, {7}}),
                                       keeping({{0, 1, 2}, {0, 1, 2}})};
    const written w = write(plans, {2, 0, 3}, 5);
    REQUIRE(w.answer.ok());
    CHECK(move_source_columns(plans, std::vector<index_t>{2, 0, 3}) == 3);
    CHECK(w.offsets == table{0, 2, 3, 3});
    CHECK(w.sources == table{5, 9, 4, -1, -1, 2, 3, 7, -1, -1});
}

TEST_CASE(
    "write_move_sources: no source is before its destination, so that moves in order need no second buffer",
    "[compact][properties]") {
    std::uint32_t seed = 1;
    const auto below = [&](index_t n) {
        seed = seed * 1664525u + 1013904223u;
        return static_cast<index_t>(seed >> 8) % n;
    };
    for (int round = 0; round < 200; ++round) {
        const index_t tokens = 1 + below(60), prefix = below(tokens), heads = 1 + below(4);
        const index_t kept = prefix + below(tokens - prefix + 1);
        keep_plan plan;
        REQUIRE(plan.reset(std::vector<index_t>(static_cast<std::size_t>(heads), kept)).ok());
        for (index_t h = 0; h < heads; ++h) {
            auto next = plan.writable_row(h).begin();
            index_t left = kept;
            for (index_t t = 0; t < tokens && left > 0; ++t) {
                const bool is_kept = t < prefix || below(tokens - t) < left;
                if (is_kept) { *next++ = static_cast<std::int32_t>(t), --left; }
            }
        }
        const std::vector<keep_plan> plans{plan};
        const written w = write(plans, {prefix}, kept - prefix, heads);
        REQUIRE(w.answer.ok());
        std::vector<std::int32_t> cache(static_cast<std::size_t>(tokens));
        for (index_t h = 0; h < heads; ++h) {
            for (std::size_t t = 0; t < cache.size(); ++t) { cache[t] = static_cast<std::int32_t>(t); }
            for (index_t i = 0; i < kept - prefix; ++i) {
                const auto source =
                    static_cast<std::size_t>(w.sources[static_cast<std::size_t>(h * (kept - prefix) + i)]);
                REQUIRE(static_cast<index_t>(source) >= prefix + i);
                cache[static_cast<std::size_t>(prefix + i)] = cache[source];
            }
            const auto row = plan.row(h);
            CHECK(table(cache.begin(), cache.begin() + kept) == table(row.begin(), row.end()));
        }
    }
}

TEST_CASE("write_move_sources: what the engine's kernel cannot carry out is refused, and nothing is written",
          "[compact][errors]") {
    const auto refused = [](const written& w, errc code) {
        CAPTURE(w.answer.what());
        CHECK(w.answer.code() == code);
        CHECK(is_untouched(w));
    };
    const keep_plan good = keeping({{0, 1, 5}, {0, 1, 2}});
    refused(write({keeping({{0, 1, 5}, {0, 1}})}, {2}, 9), errc::rows_differ);
    refused(write({good, keeping({{0, 1}})}, {2, 0}, 9), errc::rows_differ);
    refused(write({good, keeping({{0, 2, 5}, {0, 1, 2}})}, {2, 2}, 9), errc::plan_mismatch);
    refused(write({good}, {4}, 9), errc::plan_mismatch);
    refused(write({good}, {-1}, 9), errc::invalid_parameter);
    CHECK(write({good}, {-1}, 9).answer.needed() == 0);
    refused(write(std::vector<keep_plan>(1), {-1}, 0, 0), errc::invalid_parameter);
    refused(write({keeping({{0, 5, 5}, {0, 1, 2}})}, {1}, 9), errc::plan_mismatch);
    refused(write({keeping({{-1, 1, 2}, {0, 1, 2}})}, {1}, 9), errc::plan_mismatch);
    refused(write({good, good}, {0}, 9), errc::invalid_parameter);
    CHECK(write({good, good}, {0}, 9).answer.needed() == 3); // offsets
    const written narrow = write({good, good}, {0, 2}, 3);
    refused(narrow, errc::invalid_parameter);
    CHECK(narrow.answer.needed() == 4);
    table offsets(3, -1), sources(18, -1);
    CHECK(write_move_sources(std::vector{good}, std::vector<index_t>{0}, offsets, sources).code() ==
          errc::invalid_parameter);
    CHECK(offsets == table(3, -1));
}

TEST_CASE("write_move_sources: no requests, and a plan that was never made, are empty tables", "[compact]") {
    const written none = write(std::vector<keep_plan>{}, {}, 0);
    REQUIRE(none.answer.ok());
    CHECK(none.offsets == table{0});
    const written never = write(std::vector<keep_plan>(1), {0}, 0);
    REQUIRE(never.answer.ok());
    CHECK(never.offsets == table{0, 0});
}

TEST_CASE("write_move_sources: tables that share memory with each other are refused, with nothing written") {
    std::vector<keep_plan> plans(1);
    REQUIRE(plans[0].reset(std::vector<index_t>{3}).ok());
    for (std::int32_t i = 0; i < 3; ++i) { plans[0].writable_row(0)[static_cast<std::size_t>(i)] = 2 * i; }
    const std::vector<index_t> first{0};
    std::vector<std::int32_t> memory(8, -1);
    const auto before = memory;
    const auto all = std::span(memory);
    CHECK(write_move_sources(plans, first, all.first(2), all.subspan(1, 3)).code() == errc::views_overlap);
    CHECK(memory == before);
    CHECK(write_move_sources(plans, first, all.first(2), all.subspan(2, 3)).ok());
    CHECK(memory[4] == 4);
}
