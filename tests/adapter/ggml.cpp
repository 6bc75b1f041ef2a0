// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/adapter/ggml.hpp>

#include <kvtrim/compact/compact_in_place.hpp>

#include "support/catch.hpp"
#include "support/cpu_levels.hpp"
#include "support/ggml_memory.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace {

using namespace kvtrim;

using support::ggml_memory;

template <class T>
bool is_refused(const ggml_tensor& tensor, ggml_axes axes = ggml_axes::attended()) {
    T element{};
    strided<T, 3> view(&element, {1, 1, 1});
    const status s = view_ggml(tensor, view, axes);
    return s.code() == errc::invalid_parameter && view.data_handle() == &element;
}

// A cache of a type, made by ggml, and what ggml reads from it: [dim, heads, tokens], or [dim * heads, tokens] where heads share
// blocks.
struct cache {
    index_t dim, heads, tokens = 50;
    ggml_memory own;
    ggml_tensor* tensor;
    std::vector<float> decoded = std::vector<float>(static_cast<std::size_t>(dim * heads * tokens));

    cache(ggml_type type, index_t d, index_t h, bool in_row)
        : dim(d), heads(h), tensor(in_row ? ggml_new_tensor_2d(own.c, type, dim * heads, tokens)
                                          : ggml_new_tensor_3d(own.c, type, dim, heads, tokens)) {
        std::uint32_t seed = 1;
        for (float& x : decoded) {
            seed = seed * 1664525u + 1013904223u;
            x = static_cast<float>(seed >> 8) / 8388608 - 1;
        }
        std::fill_n(decoded.begin(), 32, 0.0f);                                    // scale 0
        for (std::size_t i = 32; i < 64; ++i) { decoded[i] *= 1e-7f; }             // a subnormal scale
        for (std::size_t i = 64; i < 96; ++i) { decoded[i] = -1000 * decoded[i]; } // a large one
        if (type == GGML_TYPE_F32) {
            std::memcpy(tensor->data, decoded.data(), decoded.size() * sizeof(float));
            return;
        }
        ggml_quantize_chunk(type, decoded.data(), tensor->data, 0, tensor->ne[1] * tensor->ne[2],
                            tensor->ne[0], nullptr);
        ggml_get_type_traits(type)->to_float(tensor->data, decoded.data(), dim * heads * tokens);
    }

    // Whether row `row` of a head reads as ggml's token, bit for bit.
    template <class Rows>
    [[nodiscard]] bool reads(const Rows& rows, index_t head, index_t row, index_t token) const {
        std::vector<float> tile(static_cast<std::size_t>(dim));
        load_rows(rows, head, row, 1, tile.data());
        return std::memcmp(tile.data(), decoded.data() + (token * heads + head) * dim,
                           static_cast<std::size_t>(dim) * sizeof(float)) == 0;
    }
};

// Whether all rows read as ggml's at every level, before and after a cut in place.
template <class View, class Axes>
bool reads_and_cuts(const cache& c, View rows, Axes axes) {
    if (!view_ggml(*c.tensor, rows, axes).ok()) { return false; }
    bool same = rows.extent(0) == c.heads && rows.extent(1) == c.tokens && rows.extent(2) == c.dim;
    support::at_each_cpu_level([&] {
        for (index_t h = 0; h < c.heads; ++h) {
            for (index_t t = 0; t < c.tokens; ++t) { same = same && c.reads(rows, h, t, t); }
        }
    });
    keep_plan plan;
    const std::vector<index_t> counts(static_cast<std::size_t>(c.heads), c.tokens / 2);
    if (!plan.reset(counts).ok()) { return false; }
    const bool together = c.dim % 32 != 0;
    for (index_t h = 0; h < c.heads; ++h) {
        const auto kept = plan.writable_row(h);
        for (std::size_t i = 0; i < kept.size(); ++i) {
            kept[i] = static_cast<std::int32_t>(2 * i) + (h == 1 && !together ? 1 : 0);
        }
    }
    same = same && compact_in_place(rows, plan).ok();
    for (index_t h = 0; h < c.heads; ++h) {
        for (index_t i = 0; i < c.tokens / 2; ++i) {
            same = same && c.reads(rows, h, i, plan.row(h)[static_cast<std::size_t>(i)]);
        }
    }
    return same;
}

// Blocks through their own view, and through that of any type.
template <class Block>
bool reads_and_cuts_blocks(ggml_type type) {
    const ggml_rows<Block> none(nullptr, {0, 0, 0}, {0, 0});
    const auto made = [&](index_t dim, index_t heads, bool in_row) {
        return cache(type, dim, heads, in_row);
    };
    return reads_and_cuts(made(64, 3, false), none, ggml_axes::cached()) &&
           reads_and_cuts(made(64, 3, false), ggml_tensor_rows(), ggml_axes::cached()) &&
           reads_and_cuts(made(64, 3, true), none, ggml_heads_in_row{3}) &&
           reads_and_cuts(made(80, 4, true), none, ggml_heads_in_row{4}) &&
           reads_and_cuts(made(80, 4, true), ggml_tensor_rows(), ggml_heads_in_row{4}) &&
           reads_and_cuts(made(100, 8, true), none, ggml_heads_in_row{8});
}

} // namespace

