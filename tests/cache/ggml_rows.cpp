// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/cache/ggml_rows.hpp>
#include <kvtrim/compact/compact_in_place.hpp>
#include <kvtrim/policy/criticalkv.hpp>

#include "support/checks.hpp"
#include "support/cpu_levels.hpp"
#include "support/ggml_cache.hpp"

#include <vector>

namespace {

using namespace kvtrim;
using support::largest_index;
using support::smallest_index;

// Head-major or token-major rows with gaps, filled from a cache without any.
template <class Block>
struct spread_cache {
    index_t slice; // bytes of a head's row
    std::array<index_t, 2> strides;
    std::vector<unsigned char> bytes;

    spread_cache(const support::ggml_cache<Block>& from, bool token_major, index_t gap)
        : slice(from.row_bytes / from.heads),
          strides(token_major ? std::array{slice + gap, (slice + gap) * from.heads}
                              : std::array{(slice + gap) * from.tokens, slice + gap}),
          bytes(static_cast<std::size_t>((slice + gap) * from.heads * from.tokens), 0xfe) {
        for (index_t g = 0; g < from.heads; ++g) {
            for (index_t t = 0; t < from.tokens; ++t) {
                std::copy_n(from.bytes.begin() + t * from.row_bytes + g * slice, slice,
                            bytes.begin() + g * strides[0] + t * strides[1]);
            }
        }
    }
    [[nodiscard]] ggml_rows<Block> rows(const support::ggml_cache<Block>& from) {
        return {reinterpret_cast<Block*>(bytes.data()), {from.heads, from.tokens, from.head_dim}, strides};
    }
};

// What validate() says of rows that must not be valid; empty if they are valid or not empty.
template <class Block>
std::string refusal(const ggml_rows<Block>& rows) {
    const status s = validate(rows);
    const bool empty = rows.extent(0) == 0 && rows.extent(1) == 0 && rows.extent(2) == 0;
    return s.code() == errc::invalid_parameter && empty ? s.what() : "";
}

} // namespace

#define ALL_BLOCKS block_q8_0, block_q4_0, block_q4_1, block_q5_0, block_q5_1, block_iq4_nl

TEST_CASE("ggml_rows: blocks made by hand are what the formats say", "[cache]") {
    block_q8_0 eight{{0x3800}, {}}; // 0.5
    for (std::size_t i = 0; i < 32; ++i) {
        eight.codes[i] = static_cast<std::int8_t>(4 * static_cast<int>(i) - 64);
    }
    eight.codes[31] = -128;
    std::array<std::uint8_t, 16> nibbles{}; // element i is 15 - i, element 16 + i is i
    for (std::size_t i = 0; i < 16; ++i) { nibbles[i] = static_cast<std::uint8_t>(i * 16 + (15 - i)); }
    const std::array<std::uint8_t, 4> high{0x01, 0x00, 0x00, 0x80}; // of elements 0 and 31
    const f16 minus_two{0xc000}, half{0x3800};
    const block_q4_0 four{minus_two, nibbles};
    const block_q4_1 four_and_minimum{minus_two, half, nibbles};
    const block_q5_0 five{minus_two, high, nibbles};
    const block_q5_1 five_and_minimum{minus_two, half, high, nibbles};
    const block_iq4_nl values{minus_two, nibbles};
    const auto read = [](const auto& block) {
        std::vector<float> x(32);
        ggml_rows(&block, {1, 1, 32}, {0, 0}).load_rows(0, 0, 1, x.data());
        return x;
    };
    support::at_each_cpu_level([&] {
        const std::vector<float> a = read(eight), b = read(four), c = read(four_and_minimum), d = read(five),
                                 e = read(five_and_minimum), f = read(values);
        for (std::size_t i = 0; i < 31; ++i) { CHECK(a[i] == 2.0f * static_cast<float>(i) - 32.0f); }
        CHECK(a[31] == -64.0f);
        for (std::size_t i = 0; i < 32; ++i) {
            const float code = i < 16 ? 15 - static_cast<float>(i) : static_cast<float>(i) - 16;
            const float code_of_five = code + (i == 0 || i == 31 ? 16.0f : 0.0f);
            CHECK(b[i] == -2 * (code - 8));
            CHECK(c[i] == -2 * code + 0.5f);
            CHECK(d[i] == -2 * (code_of_five - 16));
            CHECK(e[i] == -2 * code_of_five + 0.5f);
        }
        CHECK(f[0] == -226.0f); // code 15
        CHECK(f[15] == 254.0f); // code 0
        CHECK(f[16 + 8] == -2.0f);
        CHECK(f[16 + 7] == 20.0f);
    });
}

