// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/compact/rerotate_keys.hpp>

#include <kvtrim/compact/compact_in_place.hpp>
#include <kvtrim/compact/compact_to_flat.hpp>

#include "compact/random_cache.hpp"
#include "oracle/expected_attention.hpp"

#include <cmath>

using namespace kvtrim;
using namespace support;

namespace {

std::vector<float> frequencies_of(support::random& r, index_t pairs) {
    std::vector<float> table;
    for (index_t i = 0; i < pairs; ++i) { // one octave after the other, a little off as YaRN's are
        table.push_back(
            static_cast<float>(std::exp(-0.15 * static_cast<double>(i)) * (0.8 + 0.2 * r.uniform())));
    }
    return table;
}

rope random_rope(support::random& r, const std::vector<float>& table) {
    return {.inverse_frequencies = table,
            .attention_factor = r.one_of({1.0f, 1.3f}),
            .pairing = r.chance(0.5) ? rope_pairing::half_split : rope_pairing::interleaved};
}

// Keys before RoPE, and what a cache would hold of them.
struct model {
    oracle::tensor keys; // [heads][tokens]
    oracle::rotation rotation;

    model(support::random& r, const std::array<index_t, 3>& shape, const rope& rope_of_model)
        : keys(static_cast<std::size_t>(shape[0]),
               oracle::matrix(static_cast<std::size_t>(shape[1]),
                              oracle::row(static_cast<std::size_t>(shape[2])))),
          rotation{{rope_of_model.inverse_frequencies.begin(), rope_of_model.inverse_frequencies.end()},
                   rope_of_model.pairing == rope_pairing::interleaved,
                   static_cast<double>(rope_of_model.attention_factor)} {
        for (auto& head : keys) {
            for (auto& key : head) {
                for (double& x : key) { x = r.normal(); }
            }
        }
    }
    [[nodiscard]] oracle::row at(std::size_t head, std::size_t token, double position) const {
        return rotation.rotated(keys[head][token], position);
    }
    // Positions count from `origin`.
    template <class T>
    void fill(const strided<T, 3>& cache, index_t origin = 0) const {
        for (index_t g = 0; g < cache.extent(0); ++g) {
            for (index_t t = 0; t < cache.extent(1); ++t) {
                const oracle::row key = at(static_cast<std::size_t>(g), static_cast<std::size_t>(t),
                                           static_cast<double>(origin + t));
                for (index_t d = 0; d < cache.extent(2); ++d) {
                    cache(g, t, d) =
                        element_traits<T>::from_float(static_cast<float>(key[static_cast<std::size_t>(d)]));
                }
            }
        }
    }
};

// What two roundings of an element may cost a key of length `norm`.
template <class T>
double tolerance(double norm) {
    return norm * (std::is_same_v<T, float> ? 4e-7 : std::is_same_v<T, f16> ? 1.1e-3 : 9e-3);
}

// The largest error in units of what rounding may cost; row(g, i) are the rows after the rotation.
template <class T, class Row, class Position>
double worst_error(const model& m, const keep_plan& plan, index_t dim, Row&& row, Position&& position) {
    double worst = 0;
    for (index_t g = 0; g < plan.rows(); ++g) {
        for (index_t i = 0; i < plan.kept_tokens(g); ++i) {
            const auto token = static_cast<std::size_t>(plan.row(g)[static_cast<std::size_t>(i)]);
            const oracle::row expected = m.at(static_cast<std::size_t>(g), token, position(g, i));
            const double allowed = tolerance<T>(std::sqrt(oracle::dot(expected, expected)));
            for (index_t d = 0; d < dim; ++d) {
                const double got = static_cast<double>(to_float(row(g, i, d)));
                worst = std::max(worst, std::abs(got - expected[static_cast<std::size_t>(d)]) / allowed);
            }
        }
    }
    return worst;
}

template <class View>
status rerotated(const View& keys, const rope& r, const row_positions& from) {
    growing_workspace memory;
    workspace scratch = memory.of_bytes(rerotate_keys_bytes(keys, r));
    return rerotate_keys(keys, r, from, scratch);
}

template <class T>
void check_closed_up(support::random& r, const std::array<index_t, 3>& shape, index_t pairs) {
    const std::vector<float> table = frequencies_of(r, pairs);
    const rope rope_of_model = random_rope(r, table);
    const model m(r, shape, rope_of_model);
    const keep_plan plan = any_plan(r, std::vector<index_t>(static_cast<std::size_t>(shape[0]), shape[1]));
    const auto closed_up = [](index_t, index_t i) { return static_cast<double>(i); };
    CAPTURE(shape[0], shape[1], shape[2], pairs, rope_of_model.attention_factor,
            rope_of_model.pairing == rope_pairing::interleaved);

    random_cache<T> cache = any_cache<T>(r, shape);
    const strided<T, 3> keys = cache.view();
    m.fill(keys);
    REQUIRE(compact_in_place(keys, plan).ok());
    const random_cache<T> before = cache;
    REQUIRE(rerotated(keys, rope_of_model, positions_of(plan)).ok());
    CHECK(worst_error<T>(m, plan, shape[2], keys, closed_up) <= 1);
    // Nothing else is written: rows behind the survivors, and what lies between the rows.
    random_cache<T> rest = cache;
    random_cache<T> rest_before = before;
    for (index_t g = 0; g < shape[0]; ++g) {
        for (index_t i = 0; i < plan.kept_tokens(g); ++i) {
            for (index_t d = 0; d < 2 * pairs; ++d) {
                rest.view()(g, i, d) = rest_before.view()(g, i, d) = T{};
            }
        }
    }
    CHECK((bytes_of(rest.elements) == bytes_of(rest_before.elements)));

    random_cache<T> flat(r, shape, {0, 1, 2}, false, false);
    m.fill(flat.view());
    REQUIRE(compact_to_flat(flat.view(), plan).ok());
    const auto ragged_keys = flat_view(flat.elements.data(), plan, shape[2]);
    REQUIRE(rerotated(ragged_keys, rope_of_model, positions_of(plan)).ok());
    CHECK(worst_error<T>(
              m, plan, shape[2], [&](index_t g, index_t i, index_t d) { return ragged_keys.row(g, i)[d]; },
              closed_up) <= 1);
}

} // namespace