TEST_CASE("view_ggml: blocks read as ggml reads them, bit for bit, and move whole", "[adapter]") {
    CHECK(reads_and_cuts_blocks<block_q8_0>(GGML_TYPE_Q8_0));
    CHECK(reads_and_cuts_blocks<block_q4_0>(GGML_TYPE_Q4_0));
    CHECK(reads_and_cuts_blocks<block_q4_1>(GGML_TYPE_Q4_1));
    CHECK(reads_and_cuts_blocks<block_q5_0>(GGML_TYPE_Q5_0));
    CHECK(reads_and_cuts_blocks<block_q5_1>(GGML_TYPE_Q5_1));
    CHECK(reads_and_cuts_blocks<block_iq4_nl>(GGML_TYPE_IQ4_NL));
}

TEST_CASE("view_ggml: elements of a type known at run time read as ggml reads them, and move whole",
          "[adapter]") {
    for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16}) {
        CAPTURE(ggml_type_name(type));
        const cache apart(type, 80, 4, false), in_row(type, 80, 4, true);
        CHECK(reads_and_cuts(apart, ggml_tensor_rows(), ggml_axes::cached()));
        CHECK(reads_and_cuts(in_row, ggml_tensor_rows(), ggml_heads_in_row{4}));
    }
    const cache joined(GGML_TYPE_F16, 80, 4, true);
    CHECK(reads_and_cuts(joined, strided<f16, 3>(nullptr, {0, 0, 0}), ggml_heads_in_row{4}));
}

TEST_CASE("view_ggml: any bits of a block, by ggml's own conversion", "[adapter]") {
    constexpr index_t blocks = 3000;
    for (const ggml_type type :
         {GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_IQ4_NL}) {
        CAPTURE(ggml_type_name(type));
        const ggml_memory own;
        ggml_tensor* tensor = ggml_new_tensor_2d(own.c, type, 32, blocks);
        std::uint32_t seed = 1;
        for (std::size_t i = 0; i < ggml_nbytes(tensor); ++i) {
            seed = seed * 1664525u + 1013904223u;
            static_cast<unsigned char*>(tensor->data)[i] = static_cast<unsigned char>(seed >> 24);
        }
        std::vector<float> expected(32 * blocks), got(32 * blocks);
        ggml_get_type_traits(type)->to_float(tensor->data, expected.data(), 32 * blocks);
        ggml_tensor_rows rows;
        REQUIRE(view_ggml(*tensor, rows).ok());
        support::at_each_cpu_level([&] {
            rows.load_rows(0, 0, blocks, got.data());
            CHECK(std::equal(got.begin(), got.end(), expected.begin(), [](float a, float b) {
                return std::memcmp(&a, &b, sizeof a) == 0 || (std::isnan(a) && std::isnan(b));
            }));
        });
    }
}

TEST_CASE("view_ggml: blocks that it can not view", "[adapter]") {
    const cache c(GGML_TYPE_Q8_0, 64, 3, false);
    ggml_rows<block_q4_0> other(nullptr, {0, 0, 0}, {0, 0});
    ggml_rows<block_q8_0> rows(nullptr, {0, 0, 0}, {0, 0});
    ggml_tensor_rows any;
    const auto is_refused = [&](const ggml_tensor& tensor, auto axes) {
        return view_ggml(tensor, rows, axes).code() == errc::invalid_parameter && rows.extent(0) == 0 &&
               view_ggml(tensor, any, axes).code() == errc::invalid_parameter && any.extent(0) == 0;
    };
    CHECK(view_ggml(*c.tensor, other).code() == errc::invalid_parameter);
    const ggml_axes cached = ggml_axes::cached();
    ggml_tensor spoiled = *c.tensor;
    spoiled.nb[1] += 1;
    CHECK(is_refused(spoiled, cached));
    spoiled = *c.tensor;
    spoiled.nb[0] *= 2;
    CHECK(is_refused(spoiled, cached));
    spoiled = *c.tensor;
    spoiled.ne[0] = 80; // no ggml makes such a tensor: its head would end inside a block
    CHECK(is_refused(spoiled, cached));
    spoiled = *c.tensor;
    spoiled.ne[0] = 32; // whose axis 1 looks like elements one after the other
    spoiled.nb[1] = 34;
    CHECK(is_refused(spoiled, ggml_axes::transposed()));
    spoiled = *c.tensor;
    spoiled.type = GGML_TYPE_Q6_K;
    CHECK(is_refused(spoiled, cached));
    for (const ggml_axes axes : {ggml_axes{0, 0, 0}, {1, 1, 0}, {-1, 2, 0}, {3, 1, 0}, {1 << 30, 1, 0}}) {
        CHECK(is_refused(*c.tensor, axes));
    }

    const cache row(GGML_TYPE_Q8_0, 80, 4, true);
    for (const index_t heads : {index_t{0}, index_t{-4}, index_t{3}, std::numeric_limits<index_t>::max()}) {
        CHECK(is_refused(*row.tensor, ggml_heads_in_row{heads}));
    }
    CHECK(is_refused(*c.tensor, ggml_heads_in_row{2})); // 3 axes
    spoiled = *row.tensor;
    spoiled.nb[0] *= 2;
    CHECK(is_refused(spoiled, ggml_heads_in_row{4}));
    CHECK(view_ggml(*c.tensor, rows, cached).ok());
    CHECK(view_ggml(*row.tensor, rows, ggml_heads_in_row{4}).ok());
}