TEMPLATE_TEST_CASE("ggml_rows: any strides and any rows of them", "[cache]", ALL_BLOCKS) {
    support::random r(1);
    const support::ggml_cache<TestType> c = support::random_ggml_cache<TestType>(3, 7, 96, r);
    const std::vector<float> expected = c.decoded();
    for (const bool token_major : {false, true}) {
        for (const index_t gap : {0, 6}) {
            spread_cache<TestType> spread(c, token_major, gap);
            const ggml_rows<const TestType> rows = spread.rows(c);
            REQUIRE(validate(rows).ok());
            support::at_each_cpu_level([&] {
                for (index_t first = 0; first < 7; ++first) {
                    std::vector<float> tile(static_cast<std::size_t>((7 - first) * 96) + 1, 0.25f);
                    rows.load_rows(2, first, 7 - first, tile.data());
                    CHECK(tile.back() == 0.25f);
                    tile.pop_back();
                    CHECK(std::equal(tile.begin(), tile.end(), expected.begin() + (2 * 7 + first) * 96));
                }
            });
        }
    }
    const std::array<index_t, 2> stride{0, 0};
    CHECK(ggml_rows<const TestType>(nullptr, {2, 0, 64}, stride).row_bytes() ==
          index_t{2 * sizeof(TestType)});
    CHECK(ggml_rows<const TestType>(nullptr, {2, 3, 0}, stride).row_bytes() == 0);
}

TEMPLATE_TEST_CASE("ggml_rows: a policy plans as it does over the decoded floats, score by score", "[cache]",
                   ALL_BLOCKS) {
    support::random r(2);
    for (const index_t head_dim : {64, 80}) {
        const support::layer_data layer =
            support::random_layer({.tokens = 150, .head_dim = head_dim, .value_dim = 32}, 3);
        support::ggml_cache<TestType> k = support::random_ggml_cache<TestType>(2, 150, head_dim, r);
        support::ggml_cache<TestType> v = support::random_ggml_cache<TestType>(2, 150, 32, r);
        const std::vector<float> keys = k.decoded(), values = v.decoded();
        const auto with = [&](const auto& a, const auto& b) {
            return kvtrim::layer(a, b)
                .with_queries(layer.queries())
                .with_output_projection(layer.projection());
        };
        const eviction_request request{.budget = per_head(40), .protect = {.window_tokens = 8}};
        support::at_each_cpu_level([&] {
            const auto coded = support::run(criticalkv(), with(k.rows(), v.rows()), request);
            const auto floats = support::run(
                criticalkv(),
                with(strided(keys.data(), {2, 150, head_dim}), strided(values.data(), {2, 150, 32})),
                request);
            REQUIRE(coded.answer.ok());
            CHECK(coded.importance == floats.importance);
            CHECK(coded.attention == floats.attention);
            CHECK(coded.plan.kept().size() == 80);
            CHECK(coded.plan == floats.plan);
        });
    }
}

TEMPLATE_TEST_CASE("ggml_rows: rows move whole, head by head, and report their bytes", "[cache]",
                   ALL_BLOCKS) {
    support::random r(4);
    support::ggml_cache<TestType> c = support::random_ggml_cache<TestType>(2, 20, 64, r);
    const std::vector<float> before = c.decoded();
    const keep_plan plan = support::plan_of({{0, 3, 4, 9, 19}, {1, 2, 18}});
    compaction_report report;
    REQUIRE(compact_in_place(c.rows(), plan, &report).ok());
    const index_t bytes = 2 * static_cast<index_t>(sizeof(TestType));
    CHECK(report.bytes_before == 40 * bytes);
    CHECK(report.bytes_after == 8 * bytes);
    for (index_t g = 0; g < 2; ++g) {
        std::vector<float> rows(static_cast<std::size_t>(plan.kept_tokens(g) * 64));
        c.rows().load_rows(g, 0, plan.kept_tokens(g), rows.data());
        CHECK(rows == support::kept_rows(before, plan.row(g), g, 20, 64));
    }
}