TEST_CASE("rerotate_keys: survivors equal keys rotated from scratch, for any element, layout and rope",
          "[compact][properties]") {
    support::random r(601);
    for (int i = 0; i < 60; ++i) {
        const index_t dim = r.one_of({2, 4, 8, 16, 20, 64, 128});
        const std::array<index_t, 3> shape{r.between(1, 4), r.between(1, 90), dim};
        const index_t pairs = r.chance(0.6) ? dim / 2 : r.between(0, dim / 2);
        check_closed_up<float>(r, shape, pairs);
        check_closed_up<f16>(r, shape, pairs);
        check_closed_up<bf16>(r, shape, pairs);
    }
}

TEST_CASE("rerotate_keys: any old and new positions, far ones and unordered ones too", "[compact]") {
    support::random r(602);
    for (const index_t far : {0, 1000, 1000000}) {
        const std::vector<float> table = frequencies_of(r, 8);
        const rope rope_of_model = random_rope(r, table);
        const model m(r, {2, 50, 16}, rope_of_model);
        random_cache<float> cache = any_cache<float>(r, {2, 50, 16});
        m.fill(cache.view(), far);
        const keep_plan plan = plan_of({{3, 4, 5, 20, 49}, {0, 1, 2}});
        REQUIRE(compact_in_place(cache.view(), plan).ok());
        std::vector<std::int32_t> from;
        for (const auto token : plan.kept()) { from.push_back(token + static_cast<std::int32_t>(far)); }
        const std::vector<std::int32_t> to{7, 6, 900000, 0, 3, 1, 1, static_cast<std::int32_t>(far)};
        const row_positions old_positions{plan.offsets(), from};
        const row_positions new_positions{plan.offsets(), to};
        growing_workspace memory;
        workspace scratch = memory.of_bytes(rerotate_keys_bytes(cache.view(), rope_of_model));
        REQUIRE(rerotate_keys(cache.view(), rope_of_model, old_positions, new_positions, scratch).ok());
        const auto wanted = [&](index_t g, index_t i) {
            return static_cast<double>(new_positions.row(g)[static_cast<std::size_t>(i)]);
        };
        CAPTURE(far);
        CHECK(worst_error<float>(m, plan, 16, cache.view(), wanted) <= 1);
    }
}

