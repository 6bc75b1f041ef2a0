// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/compact/in_place.hpp>
#include <kvtrim/policy/criticalkv.hpp>
#include <kvtrim/source/ggml_blocks.hpp>

#include "support/checks.hpp"
#include "support/cpu_levels.hpp"

#include <cmath>
#include <vector>

namespace {

using namespace kvtrim;

template <class Block>
struct cache {
    index_t heads, tokens, head_dim;
    bool token_major;
    index_t gap; // bytes behind each head's slice
    std::vector<std::uint16_t> memory;

    [[nodiscard]] index_t row_bytes() const { return head_dim / 32 * static_cast<index_t>(sizeof(Block)); }
    [[nodiscard]] std::array<index_t, 2> strides() const {
        const index_t slice = row_bytes() + gap;
        return token_major ? std::array{slice, slice * heads} : std::array{slice * tokens, slice};
    }
    [[nodiscard]] ggml_rows<Block> rows() {
        return {reinterpret_cast<Block*>(memory.data()), {heads, tokens, head_dim}, strides()};
    }
};

// Random codes; scales that keep keys at a model's size.
template <class Block>
cache<Block> random_cache(index_t heads, index_t tokens, index_t head_dim, bool token_major, index_t gap,
                          support::random& r) {
    cache<Block> c{heads, tokens, head_dim, token_major, gap, {}};
    c.memory.resize(static_cast<std::size_t>(heads * tokens * (c.row_bytes() + gap) / 2), 0xfefe);
    const ggml_rows<Block> rows = c.rows();
    for (index_t g = 0; g < heads; ++g) {
        for (index_t t = 0; t < tokens; ++t) {
            for (index_t b = 0; b < head_dim / 32; ++b) {
                Block& block = rows.row(g, t)[b];
                const double largest = sizeof(block.codes) == 32 ? 127 : 8;
                block.scale =
                    element_traits<f16>::from_float(static_cast<float>((0.2 + r.uniform()) / largest));
                for (auto& code : block.codes) {
                    code = static_cast<std::remove_reference_t<decltype(code)>>(r.bits() & 0xffu);
                }
            }
        }
    }
    return c;
}

// Element `i` of a row, as the formats define it.
float decoded(const block_q8_0* row, index_t i) {
    const block_q8_0& b = row[i / 32];
    return static_cast<float>(static_cast<double>(to_float(b.scale)) *
                              b.codes[static_cast<std::size_t>(i % 32)]);
}
float decoded(const block_q4_0* row, index_t i) {
    const block_q4_0& b = row[i / 32];
    const unsigned byte = b.codes[static_cast<std::size_t>(i % 16)];
    const unsigned code = i % 32 < 16 ? byte % 16 : byte / 16;
    return static_cast<float>(static_cast<double>(to_float(b.scale)) * (static_cast<double>(code) - 8));
}

template <class Block>
std::vector<float> decoded_copy(const ggml_rows<Block>& rows) {
    std::vector<float> out;
    for (index_t g = 0; g < rows.extent(0); ++g) {
        for (index_t t = 0; t < rows.extent(1); ++t) {
            for (index_t d = 0; d < rows.extent(2); ++d) { out.push_back(decoded(rows.row(g, t), d)); }
        }
    }
    return out;
}

} // namespace

TEST_CASE("ggml_rows: blocks made by hand are what the formats say", "[source]") {
    block_q8_0 eight{{0x3800}, {}}; // 0.5
    for (std::size_t i = 0; i < 32; ++i) {
        eight.codes[i] = static_cast<std::int8_t>(4 * static_cast<int>(i) - 64);
    }
    eight.codes[31] = -128;
    block_q4_0 four{{0xc000}, {}}; // -2
    for (std::size_t i = 0; i < 16; ++i) { four.codes[i] = static_cast<std::uint8_t>(i * 16 + (15 - i)); }
    support::at_each_cpu_level([&] {
        std::vector<float> a(32), b(32);
        ggml_rows<const block_q8_0>(&eight, {1, 1, 32}, {34, 34}).load_rows(0, 0, 1, a.data());
        ggml_rows<const block_q4_0>(&four, {1, 1, 32}, {18, 18}).load_rows(0, 0, 1, b.data());
        for (std::size_t i = 0; i < 31; ++i) { CHECK(a[i] == 2.0f * static_cast<float>(i) - 32.0f); }
        CHECK(a[31] == -64.0f);
        for (std::size_t i = 0; i < 16; ++i) {
            CHECK(b[i] == -2.0f * (7.0f - static_cast<float>(i)));
            CHECK(b[16 + i] == -2.0f * (static_cast<float>(i) - 8.0f));
        }
    });
}

