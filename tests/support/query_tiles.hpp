// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// One tile of queries against key tiles in any order, beside the oracle: for kernels::query_tile and every version of it.

#include "support/prefill.hpp"

#include <kvtrim/kernels/query_tile.hpp>

#include <cmath>
#include <string>
#include <vector>

namespace support {

// Queries at cache rows [first_query, ...) and the keys of some cache rows; rows lie `gap` floats apart.
struct tile_case {
    index_t head_dim = 8, value_dim = 8, queries = 1, first_query = 0, gap = 0;
    std::vector<index_t> positions; // of the keys, ascending
    std::vector<float> q, k, v;     // [queries], [keys], [keys]
    float sink_logit = kvtrim::kernels::masked_logit;
    kvtrim::kernels::logit_rules rules{1, 0, 0};

    [[nodiscard]] index_t key_stride() const { return head_dim + gap; }
    [[nodiscard]] index_t value_stride() const { return value_dim + gap; }
    [[nodiscard]] index_t keys() const { return static_cast<index_t>(positions.size()); }
    [[nodiscard]] float* query(index_t i) { return q.data() + i * (head_dim + gap); }
    [[nodiscard]] float* key(index_t t) { return k.data() + t * key_stride(); }
    [[nodiscard]] float* value(index_t t) { return v.data() + t * value_stride(); }
};

inline tile_case empty_tile_case(index_t head_dim, index_t value_dim, index_t queries, index_t keys,
                                 index_t first_query) {
    tile_case c{head_dim, value_dim, queries, first_query, 0, {}, {}, {}, {}};
    for (index_t t = 0; t < keys; ++t) { c.positions.push_back(t); }
    c.q = zeros(queries * head_dim);
    c.k = zeros(keys * head_dim);
    c.v = zeros(keys * value_dim);
    return c;
}

inline tile_case random_tile_case(random& r, index_t max_queries) {
    tile_case c;
    c.head_dim = r.chance(0.5) ? r.one_of({1, 8, 16, 64, 128}) : r.between(1, 130);
    c.value_dim = r.chance(0.5) ? c.head_dim : r.between(1, 130);
    c.queries = r.chance(0.3) ? max_queries : r.between(1, max_queries);
    c.gap = r.chance(0.5) ? 0 : r.between(1, 7);
    const index_t keys = r.between(1, 150);
    c.first_query = r.chance(0.3) ? keys : r.between(0, keys);
    for (index_t t = 0; t < keys; ++t) { c.positions.push_back(t); }
    c.q = zeros(c.queries * (c.head_dim + c.gap));
    c.k = zeros(keys * c.key_stride());
    c.v = zeros(keys * c.value_stride());
    for (auto* values : {&c.q, &c.k, &c.v}) {
        for (float& x : *values) { x = static_cast<float>(r.normal()); }
    }
    c.rules.scale = r.chance(0.2) ? 1.0f : 1.0f / std::sqrt(static_cast<float>(c.head_dim));
    c.rules.soft_cap = r.chance(0.3) ? static_cast<float>(1 + 50 * r.uniform()) : 0.0f;
    c.rules.sliding_window = r.chance(0.3) ? r.between(1, keys) : 0;
    if (r.chance(0.3)) { c.sink_logit = static_cast<float>(3 * r.normal()); }
    return c;
}

struct tile_result {
    std::vector<float> out, log_sum_exp;
};

// Queries, keys and values as a tile of that element gets them.
template <class Element>
tile_case as_stored(tile_case c) {
    for (auto* values : {&c.q, &c.k, &c.v}) {
        for (float& x : *values) { x = kvtrim::to_float(kvtrim::element_traits<Element>::from_float(x)); }
    }
    return c;
}

template <class Element>
std::vector<Element> elements_of(const std::vector<float>& values) {
    std::vector<Element> elements;
    for (const float x : values) { elements.push_back(kvtrim::element_traits<Element>::from_float(x)); }
    return elements;
}

// Keys in tiles of any size, shown in any order.
template <class Tile>
tile_result attend_in_tiles(const tile_case& c, random& r) {
    namespace kernels = kvtrim::kernels;
    // Aligned for doubles, and between guards.
    constexpr float guard = 4242.0f;
    const auto own_floats = static_cast<std::size_t>(Tile::own_floats(c.head_dim, c.value_dim));
    const auto shared_floats = static_cast<std::size_t>(Tile::shared_floats(c.head_dim, c.value_dim));
    std::vector<float> own(own_floats + 16, guard), shared(shared_floats + 16, guard);
    const auto tile = [&] { return Tile(own.data(), shared.data(), c.head_dim, c.value_dim); };
    using element = typename Tile::element;
    const auto queries = elements_of<element>(c.q), all_keys = elements_of<element>(c.k),
               all_values = elements_of<element>(c.v);
    tile().begin(queries.data(), c.head_dim + c.gap, c.queries, c.sink_logit, c.rules);
    struct piece {
        index_t begin, count;
    };
    std::vector<piece> pieces;
    for (index_t t = 0; t < c.keys(); t += pieces.back().count) {
        const index_t most = std::min(Tile::max_keys(c.head_dim), c.keys() - t);
        pieces.push_back({t, r.chance(0.5) ? most : r.between(1, most)});
    }
    for (std::size_t i = pieces.size(); i > 1; --i) { std::swap(pieces[i - 1], pieces[r.bits() % i]); }
    for (const piece& p : pieces) {
        const kernels::basic_key_tile<element> keys{all_keys.data() + p.begin * c.key_stride(),
                                                    c.key_stride(),
                                                    all_values.data() + p.begin * c.value_stride(),
                                                    c.value_stride(),
                                                    p.count,
                                                    c.positions[static_cast<std::size_t>(p.begin)]};
        Tile::pack(keys, shared.data(), c.head_dim, c.value_dim);
        tile().attend(keys, c.rules, {c.queries, c.first_query});
    }
    tile_result result{std::vector<float>(static_cast<std::size_t>(c.queries * c.value_dim) + 1, guard),
                       std::vector<float>(static_cast<std::size_t>(c.queries) + 1, guard)};
    const bool with_lse = r.chance(0.9);
    tile().finish(c.queries, result.out.data(), with_lse ? result.log_sum_exp.data() : nullptr);
    const auto is_guarded = [&](const std::vector<float>& v, std::size_t from) {
        return std::all_of(v.begin() + static_cast<std::ptrdiff_t>(from), v.end(),
                           [](float x) { return x == guard; });
    };
    CHECK(is_guarded(own, own_floats));
    CHECK(is_guarded(shared, shared_floats));
    CHECK(is_guarded(result.out, result.out.size() - 1));
    CHECK(is_guarded(result.log_sum_exp, with_lse ? result.log_sum_exp.size() - 1 : 0));
    result.out.pop_back();
    result.log_sum_exp.pop_back();
    if (!with_lse) { result.log_sum_exp.clear(); }
    return result;
}

// An empty text, or the first difference from the oracle.
inline std::string difference(const tile_result& got, const tile_case& c, double tolerance,
                              double lse_tolerance) {
    tile_case copy = c;
    const auto floats = [](const float* p, index_t count) { return oracle::row(p, p + count); };
    oracle::matrix values;
    for (index_t t = 0; t < c.keys(); ++t) { values.push_back(floats(copy.value(t), c.value_dim)); }
    oracle::attention_setup setup;
    setup.scale = static_cast<double>(c.rules.scale);
    setup.soft_cap = static_cast<double>(c.rules.soft_cap);
    setup.sliding_window = static_cast<std::size_t>(c.rules.sliding_window);
    for (index_t i = 0; i < c.queries; ++i) {
        oracle::row logits;
        for (index_t t = 0; t < c.keys(); ++t) {
            const bool seen =
                oracle::sees_row(setup, static_cast<std::size_t>(c.first_query + i),
                                 static_cast<std::size_t>(c.positions[static_cast<std::size_t>(t)]));
            logits.push_back(seen ? oracle::logit(floats(copy.query(i), c.head_dim),
                                                  floats(copy.key(t), c.head_dim), setup)
                                  : oracle::masked);
        }
        const auto expected = oracle::attend(logits, values, static_cast<std::size_t>(c.value_dim),
                                             static_cast<double>(c.sink_logit));
        const std::string at = "query " + std::to_string(i) + ", ";
        const std::span<const float> row(got.out.data() + i * c.value_dim,
                                         static_cast<std::size_t>(c.value_dim));
        if (const std::string text = difference(row, expected.out, tolerance, tolerance); !text.empty()) {
            return at + text;
        }
        if (got.log_sum_exp.empty()) { continue; }
        const float lse = got.log_sum_exp[static_cast<std::size_t>(i)];
        if (static_cast<double>(lse) == expected.log_sum_exp) { continue; } // also where both are infinite
        const std::string text = difference({&lse, 1}, {expected.log_sum_exp}, lse_tolerance, lse_tolerance);
        if (!text.empty()) { return at + "log-sum-exp, " + text; }
    }
    return {};
}

// The rules that every version of a query tile keeps. A tile of bf16 rounds its weights to bf16 too, so its outputs are
// compared within that; its log-sum-exp is as exact as the others'.
template <class Tile>
struct query_tile_checks {
    static constexpr float infinity = std::numeric_limits<float>::infinity();
    static constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