TEMPLATE_TEST_CASE("ggml_rows: heads of 80, 100 and 8 elements in one row read as their floats", "[cache]",
                   ALL_BLOCKS) {
    support::random r(5);
    struct shape {
        index_t heads, head_dim;
    };
    for (const shape& of : {shape{4, 80}, {8, 100}, {8, 8}, {2, 16}, {16, 30}, {1, 96}}) {
        const index_t heads = of.heads, head_dim = of.head_dim;
        support::ggml_cache<TestType> c = support::random_ggml_cache<TestType>(heads, 30, head_dim, r);
        const ggml_rows<TestType> rows = c.rows();
        REQUIRE(validate(rows).ok());
        CHECK(rows.heads_move_together() == (head_dim % 32 != 0));
        const std::vector<float> expected = c.decoded();
        support::at_each_cpu_level([&] {
            CHECK(support::loaded(rows) == expected);
            std::vector<float> tile(static_cast<std::size_t>(7 * head_dim) + 1, 0.25f);
            rows.load_rows(heads - 1, 3, 7, tile.data());
            CHECK(tile.back() == 0.25f);
            CHECK(std::equal(tile.begin(), tile.end() - 1,
                             expected.begin() + ((heads - 1) * 30 + 3) * head_dim));
        });
    }
}

TEMPLATE_TEST_CASE("ggml_rows: heads that share blocks move together, their bytes counted once", "[cache]",
                   ALL_BLOCKS) {
    support::random r(6);
    support::ggml_cache<TestType> c = support::random_ggml_cache<TestType>(8, 20, 100, r);
    const std::vector<float> before = c.decoded();
    const std::vector<oracle::token_set> kept(8, {0, 3, 4, 9, 19});
    const keep_plan plan = support::plan_of(kept);
    compaction_report report;
    REQUIRE(compact_in_place(c.rows(), plan, &report).ok());
    const index_t bytes = 25 * static_cast<index_t>(sizeof(TestType)); // of 800 elements
    CHECK(report.bytes_before == 20 * bytes);
    CHECK(report.bytes_after == 5 * bytes);
    for (index_t g = 0; g < 8; ++g) {
        std::vector<float> rows(5 * 100);
        c.rows().load_rows(g, 0, 5, rows.data());
        CHECK(rows == support::kept_rows(before, plan.row(g), g, 20, 100));
    }
}

TEST_CASE("ggml_rows: a plan that would tear heads in one block apart is refused, and nothing moves",
          "[cache]") {
    support::random r(7);
    auto keys = support::random_ggml_cache<block_q5_0>(4, 20, 80, r);
    auto values = support::random_ggml_cache<block_q8_0>(4, 20, 80, r);
    const auto k = keys.bytes, v = values.bytes;
    const keep_plan other_tokens = support::plan_of({{0, 3}, {0, 3}, {0, 4}, {0, 3}});
    const keep_plan fewer_tokens = support::plan_of({{0, 3}, {0, 3}, {0, 3}, {3}});
    compaction_report report;
    for (const keep_plan* plan : {&other_tokens, &fewer_tokens}) {
        CHECK(compact_in_place(keys.rows(), *plan).code() == errc::plan_mismatch);
        CHECK(compact_in_place(keys.rows(), *plan, &report).code() == errc::plan_mismatch);
        CHECK(compact_in_place(keys.rows(), values.rows(), *plan, &report).code() == errc::plan_mismatch);
        // Keys of heads that are alone would move; their values would not.
        auto apart = support::random_ggml_cache<block_q4_1>(4, 20, 64, r);
        const auto before = apart.bytes;
        CHECK(compact_in_place(apart.rows(), values.rows(), *plan).code() == errc::plan_mismatch);
        CHECK(apart.bytes == before);
    }
    CHECK(keys.rows().move_row(1, 3, 0).code() == errc::invalid_parameter);
    CHECK(keys.bytes == k);
    CHECK(values.bytes == v);
    CHECK(report.bytes_before == 0);
}