TEST_CASE("rerotate_keys: after a second cut, positions stored since the prompt lead to the same keys",
          "[compact]") {
    support::random r(603);
    const std::vector<float> table = frequencies_of(r, 16);
    const rope rope_of_model = random_rope(r, table);
    const model m(r, {1, 80, 32}, rope_of_model);
    random_cache<float> cache(r, {1, 80, 32}, {0, 1, 2}, false, false);
    m.fill(cache.view());
    const keep_plan first = any_plan(r, {80});
    oracle::token_set odd; // of the rows that the first cut left
    for (std::size_t i = 1; i < static_cast<std::size_t>(first.kept_tokens(0)); i += 2) { odd.push_back(i); }
    const keep_plan second = plan_of({odd});
    REQUIRE(compact_in_place(cache.view(), first).ok());
    REQUIRE(compact_in_place(cache.view(), second).ok());
    std::vector<std::int32_t> stored(odd.size());
    REQUIRE(second.gather_positions<std::int32_t>(0, first.kept(), stored).ok());
    REQUIRE(rerotated(cache.view(), rope_of_model, {second.offsets(), stored}).ok());
    const keep_plan both = plan_of({oracle::token_set(stored.begin(), stored.end())});
    CHECK(worst_error<float>(m, both, 32, cache.view(),
                             [](index_t, index_t i) { return static_cast<double>(i); }) <= 1);
}

TEST_CASE("rerotate_keys: a row whose position stays keeps its bits, whatever they are", "[compact][odd]") {
    support::random r(604);
    const std::vector<float> table = frequencies_of(r, 4);
    random_cache<float> cache(r, {2, 30, 8}, {0, 1, 2}, false, false); // any bits
    const auto before = bytes_of(cache.elements);
    const keep_plan plan = plan_of({{0, 1, 2, 3}, {0, 1}});
    REQUIRE(rerotated(cache.view(), {table}, positions_of(plan)).ok());
    CHECK((bytes_of(cache.elements) == before));
}

TEST_CASE("rerotate_keys: a NaN stays in its pair of channels", "[compact][odd]") {
    const std::vector<float> table{1.0f, 0.5f};
    std::vector<float> k{1, 2, 3, 4, 1, std::numeric_limits<float>::quiet_NaN(), 3, 4};
    const strided<float, 3> keys(k.data(), {1, 2, 4});
    const std::vector<std::int32_t> offsets{0, 2};
    const std::vector<std::int32_t> from{3, 9};
    REQUIRE(rerotated(keys, {table}, {offsets, from}).ok());
    for (std::size_t i = 0; i < 8; ++i) { CHECK(std::isnan(k[i]) == (i == 5 || i == 7)); }
}

TEST_CASE("rerotate_keys: any executor gives the same bits", "[compact]") {
    support::random r(605);
    const std::vector<float> table = frequencies_of(r, 8);
    random_cache<bf16> cache = any_cache<bf16>(r, {5, 70, 16});
    random_cache<bf16> other = cache;
    const keep_plan plan = any_plan(r, std::vector<index_t>(5, 70));
    REQUIRE(rerotated(cache.view(), {table}, positions_of(plan)).ok());
    growing_workspace memory;
    workspace scratch = memory.of_bytes(rerotate_keys_bytes(other.view(), rope{table}));
    REQUIRE(rerotate_keys(other.view(), {table}, positions_of(plan), scratch, thread_executor{}).ok());
    CHECK((bytes_of(cache.elements) == bytes_of(other.elements)));
}

TEST_CASE("rerotate_keys: no rows, no heads and no rotary channels are nothing to do", "[compact][odd]") {
    const std::vector<float> table{1.0f};
    const keep_plan no_rows = plan_of({{}, {}}), no_heads = plan_of({}), one_row = plan_of({{0}}),
                    made_by_nobody;
    CHECK(rerotated(strided<float, 3>(nullptr, {2, 0, 2}), {table}, positions_of(no_rows)).ok());
    CHECK(rerotated(strided<float, 3>(nullptr, {0, 5, 2}), {table}, positions_of(no_heads)).ok());
    CHECK(rerotated(strided<float, 3>(nullptr, {0, 5, 2}), {table}, positions_of(made_by_nobody)).ok());
    std::vector<float> k{1, 2};
    const strided<float, 3> keys(k.data(), {1, 1, 2});
    CHECK(rerotated(keys, {}, positions_of(one_row)).ok());
    CHECK(rerotated(keys, {table}, positions_of(made_by_nobody)).code() == errc::plan_mismatch);
    CHECK(k == std::vector<float>{1, 2});
}