    using element = typename Tile::element;

    // From the oracle on the elements as stored; tolerance is for logits of ordinary size.
    static std::string difference_of(const tile_result& got, const tile_case& c, double tolerance = 2e-5) {
        const double of_weights = sizeof(element) == 2 ? 1e-2 : 0;
        return difference(got, as_stored<element>(c), std::max(tolerance, of_weights), tolerance);
    }

    static std::string run(const tile_case& c, double tolerance = 2e-5, std::uint64_t seed = 1) {
        random r(seed);
        return difference_of(attend_in_tiles<Tile>(c, r), c, tolerance);
    }

    static void random_shapes(std::uint64_t seed, int cases) {
        random r(seed);
        for (int n = 0; n < cases; ++n) {
            const tile_case c = random_tile_case(r, Tile::max_queries);
            CAPTURE(n, c.head_dim, c.value_dim, c.queries, c.keys(), c.first_query, c.gap, c.rules.soft_cap,
                    c.rules.sliding_window, c.sink_logit);
            CHECK(run(c, 2e-5, r.bits()) == "");
        }
    }

    // Keys after the query and behind the window count for nothing, at the first and the last key of the window.
    static void masks() {
        tile_case c = empty_tile_case(1, 40, Tile::max_queries, 40, 4);
        for (index_t t = 0; t < 40; ++t) { c.value(t)[t] = 1; } // the output names the visible keys
        for (const index_t window : {0, 1, 2, 7, 40, 41}) {
            c.rules.sliding_window = window;
            random r(5);
            const tile_result got = attend_in_tiles<Tile>(c, r);
            int wrong = 0;
            for (index_t i = 0; i < c.queries; ++i) {
                for (index_t t = 0; t < 40; ++t) {
                    const index_t distance = c.first_query + i - t;
                    const bool sees = distance >= 0 && (window == 0 || distance < window);
                    wrong += (got.out[static_cast<std::size_t>(i * 40 + t)] > 0) == sees ? 0 : 1;
                }
            }
            CAPTURE(window);
            CHECK(wrong == 0);
        }
        // A window longer than any prompt is none.
        c.rules.sliding_window = std::numeric_limits<index_t>::max();
        CHECK(run(c) == "");
    }