TEMPLATE_TEST_CASE("ggml_rows: wrong numbers make rows that are empty and say why", "[cache]", ALL_BLOCKS) {
    std::vector<TestType> data(8);
    const auto apart = [&](std::array<index_t, 3> extents, std::array<index_t, 2> strides) {
        return refusal(ggml_rows<TestType>(data.data(), extents, strides));
    };
    const auto in_row = [&](std::array<index_t, 3> extents, index_t stride) {
        return refusal(ggml_rows<TestType>::heads_in_row(data.data(), extents, stride));
    };
    constexpr auto size = static_cast<index_t>(sizeof(TestType));
    CHECK(apart({1, 2, 64}, {2 * size, 2 * size}).empty());
    CHECK(in_row({4, 1, 80}, 10 * size).empty());
    CHECK(in_row({0, 1, 80}, 10 * size).empty());

    const std::string negative = "ggml_rows: extents must not be negative";
    CHECK(apart({-1, 2, 64}, {0, 0}) == negative);
    CHECK(apart({1, -2, 64}, {0, 0}) == negative);
    CHECK(apart({1, 2, -64}, {0, 0}) == negative);
    CHECK(in_row({-1, 2, 80}, 0) == negative);
    CHECK(in_row({-4, 2, -80}, 0) == negative);
    CHECK(in_row({smallest_index, 2, smallest_index}, smallest_index) == negative);
    CHECK(in_row({smallest_index, 2, smallest_index + 1}, smallest_index) == negative);

    const std::string no_blocks =
        "ggml_rows: rows are whole blocks: head_dim, or kv_heads * head_dim of heads in one "
        "row, must be a multiple of 32";
    CHECK(apart({4, 1, 80}, {0, 0}) == no_blocks);
    CHECK(in_row({1, 2, 80}, 100) == no_blocks);
    CHECK(in_row({3, 2, 100}, 100) == no_blocks);

    const std::string beyond = "ggml_rows: extents or strides beyond what memory can hold";
    CHECK(apart({largest_index, largest_index, 64}, {0, 0}) == beyond);
    CHECK(apart({1, 2, largest_index - 31}, {0, 0}) == beyond);
    CHECK(in_row({1, 2, largest_index - 31}, 0) == beyond);
    CHECK(apart({2, 3, 64}, {0, largest_index - 1}) == beyond);
    CHECK(apart({2, 3, 64}, {smallest_index, 0}) == beyond);
    CHECK(in_row({largest_index / 2 + 1, 2, 80}, 0) == no_blocks);
    CHECK(in_row({index_t{1} << 58, 1, 16}, 0) == beyond);
    CHECK(in_row({2, index_t{1} << 62, 80}, 0) == beyond);
    CHECK(in_row({2, index_t{1} << 62, 16}, 4) == beyond);

    CHECK(apart({1, 2, 64}, {2 * size, 2 * size + 1}) == "ggml_rows: data and strides must be even");
    CHECK(apart({1, 2, 64}, {1, 2 * size}) == "ggml_rows: data and strides must be even");
    auto* const odd = reinterpret_cast<TestType*>(reinterpret_cast<char*>(data.data()) + 1);
    CHECK(refusal(ggml_rows<TestType>(odd, {1, 1, 32}, {0, 0})) ==
          "ggml_rows: data and strides must be even");
    CHECK(refusal(ggml_rows<TestType>(nullptr, {1, 1, 32}, {0, 0})) == "ggml_rows: data must not be null");

    // What is asked of a cache asks the rows first.
    const ggml_rows<TestType> wrong(data.data(), {4, 1, 80}, {0, 0});
    CHECK(layer(wrong).validate().what() == no_blocks);
    CHECK(wrong.row_bytes() == 0);
}