TEMPLATE_TEST_CASE("ggml_rows: any strides and any rows of them", "[source]", block_q8_0, block_q4_0) {
    support::random r(1);
    for (const bool token_major : {false, true}) {
        for (const index_t gap : {0, 6}) {
            cache<TestType> c = random_cache<TestType>(3, 7, 96, token_major, gap, r);
            const std::vector<float> expected = decoded_copy(c.rows());
            support::at_each_cpu_level([&] {
                for (index_t first = 0; first < 7; ++first) {
                    std::vector<float> tile(static_cast<std::size_t>((7 - first) * 96) + 1, 0.25f);
                    c.rows().load_rows(2, first, 7 - first, tile.data());
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

TEMPLATE_TEST_CASE("ggml_rows: a policy plans as it does over the decoded floats, score by score", "[source]",
                   block_q8_0, block_q4_0) {
    support::random r(2);
    const support::layer_data layer =
        support::random_layer({.tokens = 150, .head_dim = 64, .value_dim = 32}, 3);
    cache<TestType> k = random_cache<TestType>(2, 150, 64, true, 0, r);
    cache<TestType> v = random_cache<TestType>(2, 150, 32, false, 0, r);
    const std::vector<float> keys = decoded_copy(k.rows()), values = decoded_copy(v.rows());
    const auto with = [&](const auto& a, const auto& b) {
        return kvtrim::layer(a, b).with_queries(layer.queries()).with_output_projection(layer.projection());
    };
    const eviction_request request{.budget = per_head(40), .protect = {.window_tokens = 8}};
    support::at_each_cpu_level([&] {
        const auto coded = support::run(criticalkv(), with(k.rows(), v.rows()), request);
        const auto floats = support::run(
            criticalkv(), with(strided(keys.data(), {2, 150, 64}), strided(values.data(), {2, 150, 32})),
            request);
        REQUIRE(coded.answer.ok());
        CHECK(coded.importance == floats.importance);
        CHECK(coded.attention == floats.attention);
        CHECK(coded.plan.kept().size() == 80);
        CHECK(std::equal(coded.plan.kept().begin(), coded.plan.kept().end(), floats.plan.kept().begin()));
    });
}

TEMPLATE_TEST_CASE("ggml_rows: rows move whole, head by head, and report their bytes", "[source]", block_q8_0,
                   block_q4_0) {
    support::random r(4);
    cache<TestType> c = random_cache<TestType>(2, 20, 64, true, 2, r);
    const std::vector<float> before = decoded_copy(c.rows());
    const keep_plan plan = support::plan_of({{0, 3, 4, 9, 19}, {1, 2, 18}});
    compaction_report report;
    REQUIRE(compact_in_place(c.rows(), plan, &report).ok());
    const index_t bytes = 2 * static_cast<index_t>(sizeof(TestType));
    CHECK(report.bytes_before == 40 * bytes);
    CHECK(report.bytes_after == 8 * bytes);
    for (index_t g = 0; g < 2; ++g) {
        index_t to = 0;
        for (const auto from : plan.row(g)) {
            for (index_t d = 0; d < 64; ++d) {
                REQUIRE(decoded(c.rows().row(g, to), d) ==
                        before[static_cast<std::size_t>((g * 20 + from) * 64 + d)]);
            }
            ++to;
        }
    }
}

TEST_CASE("ggml_rows: heads that begin inside a block and odd strides break the contract",
          "[source][contract]") {
    std::vector<block_q8_0> data(8);
    const auto violation = [&](index_t head_dim, index_t stride) {
        return support::violation_of([&] {
            ggml_rows<block_q8_0>(data.data(), {1, 2, head_dim}, {stride, stride});
        });
    };
    CHECK(violation(48, 68) ==
          "ggml_rows: a head must begin on a block border: head_dim must be a multiple of 32");
    CHECK(violation(64, 69) == "ggml_rows: strides must be even");
    CHECK(violation(64, 68).empty());
}