    // No key is visible: 0 and -infinity, or the sink alone.
    static void nothing_visible() {
        tile_case c = empty_tile_case(8, 8, 5, 6, 20);
        c.positions = {30, 31, 32, 33, 34, 35};
        std::fill(c.v.begin(), c.v.end(), 1.0f);
        random r(6);
        tile_result got = attend_in_tiles<Tile>(c, r);
        CHECK(std::all_of(got.out.begin(), got.out.end(), [](float x) { return x == 0; }));
        CHECK(run(c) == "");
        c.positions = {0, 1, 2, 3, 4, 5};
        c.rules.sliding_window = 2;
        CHECK(run(c) == "");
        c.sink_logit = 0.25f;
        CHECK(run(c) == "");
        got = attend_in_tiles<Tile>(c, r);
        CHECK(std::all_of(got.out.begin(), got.out.end(), [](float x) { return x == 0; }));
    }

    // Some keys are visible to some queries only after many that are not.
    static void late_keys() {
        tile_case c = empty_tile_case(4, 3, 3, 50, 48);
        random r(7);
        for (auto* values : {&c.q, &c.k, &c.v}) {
            for (float& x : *values) { x = static_cast<float>(r.normal()); }
        }
        c.rules.sliding_window = 1;
        for (std::uint64_t seed = 0; seed < 10; ++seed) { CHECK(run(c, 2e-5, seed) == ""); }
    }

    static void large_logits() {
        random r(8);
        for (const float size : {-1e30f, -1e6f, -300.0f, 300.0f, 1e6f, 1e30f}) {
            tile_case c = random_tile_case(r, 4);
            c.head_dim = 1;
            c.gap = 0;
            c.rules = {1, 0, 0};
            c.q.assign(c.q.size(), 1.0f);
            // Whole numbers times the size: the products are exact or far apart.
            for (float& x : c.k) { x = size * static_cast<float>(r.between(1, 4)); }
            c.v = zeros(c.keys() * c.value_dim);
            for (float& x : c.v) { x = static_cast<float>(r.normal()); }
            CAPTURE(size, c.queries, c.keys());
            CHECK(run(c, 1e-4) == "");
        }
    }

