// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/cache/ggml_tensor_rows.hpp>
#include <kvtrim/cache/indexed_rows.hpp>
#include <kvtrim/compact/compact_in_place.hpp>
#include <kvtrim/compact/rerotate_keys.hpp>
#include <kvtrim/policy/criticalkv.hpp>

#include "support/checks.hpp"
#include "support/cpu_levels.hpp"
#include "support/ggml_cache.hpp"

#include <cstring>
#include <vector>

namespace {

using namespace kvtrim;
using support::largest_index;
using support::smallest_index;

// Random elements of a model's size [tokens, heads, head_dim], in a type's bits.
template <class T>
std::vector<T> random_elements(index_t count, support::random& r) {
    std::vector<T> out;
    for (index_t i = 0; i < count; ++i) {
        out.push_back(element_traits<T>::from_float(static_cast<float>(r.normal())));
    }
    return out;
}

std::string refusal(const ggml_tensor_rows& rows) {
    const status s = validate(rows);
    const bool empty = rows.extent(0) == 0 && rows.extent(1) == 0 && rows.extent(2) == 0;
    return s.code() == errc::invalid_parameter && empty ? s.what() : "";
}

// The same plan and scores, whether keys and values are seen through the typed views or the untyped ones.
template <class K, class V>
void require_same_plans(const K& keys, const V& values, const ggml_tensor_rows& k,
                        const ggml_tensor_rows& v) {
    const support::layer_data layer =
        support::random_layer({.tokens = 150, .head_dim = k.extent(2), .value_dim = v.extent(2)}, 3);
    const eviction_request request{.budget = per_head(40), .protect = {.window_tokens = 8}};
    const auto plan = [&](const auto& a, const auto& b) {
        return support::run(
            criticalkv(),
            kvtrim::layer(a, b).with_queries(layer.queries()).with_output_projection(layer.projection()),
            request);
    };
    support::at_each_cpu_level([&] {
        const auto typed = plan(keys, values), untyped = plan(k, v);
        REQUIRE(typed.answer.ok());
        CHECK(untyped.importance == typed.importance);
        CHECK(untyped.plan == typed.plan);
    });
}

} // namespace

TEMPLATE_TEST_CASE("ggml_tensor_rows: elements read, plan and move as those of strided", "[cache]", float,
                   f16, bf16) {
    support::random r(1);
    constexpr index_t heads = 2, tokens = 150, dim = 48;
    constexpr auto size = static_cast<index_t>(sizeof(TestType));
    constexpr int type = ggml_type_number<TestType>;
    std::vector<TestType> k = random_elements<TestType>(heads * tokens * dim, r), v = k;
    const strided keys(k.data(), {heads, tokens, dim}, {dim, heads * dim, 1});
    const strided values(v.data(), {heads, tokens, dim}, {dim * tokens, 1, tokens}); // transposed
    const ggml_tensor_rows rows(type, k.data(), {heads, tokens, dim}, {dim * size, heads * dim * size, size});
    const auto joined =
        ggml_tensor_rows::heads_in_row(type, k.data(), {heads, tokens, dim}, heads * dim * size);
    const ggml_tensor_rows across(type, v.data(), {heads, tokens, dim},
                                  {dim * tokens * size, size, tokens * size});
    REQUIRE(validate(rows).ok());
    REQUIRE(validate(across).ok());
    CHECK(rows.row_bytes() == dim * size);
    CHECK_FALSE(rows.heads_move_together());
    CHECK(keeps<bf16>(rows) == std::is_same_v<TestType, bf16>);
    CHECK(keeps<bf16>(across) == std::is_same_v<TestType, bf16>);
    CHECK(support::loaded(joined) == support::loaded(rows));
    require_same_plans(keys, values, rows, across);

    const keep_plan plan = support::plan_of({{0, 3, 4, 9, 149}, {1, 2, 18}});
    std::vector<TestType> k_of_strided = k, v_of_strided = v;
    REQUIRE(compact_in_place(strided(k_of_strided.data(), {heads, tokens, dim}, {dim, heads * dim, 1}),
                             strided(v_of_strided.data(), {heads, tokens, dim}, {dim * tokens, 1, tokens}),
                             plan)
                .ok());
    compaction_report report;
    REQUIRE(compact_in_place(rows, across, plan, &report).ok());
    CHECK(report.bytes_after == 2 * 8 * dim * size);
    CHECK(std::memcmp(k.data(), k_of_strided.data(), k.size() * sizeof(TestType)) == 0);
    CHECK(std::memcmp(v.data(), v_of_strided.data(), v.size() * sizeof(TestType)) == 0);
}

