// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/layer_cascade.hpp>

#include <kvtrim/allocate/adaptive.hpp>

#include "support/checks.hpp"
#include "support/random_scores.hpp"

#include <set>

using namespace kvtrim;
using namespace support;

namespace {

using rows_of_layers = std::vector<oracle::matrix>; // [layers][rows][columns]

rows_of_layers random_layers(support::random& r, score_kind kind) {
    rows_of_layers layers(static_cast<std::size_t>(r.between(1, 6)));
    const index_t heads = r.between(1, 4);
    for (auto& layer : layers) {
        for (index_t h = 0; h < heads; ++h) { layer.push_back(random_row(r, r.between(0, 50), kind)); }
    }
    return layers;
}

// The definition: each row's best `safeguard`, and of all others the best of all rows; ties by arrival.
std::vector<std::vector<std::set<std::size_t>>> one_shot(const rows_of_layers& layers, std::size_t total,
                                                         std::size_t safeguard) {
    struct entry {
        double score;
        std::size_t layer, row, column;
    };
    std::vector<std::vector<std::set<std::size_t>>> kept(layers.size());
    std::vector<entry> competing;
    std::size_t places = total;
    for (std::size_t l = 0; l < layers.size(); ++l) {
        for (std::size_t h = 0; h < layers[l].size(); ++h) {
            const oracle::token_set order = oracle::ranking(layers[l][h]);
            const std::size_t safe = std::min(safeguard, order.size());
            kept[l].emplace_back(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(safe));
            places -= safe;
            for (std::size_t c = 0; c < layers[l][h].size(); ++c) {
                if (kept[l][h].count(c) == 0) { competing.push_back({layers[l][h][c], l, h, c}); }
            }
        }
    }
    std::stable_sort(competing.begin(), competing.end(),
                     [](const entry& a, const entry& b) { return oracle::ranks_before(a.score, b.score); });
    for (std::size_t i = 0; i < std::min(places, competing.size()); ++i) {
        kept[competing[i].layer][competing[i].row].insert(competing[i].column);
    }
    return kept;
}

std::size_t candidates_of(const rows_of_layers& layers) {
    std::size_t all = 0;
    for (const auto& layer : layers) { all += total_length(layer); }
    return all;
}

status push(layer_cascade& cascade, const oracle::matrix& layer) {
    score_memory memory(layer);
    return cascade.push(memory.importance_rows());
}

oracle::token_set as_set(std::span<const layer_cascade::column_index> columns) {
    return {columns.begin(), columns.end()};
}

} // namespace

TEST_CASE("layer_cascade: layer by layer it keeps what one cut over all layers keeps", "[policy][oracle]") {
    support::random r(901);
    for (int i = 0; i < 400; ++i) {
        const rows_of_layers layers =
            random_layers(r, r.one_of({score_kind::distinct, score_kind::tied, score_kind::odd}));
        const auto total =
            static_cast<std::size_t>(r.between(0, static_cast<index_t>(candidates_of(layers))));
        const std::size_t rows = layers.size() * layers[0].size();
        const auto safeguard = static_cast<std::size_t>(r.between(0, static_cast<index_t>(total / rows)));
        CAPTURE(i, total, safeguard);
        layer_cascade cascade(static_cast<index_t>(total), static_cast<index_t>(safeguard));
        for (std::size_t l = 0; l < layers.size(); ++l) {
            REQUIRE(push(cascade, layers[l]).ok());
            CHECK(cascade.held_tokens() <= static_cast<index_t>(total));
            // After each layer: what one cut over the layers so far keeps.
            const auto expected = one_shot(
                {layers.begin(), layers.begin() + static_cast<std::ptrdiff_t>(l) + 1}, total, safeguard);
            for (std::size_t k = 0; k <= l; ++k) {
                for (std::size_t h = 0; h < layers[k].size(); ++h) {
                    const auto got = as_set(cascade.kept(static_cast<index_t>(k), static_cast<index_t>(h)));
                    CHECK(got == oracle::token_set(expected[k][h].begin(), expected[k][h].end()));
                }
            }
        }
    }
}