    // A broken key counts for nothing; one that is infinitely wanted takes everything, without a NaN.
    static void broken_keys() {
        random r(9);
        for (const float broken : {not_a_number, infinity, -infinity}) {
            tile_case c = empty_tile_case(8, 8, 7, 90, 90);
            for (auto* values : {&c.q, &c.k, &c.v}) {
                for (float& x : *values) {
                    x = static_cast<float>(0.1 + r.uniform());
                } // positive: no NaN from inf
            }
            c.key(17)[3] = broken;
            CAPTURE(broken);
            const tile_result got = attend_in_tiles<Tile>(c, r);
            tile_result without_lse = got;
            without_lse.log_sum_exp.clear(); // of the largest float: each version in its own units
            CHECK(difference_of(broken > 0 ? without_lse : got, c) == "");
            for (index_t t = 0; t < 90; ++t) { c.key(t)[2] = not_a_number; }
            const tile_result nothing = attend_in_tiles<Tile>(c, r);
            CHECK(std::all_of(nothing.out.begin(), nothing.out.end(), [](float x) { return x == 0; }));
        }
    }

    // A query of NaN sees nothing, and the queries beside it do not notice.
    static void broken_queries() {
        random r(10);
        tile_case c = random_tile_case(r, 4);
        c.queries = 3;
        c.q = zeros(3 * (c.head_dim + c.gap));
        for (float& x : c.q) { x = static_cast<float>(r.normal()); }
        c.query(1)[0] = not_a_number;
        CHECK(run(c) == "");
    }

    // What a query does not see changes no bit of its result; what it sees and is not finite spoils its channel alone.
    static void odd_values() {
        random r(12);
        for (int n = 0; n < 60; ++n) {
            tile_case c = random_tile_case(r, Tile::max_queries);
            c.rules.scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim)); // no weight is 0
            const std::uint64_t seed = r.bits();
            random order(seed), same_order(seed);
            const tile_result before = attend_in_tiles<Tile>(c, order);
            const index_t odd_key = r.between(0, c.keys() - 1);
            const index_t channel = r.between(0, c.value_dim - 1);
            c.value(odd_key)[channel] = r.one_of({not_a_number, infinity, -infinity});
            const tile_result after = attend_in_tiles<Tile>(c, same_order);
            int wrong = 0;
            for (index_t i = 0; i < c.queries; ++i) {
                const index_t distance = c.first_query + i - odd_key;
                const bool sees =
                    distance >= 0 && (c.rules.sliding_window == 0 || distance < c.rules.sliding_window);
                for (index_t d = 0; d < c.value_dim; ++d) {
                    const auto at = static_cast<std::size_t>(i * c.value_dim + d);
                    const bool spoilt = sees && d == channel;
                    const bool right =
                        spoilt ? !std::isfinite(after.out[at]) : after.out[at] == before.out[at];
                    wrong += right ? 0 : 1;
                }
            }
            CAPTURE(n, c.queries, c.keys(), c.first_query, odd_key, channel, c.rules.sliding_window);
            CHECK(wrong == 0);
            CHECK(after.log_sum_exp == before.log_sum_exp);
        }
    }

    // Keys that are wanted more and more: every tile rescales, and the error does not add up.
    static void rising_logits() {
        tile_case c = empty_tile_case(1, 2, 3, 20000, 20000);
        for (index_t t = 0; t < 20000; ++t) {
            c.key(t)[0] = static_cast<float>(t) * 1e-4f;
            c.value(t)[0] = static_cast<float>(t % 7);
            c.value(t)[1] = 0.7f;
        }
        c.query(0)[0] = 1;  // every tile has a new maximum
        c.query(1)[0] = -1; // none has
        c.query(2)[0] = 0;
        std::vector<float> own(static_cast<std::size_t>(Tile::own_floats(1, 2)) + 16);
        std::vector<float> shared(static_cast<std::size_t>(Tile::shared_floats(1, 2)) + 16);
        Tile tile(own.data(), shared.data(), 1, 2);
        const auto q = elements_of<element>(c.q), k = elements_of<element>(c.k),
                   v = elements_of<element>(c.v);
        tile.begin(q.data(), 1, 3, kvtrim::kernels::masked_logit, c.rules);
        for (index_t t = 0; t < 20000; t += 20) {
            const kvtrim::kernels::basic_key_tile<element> keys{k.data() + t, 1, v.data() + 2 * t, 2, 20, t};
            Tile::pack(keys, shared.data(), 1, 2);
            tile.attend(keys, c.rules, {3, 20000});
        }
        tile_result got{zeros(6), zeros(3)};
        tile.finish(3, got.out.data(), got.log_sum_exp.data());
        CHECK(difference_of(got, c) == "");
    }

    // A soft cap that caps nothing changes nothing.
    static void large_soft_caps() {
        random r(11);
        tile_case c = empty_tile_case(8, 8, 4, 60, 60);
        for (auto* values : {&c.q, &c.k, &c.v}) {
            for (float& x : *values) { x = static_cast<float>(r.normal()); }
        }
        for (const float cap : {100.0f, 1e4f, 1e9f}) {
            c.rules.soft_cap = cap;
            CAPTURE(cap);
            CHECK(run(c) == "");
        }
    }
};

} // namespace support