TEMPLATE_TEST_CASE("ggml_tensor_rows: blocks read, plan and move as those of ggml_rows", "[cache]",
                   block_q8_0, block_q4_0, block_q4_1, block_q5_0, block_q5_1, block_iq4_nl) {
    support::random r(2);
    for (const index_t dim : {64, 80}) {
        constexpr int type = ggml_type_number<TestType>;
        auto k = support::random_ggml_cache<TestType>(2, 150, dim, r);
        auto v = support::random_ggml_cache<TestType>(2, 150, 32, r);
        const auto keys = ggml_tensor_rows::heads_in_row(type, k.data(), {2, 150, dim}, k.row_bytes);
        constexpr auto size = static_cast<index_t>(sizeof(TestType));
        const ggml_tensor_rows values(type, v.data(), {2, 150, 32}, {size, 2 * size, size});
        REQUIRE(validate(keys).ok());
        REQUIRE(validate(values).ok());
        CHECK(support::loaded(keys) == k.decoded());
        CHECK(keys.heads_move_together() == (dim == 80));
        CHECK(keys.template as<ggml_rows<TestType>>() != nullptr);
        CHECK(keys.template as<strided<float, 3>>() == nullptr);
        require_same_plans(k.rows(), v.rows(), keys, values);

        auto same = k;
        const std::vector<oracle::token_set> kept(2, {0, 3, 4, 9, 149});
        const keep_plan plan = support::plan_of(kept);
        compaction_report report, expected;
        REQUIRE(compact_in_place(same.rows(), plan, &expected).ok());
        REQUIRE(compact_in_place(keys, plan, &report).ok());
        CHECK(k.bytes == same.bytes);
        CHECK(report.bytes_before == expected.bytes_before);
        CHECK(report.bytes_after == expected.bytes_after);

        const keep_plan per_head = support::plan_of({{1, 2}, {1, 3}});
        CHECK(compact_in_place(keys, per_head).ok() == (dim == 64));
        CHECK(keys.move_row(0, 1, 1).ok() == (dim == 64));
        CHECK((k.bytes == same.bytes) == (dim == 80));
    }
}

TEST_CASE("ggml_tensor_rows: keys of a type known at run time are rotated as those of the typed view",
          "[cache]") {
    support::random r(83);
    const std::vector<float> table = {0.5f, 0.25f};
    const std::vector<std::int32_t> offsets = {0, 3, 5}, from = {1, 4, 6, 0, 9};
    const row_positions positions{offsets, from};
    growing_workspace memory;
    const auto rotate = [&](const auto& keys) {
        workspace scratch = memory.of_bytes(rerotate_keys_bytes(keys, {table}));
        return rerotate_keys(keys, {table}, positions, scratch);
    };
    support::ggml_cache<block_q8_0> typed{2, 8, 64};
    support::fill_blocks(typed.format, typed.bytes, r);
    auto untyped = typed;
    REQUIRE(rotate(typed.rows()).ok());
    const std::vector<unsigned char> before = untyped.bytes;
    REQUIRE(rotate(ggml_tensor_rows::heads_in_row(8, untyped.data(), {2, 8, 64}, untyped.row_bytes)).ok());
    CHECK((untyped.bytes == typed.bytes));
    CHECK((untyped.bytes != before));

    // Through indices, too: slots in reverse order.
    std::vector<f16> plain = random_elements<f16>(2 * 8 * 8, r);
    std::vector<f16> same = plain;
    const std::vector<std::int32_t> slots = {7, 6, 5, 4, 3, 2, 1, 0};
    const ggml_tensor_rows any(1, same.data(), {2, 8, 8}, {128, 16, 2});
    REQUIRE(rotate(indexed_rows(strided(plain.data(), {2, 8, 8}), slots)).ok());
    REQUIRE(rotate(indexed_rows(any, slots)).ok());
    CHECK(std::memcmp(plain.data(), same.data(), plain.size() * sizeof(f16)) == 0);
}

