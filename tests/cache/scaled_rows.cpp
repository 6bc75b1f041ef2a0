// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/cache/scaled_rows.hpp>
#include <kvtrim/compact/compact_in_place.hpp>
#include <kvtrim/core/fp8.hpp>
#include <kvtrim/policy/snapkv.hpp>

#include "support/checks.hpp"
#include "support/cpu_levels.hpp"

#include <vector>

namespace {

using namespace kvtrim;

struct codes {
    std::vector<std::int8_t> data;
    std::vector<float> scales, zeros;
};

constexpr index_t heads = 2, rows_of_head = 90, head_dim = 37;

codes random_codes(support::random& r) {
    codes c;
    for (index_t i = 0; i < heads * rows_of_head * head_dim; ++i) {
        c.data.push_back(static_cast<std::int8_t>(r.between(-128, 127)));
        c.scales.push_back(static_cast<float>((0.3 + r.uniform()) / 100));
        c.zeros.push_back(static_cast<float>(r.between(-20, 20)));
    }
    return c;
}

float value(int code, float scale, float zero) {
    return scale * (static_cast<float>(code) - zero);
}

const std::array<index_t, 3> extents{heads, rows_of_head, head_dim};
const std::array<index_t, 2> token_major{head_dim, heads* head_dim};

// How engines share scales.
const std::array<index_t, 3> sharing[] = {
    {rows_of_head, 1, 0}, {1, heads, 0}, {0, 1, 0}, {head_dim, 0, 1}, {1, 0, 0}, {0, 0, 0}, {37 * 90, 37, 1}};

} // namespace

TEST_CASE("scaled_rows: any sharing of scales, with zero points and without", "[cache]") {
    support::random r(1);
    const codes c = random_codes(r);
    for (const auto& strides : sharing) {
        for (const bool with_zeros : {false, true}) {
            const scaled_rows<const std::int8_t> rows(
                c.data.data(), extents, token_major,
                {c.scales.data(), strides, with_zeros ? c.zeros.data() : nullptr});
            support::at_each_cpu_level([&] {
                std::vector<float> tile(40 * 37 + 1, 0.25f);
                rows.load_rows(1, 50, 40, tile.data());
                CHECK(tile.back() == 0.25f);
                for (index_t t = 0; t < 40; ++t) {
                    for (index_t d = 0; d < head_dim; ++d) {
                        const auto at =
                            static_cast<std::size_t>(strides[0] + (50 + t) * strides[1] + d * strides[2]);
                        const auto code =
                            c.data[static_cast<std::size_t>(head_dim * (1 + heads * (50 + t)) + d)];
                        REQUIRE(tile[static_cast<std::size_t>(t * head_dim + d)] ==
                                value(code, c.scales[at], with_zeros ? c.zeros[at] : 0.0f));
                    }
                }
            });
        }
    }
}

TEST_CASE("scaled_rows: fp8 codes with a scale per head", "[cache]") {
    support::random r(2);
    std::vector<f8_e4m3> data(heads * rows_of_head * head_dim);
    for (auto& x : data) { x = element_traits<f8_e4m3>::from_float(static_cast<float>(100 * r.normal())); }
    const std::vector<float> scales{0.013f, 0.021f};
    const scaled_rows<const f8_e4m3> rows(data.data(), extents, {rows_of_head * head_dim, head_dim},
                                          {scales.data(), {1, 0, 0}});
    support::at_each_cpu_level([&] {
        std::vector<float> tile(90 * 37);
        rows.load_rows(1, 0, 90, tile.data());
        for (std::size_t i = 0; i < tile.size(); ++i) {
            REQUIRE(tile[i] == scales[1] * to_float(data[tile.size() + i]));
        }
    });
}

TEST_CASE("scaled_rows: a policy plans as it does over the decoded floats, score by score", "[cache]") {
    support::random r(3);
    const codes c = random_codes(r);
    const support::layer_data layer =
        support::random_layer({.tokens = rows_of_head, .head_dim = head_dim}, 3);
    const eviction_request request{.budget = per_head(30), .protect = {.window_tokens = 8}};
    const scaled_rows<const std::int8_t> rows(c.data.data(), extents, token_major,
                                              {c.scales.data(), {rows_of_head, 1, 0}, c.zeros.data()});
    std::vector<float> decoded(static_cast<std::size_t>(heads * rows_of_head * head_dim));
    for (index_t g = 0; g < heads; ++g) {
        rows.load_rows(g, 0, rows_of_head, decoded.data() + g * rows_of_head * head_dim);
    }
    support::at_each_cpu_level([&] {
        const auto coded = support::run(snapkv(), kvtrim::layer(rows).with_queries(layer.queries()), request);
        const auto floats =
            support::run(snapkv(),
                         kvtrim::layer(strided(decoded.data(), {heads, rows_of_head, head_dim}))
                             .with_queries(layer.queries()),
                         request);
        REQUIRE(coded.answer.ok());
        CHECK(coded.importance == floats.importance);
        CHECK(support::kept_sets(coded.plan) == support::kept_sets(floats.plan));
    });
}

