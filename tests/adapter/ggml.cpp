// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/adapter/ggml.hpp>

#include <kvtrim/compact/in_place.hpp>

#include "support/catch.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

namespace {

using namespace kvtrim;

// A tensor of ggml over bytes of its own that a test may spoil.
struct context {
    ggml_context* c = ggml_init({1u << 20, nullptr, false});

    context() = default;
    context(const context&) = delete;
    context& operator=(const context&) = delete;
    ~context() { ggml_free(c); }
};

template <class T>
bool is_refused(const ggml_tensor& tensor) {
    T element{};
    strided<T, 3> view(&element, {1, 1, 1});
    const status s = view_ggml(tensor, view);
    return s.code() == errc::invalid_parameter && view.data_handle() == &element;
}

// A tensor [64, heads 3, tokens 50] of blocks, made by ggml, and what ggml reads from it.
template <class Block>
struct quantised {
    static constexpr index_t dim = 64, heads = 3, tokens = 50;
    context own;
    ggml_tensor* tensor;
    std::vector<float> decoded = std::vector<float>(dim * heads * tokens);

    explicit quantised(ggml_type type) : tensor(ggml_new_tensor_3d(own.c, type, dim, heads, tokens)) {
        std::uint32_t seed = 1;
        for (float& x : decoded) {
            seed = seed * 1664525u + 1013904223u;
            x = static_cast<float>(seed >> 8) / 8388608 - 1;
        }
        std::fill_n(decoded.begin(), 32, 0.0f);                                    // scale 0
        for (std::size_t i = 32; i < 64; ++i) { decoded[i] *= 1e-7f; }             // a subnormal scale
        for (std::size_t i = 64; i < 96; ++i) { decoded[i] = -1000 * decoded[i]; } // a large one
        ggml_quantize_chunk(type, decoded.data(), tensor->data, 0, heads * tokens, dim, nullptr);
        ggml_get_type_traits(type)->to_float(tensor->data, decoded.data(), dim * heads * tokens);
    }

    // Whether row `row` of a head reads as ggml's token, bit for bit.
    [[nodiscard]] bool reads(const ggml_rows<Block>& rows, index_t head, index_t row, index_t token) const {
        std::vector<float> tile(dim);
        rows.load_rows(head, row, 1, tile.data());
        return std::memcmp(tile.data(), decoded.data() + (token * heads + head) * dim, dim * sizeof(float)) ==
               0;
    }
};

// Whether all rows read as ggml's, before and after a cut in place.
template <class Block>
bool reads_and_cuts(ggml_type type) {
    quantised<Block> q(type);
    ggml_rows<Block> rows(nullptr, {0, 0, 0}, {0, 0});
    if (!view_ggml(*q.tensor, rows, ggml_axes::cached()).ok()) { return false; }
    bool same = rows.extent(0) == q.heads && rows.extent(1) == q.tokens && rows.extent(2) == q.dim;
    for (index_t h = 0; h < q.heads; ++h) {
        for (index_t t = 0; t < q.tokens; ++t) { same = same && q.reads(rows, h, t, t); }
    }
    keep_plan plan;
    const std::vector<index_t> counts(q.heads, q.tokens / 2);
    if (!plan.reset(counts).ok()) { return false; }
    for (index_t h = 0; h < q.heads; ++h) {
        const auto kept = plan.writable_row(h);
        for (std::size_t i = 0; i < kept.size(); ++i) {
            kept[i] = static_cast<std::int32_t>(2 * i) + (h == 1 ? 1 : 0);
        }
    }
    same = same && compact_in_place(rows, plan).ok();
    for (index_t h = 0; h < q.heads; ++h) {
        for (index_t i = 0; i < q.tokens / 2; ++i) {
            same = same && q.reads(rows, h, i, plan.row(h)[static_cast<std::size_t>(i)]);
        }
    }
    return same;
}

} // namespace

TEST_CASE("view_ggml: blocks read as ggml reads them, bit for bit, and move whole", "[adapter]") {
    CHECK(reads_and_cuts<block_q8_0>(GGML_TYPE_Q8_0));
    CHECK(reads_and_cuts<block_q4_0>(GGML_TYPE_Q4_0));
}

TEST_CASE("view_ggml: blocks that it can not view", "[adapter]") {
    const quantised<block_q8_0> q(GGML_TYPE_Q8_0);
    ggml_rows<block_q4_0> other(nullptr, {0, 0, 0}, {0, 0});
    ggml_rows<block_q8_0> rows(nullptr, {0, 0, 0}, {0, 0});
    CHECK(view_ggml(*q.tensor, other).code() == errc::invalid_parameter);
    ggml_tensor spoiled = *q.tensor;
    spoiled.nb[1] += 1;
    CHECK(view_ggml(spoiled, rows).code() == errc::invalid_parameter);
    spoiled = *q.tensor;
    spoiled.nb[0] *= 2;
    CHECK(view_ggml(spoiled, rows).code() == errc::invalid_parameter);
    CHECK(rows.extent(0) == 0);
    CHECK(view_ggml(*q.tensor, rows).ok());
}

TEST_CASE("view_ggml: element (head, token, channel) wherever ggml says it is", "[adapter]") {
    const context own;
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
    const context own;
    ggml_tensor* all = ggml_new_tensor_3d(own.c, GGML_TYPE_BF16, 2, 10, 3);
    for (index_t i = 0; i < 60; ++i) { static_cast<bf16*>(all->data)[i] = {static_cast<std::uint16_t>(i)}; }
    ggml_tensor* part = ggml_view_3d(own.c, all, 2, 4, 3, all->nb[1], all->nb[2], 3 * all->nb[1]);
    strided<const bf16, 3> view{nullptr, {0, 0, 0}};
    REQUIRE(view_ggml(*part, view).ok());
    CHECK(view.extent(1) == 4);
    CHECK(view(2, 3, 1).bits == 40 + 2 * 6 + 1);
}

TEST_CASE("view_ggml: what it can not view, it refuses", "[adapter]") {
    const context own;
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
}