TEST_CASE("ggml_tensor_rows: rows of blocks that have no encoder are not rotated, and it is said",
          "[cache][errors]") {
    support::random r(89);
    support::ggml_cache<block_iq4_nl> cache{1, 4, 32};
    support::fill_blocks(cache.format, cache.bytes, r);
    const std::vector<unsigned char> before = cache.bytes;
    const auto keys = ggml_tensor_rows::heads_in_row(20, cache.data(), {1, 4, 32}, cache.row_bytes);
    const std::vector<float> table = {0.5f};
    const std::vector<std::int32_t> offsets = {0, 1}, from = {7}, slots = {0, 2};
    growing_workspace memory;
    workspace scratch = memory.of_bytes(rerotate_keys_bytes(keys, {table}));
    CHECK_FALSE(keys.writes_rows());
    CHECK(rerotate_keys(keys, {table}, {offsets, from}, scratch).code() == errc::invalid_parameter);
    const status answer = rerotate_keys(indexed_rows(keys, slots), {table}, {offsets, from}, scratch);
    CHECK(answer.code() == errc::invalid_parameter);
    CHECK((cache.bytes == before));
}

TEST_CASE("ggml_tensor_rows: wrong numbers make rows that are empty and say why", "[cache]") {
    std::vector<float> data(512);
    const auto apart = [&](int type, std::array<index_t, 3> extents, std::array<index_t, 3> strides) {
        return refusal(ggml_tensor_rows(type, data.data(), extents, strides));
    };
    const auto in_row = [&](int type, std::array<index_t, 3> extents, index_t stride) {
        return refusal(ggml_tensor_rows::heads_in_row(type, data.data(), extents, stride));
    };
    CHECK(apart(0, {2, 2, 32}, {256, 128, 4}).empty());
    CHECK(apart(8, {2, 2, 32}, {68, 34, 34}).empty());
    CHECK(validate(ggml_tensor_rows()).ok());
    for (const int type :
         {-1, 4, 5, 9, 10, 24, 28, 31, 39, 1 << 30}) { // f64, i8, K-quants and what no ggml has
        CHECK(apart(type, {2, 2, 32}, {0, 0, 4}) == "ggml: rows of this type are not read");
        CHECK(in_row(type, {2, 2, 32}, 64) == "ggml: rows of this type are not read");
    }
    const std::string no_elements = "ggml: data and strides must be whole elements";
    CHECK(apart(0, {2, 2, 32}, {256, 130, 4}) == no_elements);
    CHECK(apart(1, {2, 2, 32}, {256, 128, 3}) == no_elements);
    CHECK(apart(30, {2, 2, 32}, {255, 128, 2}) == no_elements);
    CHECK(in_row(1, {2, 2, 32}, 129) == no_elements);
    CHECK(refusal(ggml_tensor_rows(1, reinterpret_cast<char*>(data.data()) + 1, {1, 1, 1}, {0, 0, 2})) ==
          no_elements);
    CHECK(apart(8, {2, 2, 32}, {68, 34, 36}) == "ggml: blocks of a row lie one after the other");

    const std::string beyond = "ggml: extents or strides beyond what memory can hold";
    CHECK(apart(0, {largest_index, largest_index, 32}, {0, 0, 4}) == beyond);
    CHECK(apart(1, {2, 3, 32}, {0, largest_index - 1, 2}) == beyond);
    CHECK(apart(1, {2, 3, 32}, {smallest_index, 0, 2}) == beyond);
    CHECK(in_row(1, {2, 3, largest_index}, 64) == beyond);
    CHECK(in_row(1, {2, 3, smallest_index}, 64) == beyond);
    CHECK(in_row(1, {largest_index, 3, 32}, 64) == beyond);
    CHECK(in_row(7, {largest_index, 3, 32}, 64) ==
          "ggml_rows: extents or strides beyond what memory can hold");
    CHECK(apart(0, {-1, 2, 32}, {0, 0, 4}) == "strided: extents must not be negative");
    CHECK(apart(3, {-1, 2, 32}, {0, 0, 20}) == "ggml_rows: extents must not be negative");
    CHECK(refusal(ggml_tensor_rows(0, nullptr, {1, 1, 1}, {0, 0, 4})) == "strided: data must not be null");
    CHECK(layer(ggml_tensor_rows(99, data.data(), {1, 1, 1}, {0, 0, 4})).validate().code() ==
          errc::invalid_parameter);
}