TEST_CASE("view_ggml: element (head, token, channel) wherever ggml says it is", "[adapter]") {
    const ggml_memory own;
    constexpr index_t dim = 5, tokens = 4, heads = 3;
    ggml_tensor* flat = ggml_new_tensor_3d(own.c, GGML_TYPE_F32, dim, heads, tokens); // as cached
    auto* data = static_cast<float*>(flat->data);
    for (index_t i = 0; i < dim * heads * tokens; ++i) { data[i] = static_cast<float>(i); }
    const auto shows = [&](ggml_tensor* t, ggml_axes axes) {
        strided<float, 3> view{nullptr, {0, 0, 0}};
        if (!view_ggml(*t, view, axes).ok() || view.extent(0) != heads || view.extent(1) != tokens ||
            view.extent(2) != dim) {
            return false;
        }
        for (index_t h = 0; h < heads; ++h) {
            for (index_t i = 0; i < tokens; ++i) {
                for (index_t d = 0; d < dim; ++d) {
                    if (view(h, i, d) != static_cast<float>((i * heads + h) * dim + d)) { return false; }
                }
            }
        }
        return true;
    };
    CHECK(shows(flat, ggml_axes::cached()));
    CHECK(shows(ggml_permute(own.c, flat, 0, 2, 1, 3), ggml_axes::attended()));
    CHECK(shows(ggml_permute(own.c, flat, 1, 2, 0, 3), ggml_axes::transposed()));
}

TEST_CASE("view_ggml: a view of part of a cache, in 16 bits", "[adapter]") {
    const ggml_memory own;
    ggml_tensor* all = ggml_new_tensor_3d(own.c, GGML_TYPE_BF16, 2, 10, 3);
    for (index_t i = 0; i < 60; ++i) { static_cast<bf16*>(all->data)[i] = {static_cast<std::uint16_t>(i)}; }
    ggml_tensor* part = ggml_view_3d(own.c, all, 2, 4, 3, all->nb[1], all->nb[2], 3 * all->nb[1]);
    strided<const bf16, 3> view{nullptr, {0, 0, 0}};
    REQUIRE(view_ggml(*part, view).ok());
    CHECK(view.extent(1) == 4);
    CHECK(view(2, 3, 1).bits == 40 + 2 * 6 + 1);
}

TEST_CASE("view_ggml: what it can not view, it refuses", "[adapter]") {
    const ggml_memory own;
    ggml_tensor* good = ggml_new_tensor_3d(own.c, GGML_TYPE_F16, 32, 2, 2);
    CHECK_FALSE(is_refused<f16>(*good));
    CHECK(is_refused<float>(*good));
    CHECK(is_refused<bf16>(*good));
    CHECK(is_refused<f16>(*ggml_new_tensor_3d(own.c, GGML_TYPE_Q8_0, 32, 2, 2)));
    CHECK(is_refused<f16>(*ggml_new_tensor_4d(own.c, GGML_TYPE_F16, 32, 2, 2, 2)));
    ggml_tensor spoiled = *good;
    spoiled.nb[1] = 65;
    CHECK(is_refused<f16>(spoiled));
    spoiled = *good;
    spoiled.data = nullptr;
    CHECK(is_refused<f16>(spoiled));
    spoiled = *good;
    spoiled.ne[1] = -2;
    CHECK(is_refused<f16>(spoiled));
    spoiled = *good;
    spoiled.ne[1] = std::numeric_limits<std::int64_t>::max();
    CHECK(is_refused<f16>(spoiled));
    spoiled = *good;
    spoiled.nb[2] = std::numeric_limits<std::size_t>::max() - 1;
    CHECK(is_refused<f16>(spoiled));
    spoiled.nb[2] =
        std::numeric_limits<std::size_t>::max() / 2 - 1; // whole elements, farther than memory reaches
    CHECK(is_refused<f16>(spoiled));
    spoiled = *good;
    spoiled.type = GGML_TYPE_COUNT;
    CHECK(is_refused<f16>(spoiled));
    CHECK(is_refused<f16>(*good, {0, 1, 1}));
    CHECK(is_refused<f16>(*good, {0, 1, -1}));
}