TEST_CASE("rerotate_keys: bad input is named with the keys unchanged", "[compact][errors]") {
    support::random r(606);
    const std::vector<float> table = frequencies_of(r, 4);
    random_cache<float> cache = any_cache<float>(r, {2, 30, 8});
    const auto before = bytes_of(cache.elements);
    const keep_plan plan = plan_of({{5, 6}, {7}});
    const auto from = positions_of(plan);
    CHECK(rerotated(cache.view(), {table, -1.0f}, from).code() == errc::invalid_parameter);
    const keep_plan of_one_head = plan_of({{5}});
    CHECK(rerotated(cache.view(), {table}, positions_of(of_one_head)).code() == errc::plan_mismatch);
    oracle::token_set many(31);
    std::iota(many.begin(), many.end(), std::size_t{1});
    for (const keep_plan& longer : {plan_of({{5}, many}), plan_of({many, {5}})}) {
        CHECK(rerotated(cache.view(), {table}, positions_of(longer)).code() == errc::plan_mismatch);
    }
    const index_t needed = rerotate_keys_bytes(cache.view(), rope{table});
    for (const index_t bytes : {index_t{0}, needed / 2, needed - 65}) {
        std::vector<std::byte> few(static_cast<std::size_t>(bytes) + 64);
        const auto skip = static_cast<std::size_t>(-reinterpret_cast<std::uintptr_t>(few.data()) % 64);
        workspace scratch(std::span<std::byte>(few).subspan(skip, static_cast<std::size_t>(bytes)));
        const status answer = rerotate_keys(cache.view(), {table}, from, scratch);
        CHECK(answer.code() == errc::workspace_too_small);
        CHECK(answer.needed() == needed);
    }
    CHECK((bytes_of(cache.elements) == before));
}

TEST_CASE("rerotate_keys: wrong tables, ropes and views are named with the keys unchanged",
          "[compact][errors]") {
    const std::vector<float> table{1.0f, 0.5f};
    std::vector<float> k(16);
    std::iota(k.begin(), k.end(), 1.0f);
    const std::vector<float> before = k;
    const strided<float, 3> keys(k.data(), {2, 2, 4});
    growing_workspace memory;
    const auto answer = [&](const strided<float, 3>& view, const rope& r, const row_positions& from,
                            const row_positions& to) {
        workspace scratch = memory.of_bytes(1 << 16);
        const status s = rerotate_keys(view, r, from, to, scratch);
        CHECK(k == before);
        return s.code();
    };
    const std::vector<std::int32_t> offsets{0, 2, 3}, positions{3, 9, 4}, later{5, 10, 11};
    const row_positions from{offsets, positions}, to{offsets, later};
    // Every table, in turn as the old and as the new one.
    const std::vector<std::int32_t> descending{0, 2, 1}, before_0{-1, 1, 2}, beyond{0, 2, 4},
        below_0{3, 9, -1}, two{3, 9}, heads_differ{0, 3}, rows_differ{0, 1, 3};
    for (const row_positions& wrong :
         {row_positions{descending, positions}, row_positions{before_0, positions},
          row_positions{beyond, positions}, row_positions{offsets, below_0}, row_positions{offsets, two}}) {
        CHECK(answer(keys, {table}, wrong, to) == errc::invalid_table);
        CHECK(answer(keys, {table}, from, wrong) == errc::invalid_table);
        workspace scratch = memory.of_bytes(1 << 16);
        CHECK(rerotate_keys(keys, {table}, wrong, scratch).code() == errc::invalid_table);
        CHECK(k == before);
    }
    for (const row_positions& other :
         {row_positions{}, row_positions{heads_differ, positions}, row_positions{rows_differ, positions}}) {
        CHECK(answer(keys, {table}, other, to) == errc::plan_mismatch);
        CHECK(answer(keys, {table}, from, other) == errc::plan_mismatch);
    }
    const std::vector<float> three(3, 1.0f);
    CHECK(answer(keys, {three}, from, to) == errc::invalid_parameter);
    CHECK(answer(strided<float, 3>(k.data(), {2, -2, 4}), {table}, from, to) == errc::invalid_parameter);
    // Heads that lie in one place would be rotated once for each head.
    CHECK(answer(strided<float, 3>(k.data(), {2, 2, 4}, {0, 4, 1}), {table}, from, to) ==
          errc::views_overlap);
    CHECK(answer(strided<float, 3>(k.data(), {2, 2, 4}, {4, 0, 1}), {table}, from, to) ==
          errc::views_overlap);
    CHECK(rerotate_keys_bytes(strided<float, 3>(k.data(), {2, -2, 4}), rope{table}) == 0);
    CHECK(rerotate_keys_bytes(keys, rope{three}) == 0);
    const index_t most = std::numeric_limits<index_t>::max();
    CHECK(rerotate_keys_bytes(strided<float, 3>(nullptr, {most, 0, 4}), rope{table}) == 0);
}