TEST_CASE("layer_cascade: it ends with the budgets of the adaptive allocator over all rows", "[policy]") {
    support::random r(902);
    for (int i = 0; i < 200; ++i) {
        const index_t heads = r.between(1, 3);
        const index_t columns = r.between(1, 60);
        rows_of_layers layers(static_cast<std::size_t>(r.between(1, 5)));
        oracle::matrix all;
        for (auto& layer : layers) {
            for (index_t h = 0; h < heads; ++h) { layer.push_back(random_row(r, columns, score_kind::tied)); }
            all.insert(all.end(), layer.begin(), layer.end());
        }
        const index_t rows = std::ssize(all);
        const index_t total = r.between(0, rows * columns);
        const adaptive allocator{.safeguard_ratio = r.one_of({0.0, 0.2, 0.5, 0.9, 1.0})};
        score_memory memory(all);
        std::vector<index_t> budgets(all.size());
        workspace none = workspace::counting();
        REQUIRE(allocator.allocate(memory.importance_rows(), total, budgets, none).ok());
        layer_cascade cascade(total, allocator.safeguard_of(total, rows));
        for (const auto& layer : layers) { REQUIRE(push(cascade, layer).ok()); }
        CAPTURE(i, heads, columns, total, allocator.safeguard_ratio);
        for (index_t q = 0; q < rows; ++q) {
            CHECK(std::ssize(cascade.kept(q / heads, q % heads)) == budgets[static_cast<std::size_t>(q)]);
        }
    }
}

TEST_CASE("layer_cascade: kept and evicted are what was there before, and plans lead from one to the other",
          "[policy]") {
    support::random r(903);
    for (int i = 0; i < 150; ++i) {
        const rows_of_layers layers = random_layers(r, score_kind::tied);
        const index_t total = r.between(0, static_cast<index_t>(candidates_of(layers)));
        const index_t prefix = r.between(0, 3);
        const index_t suffix = r.between(0, 3);
        layer_cascade cascade(total, 0);
        // What each layer's cache holds, by original row: prefix, candidates, suffix.
        std::vector<std::vector<std::vector<index_t>>> caches;
        for (const auto& layer : layers) {
            auto& cache = caches.emplace_back();
            for (const auto& row : layer) {
                cache.emplace_back(static_cast<std::size_t>(prefix + std::ssize(row) + suffix));
                std::iota(cache.back().begin(), cache.back().end(), index_t{0});
            }
            REQUIRE(push(cascade, layer).ok());
            for (std::size_t k = 0; k < caches.size(); ++k) {
                const auto l = static_cast<index_t>(k);
                keep_plan plan;
                REQUIRE(cascade.plan(l, prefix, suffix, plan).ok());
                REQUIRE(plan.check_invariants(
                    [&](index_t q) { return std::ssize(caches[k][static_cast<std::size_t>(q)]); }));
                bool lost = false;
                for (index_t h = 0; h < plan.rows(); ++h) {
                    auto& rows = caches[k][static_cast<std::size_t>(h)];
                    lost = lost || plan.kept_tokens(h) != std::ssize(rows);
                    std::vector<index_t> survivors;
                    for (const auto row : plan.row(h)) {
                        survivors.push_back(rows[static_cast<std::size_t>(row)]);
                    }
                    rows = survivors;
                    std::vector<index_t> expected;
                    for (index_t t = 0; t < prefix; ++t) { expected.push_back(t); }
                    for (const auto c : cascade.kept(l, h)) { expected.push_back(prefix + c); }
                    const auto columns = std::ssize(layers[k][static_cast<std::size_t>(h)]);
                    for (index_t t = 0; t < suffix; ++t) { expected.push_back(prefix + columns + t); }
                    CHECK(rows == expected);
                }
                CHECK(cascade.changed(l) == lost);
            }
        }
    }
}

TEST_CASE("layer_cascade: nothing kept, everything kept, no rows", "[policy][odd]") {
    layer_cascade nothing(0, 0);
    REQUIRE(push(nothing, {{3, 1, 2}, {}}).ok());
    CHECK(nothing.kept(0, 0).empty());
    CHECK(as_set(nothing.evicted(0, 0)) == oracle::token_set{0, 1, 2});
    CHECK(nothing.held_tokens() == 0);

    layer_cascade everything(1000, 0);
    REQUIRE(push(everything, {{3, 1, 2}, {}}).ok());
    CHECK(as_set(everything.kept(0, 0)) == oracle::token_set{0, 1, 2});
    CHECK(!everything.changed(0));
    CHECK(everything.layers() == 1);
    CHECK(everything.rows(0) == 2);

    constexpr double infinity = std::numeric_limits<double>::infinity();
    constexpr double nan = std::numeric_limits<double>::quiet_NaN();
    layer_cascade odd(3, 0);
    REQUIRE(push(odd, {{nan, infinity, 1, -infinity}}).ok());
    REQUIRE(push(odd, {{nan, infinity, 2, infinity}}).ok());
    CHECK(as_set(odd.kept(0, 0)) == oracle::token_set{1});
    CHECK(as_set(odd.kept(1, 0)) == oracle::token_set{1, 3});
}