TEST_CASE("scaled_rows: rows move with the scales that are theirs", "[cache]") {
    const keep_plan plan = support::plan_of({{0, 2, 3, 50, 89}, {7, 8}});
    for (const auto& strides : {sharing[0], sharing[1], sharing[3], sharing[4], sharing[6]}) {
        support::random r(4);
        codes c = random_codes(r);
        const codes before = c;
        const scaled_rows<std::int8_t, float> rows(c.data.data(), extents, token_major,
                                                   {c.scales.data(), strides, c.zeros.data()});
        const scaled_rows<const std::int8_t> old(before.data.data(), extents, token_major,
                                                 {before.scales.data(), strides, before.zeros.data()});
        compaction_report report;
        REQUIRE(compact_in_place(rows, plan, &report).ok());
        const index_t own_scales = strides[1] == 0 ? 0 : strides[2] == 0 ? 1 : head_dim;
        CHECK(report.bytes_after == 7 * (head_dim + 8 * own_scales));
        for (index_t g = 0; g < heads; ++g) {
            std::vector<float> got(37), expected(37);
            for (index_t i = 0; i < plan.kept_tokens(g); ++i) {
                rows.load_rows(g, i, 1, got.data());
                old.load_rows(g, plan.row(g)[static_cast<std::size_t>(i)], 1, expected.data());
                REQUIRE(got == expected);
            }
        }
    }
}

TEST_CASE(
    "scaled_rows: wrong numbers and a row that may move without its scale give an empty source that says "
    "why",
    "[cache][errors]") {
    std::vector<std::int8_t> data(2 * 3 * 4);
    std::vector<float> scales(2 * 3 * 4, 1.0f);
    const auto answer = [&](auto* code, auto* scale, const std::array<index_t, 3>& strides,
                            const std::array<index_t, 3>& shape = {2, 3, 4}) {
        using code_type = std::remove_pointer_t<decltype(code)>;
        using float_type = std::remove_pointer_t<decltype(scale)>;
        const scaled_rows<code_type, float_type> rows(code, shape, {12, 4}, {scale, strides});
        const status s = rows.validate();
        for (std::size_t r = 0; r < 3; ++r) { CHECK(rows.extent(r) == (s.ok() ? shape[r] : 0)); }
        CHECK(kvtrim::layer(rows).validate() == s);
        return std::string(s.what());
    };
    const std::int8_t* fixed = data.data();
    const float* fixed_scales = scales.data();
    const std::string moves =
        "scaled_rows: a row that may move has a scale that moves with it: make the codes const, "
        "or the scales not const and of one head each";
    CHECK(answer(data.data(), fixed_scales, {3, 1, 0}) == moves);
    CHECK(answer(data.data(), scales.data(), {0, 1, 0}) == moves);
    CHECK(answer(fixed, fixed_scales, {0, 1, 0}) == "ok");
    CHECK(answer(data.data(), fixed_scales, {4, 0, 1}) == "ok");
    CHECK(answer(fixed, fixed_scales, {3, 1, 2}) == "scaled_rows: scales have a channel stride of 0 or 1");
    const std::string missing = "scaled_rows: codes and scales must not be null";
    CHECK(answer(fixed, static_cast<const float*>(nullptr), {3, 1, 0}) == missing);
    CHECK(answer(static_cast<const std::int8_t*>(nullptr), fixed_scales, {3, 1, 0}) == missing);
    CHECK(answer(static_cast<const std::int8_t*>(nullptr), fixed_scales, {3, 1, 0}, {2, 0, 4}) == "ok");
    CHECK(answer(fixed, fixed_scales, {3, 1, 0}, {2, -3, 4}) == "scaled_rows: extents must not be negative");
    constexpr index_t most = std::numeric_limits<index_t>::max();
    CHECK(answer(fixed, fixed_scales, {3, 1, 0}, {most, most, most}) ==
          "scaled_rows: extents or strides beyond what memory can hold");
}