TEST_CASE("layer_cascade: safeguards beyond the total are refused, and nothing changes", "[policy][errors]") {
    layer_cascade cascade(5, 2);
    REQUIRE(push(cascade, {{1, 2, 3}, {4, 5, 6}}).ok());
    const status refused = push(cascade, {{7, 8, 9}});
    CHECK(refused.code() == errc::budget_below_protection);
    CHECK(refused.needed() == 6);
    CHECK(cascade.layers() == 1);
    CHECK(cascade.held_tokens() == 5);
    CHECK(as_set(cascade.kept(0, 1)) == oracle::token_set{0, 1, 2});
    REQUIRE(push(cascade, {{7}}).ok()); // a shorter row is safe with less
    CHECK(as_set(cascade.kept(0, 1)) == oracle::token_set{1, 2});
}

TEST_CASE("layer_cascade: one of wrong numbers holds nothing and answers every push with why",
          "[policy][errors]") {
    constexpr index_t least = std::numeric_limits<index_t>::min();
    CHECK(layer_cascade(0, 0).validate().ok());
    for (layer_cascade wrong : {layer_cascade(-1, 0), layer_cascade(0, -1), layer_cascade(least, least),
                                layer_cascade::invalid({errc::invalid_parameter, "no", 3})}) {
        CHECK(wrong.validate().code() == errc::invalid_parameter);
        CHECK(push(wrong, {{1, 2, 3}}) == wrong.validate());
        CHECK(wrong.layers() == 0);
        CHECK(wrong.held_tokens() == 0);
        keep_plan plan = made_before();
        CHECK(wrong.plan(0, 0, 0, plan).code() == errc::invalid_parameter);
        CHECK(plan == made_before());
    }
}

TEST_CASE("layer_cascade: rows whose offsets are none, layers that were not pushed and impossible prefixes "
          "are refused",
          "[policy][errors]") {
    constexpr index_t most = std::numeric_limits<index_t>::max();
    layer_cascade cascade(3, 1);
    REQUIRE(push(cascade, {{3, 1, 2}, {5}}).ok());
    std::vector<float> values(4, 9.0f);
    for (const std::vector<index_t>& offsets :
         std::vector<std::vector<index_t>>{{}, {0, 5}, {-1, 4}, {0, 3, 2, 4}, {0, most}, {-most, most}}) {
        CHECK(cascade.push({offsets, values}).code() == errc::invalid_table);
        CHECK(cascade.layers() == 1);
        CHECK(as_set(cascade.kept(0, 0)) == oracle::token_set{0, 2});
        CHECK(as_set(cascade.evicted(0, 0)) == oracle::token_set{1});
    }
    keep_plan plan = made_before();
    for (const index_t layer : {index_t{1}, index_t{-1}, most, -most}) {
        const status s = cascade.plan(layer, 0, 0, plan);
        CHECK(s.code() == errc::invalid_parameter);
        CHECK(s.needed() == 1);
    }
    CHECK(cascade.plan(0, -1, 0, plan).code() == errc::invalid_parameter);
    CHECK(cascade.plan(0, 0, -most - 1, plan).code() == errc::invalid_parameter);
    CHECK(cascade.plan(0, most, most, plan).needed() == most);
    const index_t limit = std::numeric_limits<std::int32_t>::max();
    CHECK(cascade.plan(0, limit - 2, 0, plan).code() ==
          errc::index_overflow); // its last row would be 2^31 - 1
    CHECK(cascade.plan(0, limit - 2, 0, plan).needed() == limit + 1);
    CHECK(plan == made_before());
    CHECK(cascade.plan(0, 1, 2, plan).ok());

    layer_cascade open(most, most); // everything stays, and sums do not wrap
    REQUIRE(push(open, {{3, 1, 2}, {5}}).ok());
    CHECK(open.held_tokens() == 4);
}

TEST_CASE("layer_cascade: a copy goes its own way", "[policy]") {
    layer_cascade first(2, 0);
    REQUIRE(push(first, {{1, 2, 3}}).ok());
    layer_cascade second = first;
    REQUIRE(push(second, {{9, 9}}).ok());
    CHECK(as_set(first.kept(0, 0)) == oracle::token_set{1, 2});
    CHECK(second.kept(0, 0).empty());
}
