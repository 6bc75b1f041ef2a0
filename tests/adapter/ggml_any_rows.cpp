// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/adapter/ggml_any_rows.hpp>

#include <kvtrim/cache/indexed_rows.hpp>

#include "support/catch.hpp"
#include "support/ggml_memory.hpp"

#include <cmath>
#include <limits>
#include <vector>

namespace {

using namespace kvtrim;

using support::ggml_memory;

std::vector<float> numbers(std::size_t count) {
    std::vector<float> all(count);
    std::uint32_t seed = 1;
    for (float& x : all) {
        seed = seed * 1664525u + 1013904223u;
        x = static_cast<float>(seed >> 8) / 8388608 - 1;
    }
    return all;
}

// Fills a tensor, and returns what ggml reads from it, in its own order.
std::vector<float> fill(ggml_tensor& t) {
    const auto count = static_cast<std::size_t>(ggml_nelements(&t));
    std::vector<float> values = numbers(count);
    if (t.type == GGML_TYPE_F32) {
        std::memcpy(t.data, values.data(), count * sizeof(float));
        return values;
    }
    ggml_quantize_chunk(t.type, values.data(), t.data, 0, ggml_nrows(&t), t.ne[0], nullptr);
    ggml_get_type_traits(t.type)->to_float(t.data, values.data(), static_cast<std::int64_t>(count));
    return values;
}

std::vector<float> rows_of(const auto& view) {
    std::vector<float> all(static_cast<std::size_t>(view.extent(0) * view.extent(1) * view.extent(2)));
    for (index_t h = 0; h < view.extent(0); ++h) {
        view.load_rows(h, 0, view.extent(1), all.data() + h * view.extent(1) * view.extent(2));
    }
    return all;
}

} // namespace

TEST_CASE("ggml_any_rows: every type that ggml decodes is read as ggml reads it, each stream by its number",
          "[adapter]") {
    for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q4_0, GGML_TYPE_Q5_1,
                                 GGML_TYPE_Q8_0, GGML_TYPE_IQ4_NL, GGML_TYPE_Q4_K, GGML_TYPE_Q6_K}) {
        const ggml_memory own;
        ggml_tensor* t = ggml_new_tensor_4d(own.c, type, 256, 5, 3, 2);
        const std::vector<float> expected = fill(*t);
        CAPTURE(ggml_type_name(type));
        for (const std::size_t stream : {0u, 1u}) {
            const ggml_any_rows rows(*t, ggml_axes::attended(), static_cast<index_t>(stream));
            REQUIRE(rows.validate().ok());
            CHECK((rows.extent(0) == 3 && rows.extent(1) == 5 && rows.extent(2) == 256));
            const auto begin = expected.begin() + static_cast<std::ptrdiff_t>(stream * expected.size() / 2);
            CHECK(rows_of(rows) == std::vector<float>(begin, begin + 3 * 5 * 256));
        }
    }
}

TEST_CASE("ggml_any_rows: a transposed V is read in runs of neighbouring tokens and token by token",
          "[adapter]") {
    const ggml_memory own;
    constexpr index_t tokens = 150, dim = 8, heads = 2;
    ggml_tensor* t = ggml_new_tensor_3d(own.c, GGML_TYPE_F16, tokens, dim, heads);
    const std::vector<float> stored = fill(*t);
    const ggml_any_rows rows(*t, ggml_axes::transposed());
    REQUIRE(rows.validate().ok());
    std::vector<std::int32_t> cells; // runs of every length up to more than a tile, and single ones
    for (std::int32_t c = 0; c < tokens; ++c) {
        if (c % 7 != 3 || c > 60) { cells.push_back(c); }
    }
    const indexed_rows scattered(rows, cells);
    for (index_t h = 0; h < heads; ++h) {
        std::vector<float> tile(cells.size() * dim);
        scattered.load_rows(h, 0, std::ssize(cells), tile.data());
        bool equal = true;
        for (std::size_t i = 0; i < cells.size(); ++i) {
            for (index_t d = 0; d < dim; ++d) {
                equal = equal && tile[i * dim + static_cast<std::size_t>(d)] ==
                                     stored[static_cast<std::size_t>((h * dim + d) * tokens + cells[i])];
            }
        }
        CHECK(equal);
    }
}

TEST_CASE("ggml_any_rows: a tensor that cannot be read is refused, and empty", "[adapter]") {
    const ggml_memory own;
    const auto is_refused = [](const ggml_tensor& t, ggml_axes axes = ggml_axes::attended(),
                               index_t stream = 0) {
        const ggml_any_rows rows(t, axes, stream);
        return rows.validate().code() == errc::invalid_parameter && rows.extent(0) == 0 &&
               rows.extent(1) == 0;
    };
    const ggml_tensor plain = *ggml_new_tensor_4d(own.c, GGML_TYPE_F16, 32, 4, 2, 2);
    const ggml_tensor blocks = *ggml_new_tensor_3d(own.c, GGML_TYPE_Q8_0, 64, 4, 2);
    CHECK_FALSE(is_refused(plain));
    CHECK(is_refused(plain, ggml_axes::attended(), 2));
    CHECK(is_refused(plain, ggml_axes::attended(), -1));
    CHECK(is_refused(plain, {0, 0, 1}));
    CHECK(is_refused(plain, {0, 1, 3}));
    CHECK(is_refused(blocks, ggml_axes::transposed()));
    ggml_tensor wrong = plain;
    wrong.data = nullptr;
    CHECK(is_refused(wrong));
    wrong = plain;
    wrong.type = GGML_TYPE_I32;
    CHECK(is_refused(wrong));
    wrong = plain;
    wrong.ne[1] = -4;
    CHECK(is_refused(wrong));
    wrong = plain;
    wrong.ne[1] = std::numeric_limits<std::int64_t>::max();
    CHECK(is_refused(wrong));
    wrong = plain;
    wrong.nb[2] = std::numeric_limits<std::size_t>::max();
    CHECK(is_refused(wrong));
    wrong = blocks;
    wrong.ne[0] = 40;
    CHECK(is_refused(wrong));
    wrong = blocks;
    wrong.nb[0] = 1;
    CHECK(is_refused(wrong));
}

TEST_CASE("ggml_output_projection: W_O is read of any type, and turned for values that lie rotated",
          "[adapter]") {
    const ggml_memory own;
    constexpr index_t heads = 3, dim = 64, hidden = 10, inputs = heads * dim;
    ggml_tensor* t = ggml_new_tensor_2d(own.c, GGML_TYPE_Q8_0, inputs, hidden);
    const std::vector<float> w = fill(*t);
    ggml_output_projection wo(*t, heads);
    REQUIRE(wo.validate().ok());
    CHECK((wo.view().extent(0) == heads && wo.view().extent(1) == dim && wo.view().extent(2) == hidden));
    CHECK(wo.view()(2, 5, 7) == w[7 * inputs + 2 * dim + 5]);

    // A Hadamard matrix, symmetric and orthogonal: (R v) (R W) = v W.
    constexpr index_t n = 32;
    std::vector<float> r;
    for (unsigned i = 0; i < n; ++i) {
        for (unsigned k = 0; k < n; ++k) {
            r.push_back(__builtin_parity(i & k) != 0 ? -0.17677669f : 0.17677669f);
        }
    }
    const std::vector<float> v = numbers(dim);
    std::vector<float> turned(dim);
    for (index_t d = 0; d < dim; ++d) {
        for (index_t k = 0; k < n; ++k) {
            turned[static_cast<std::size_t>(d)] +=
                r[static_cast<std::size_t>(d % n * n + k)] * v[static_cast<std::size_t>(d / n * n + k)];
        }
    }
    const auto product = [&](const std::vector<float>& value, index_t out) {
        float sum = 0;
        for (index_t d = 0; d < dim; ++d) {
            sum += value[static_cast<std::size_t>(d)] * wo.view()(1, d, out);
        }
        return sum;
    };
    std::vector<float> expected;
    for (index_t out = 0; out < hidden; ++out) { expected.push_back(product(v, out)); }
    REQUIRE(wo.rotate(r).ok());
    for (index_t out = 0; out < hidden; ++out) {
        CHECK(std::abs(product(turned, out) - expected[static_cast<std::size_t>(out)]) < 1e-4f);
    }
    CHECK(wo.rotate(std::span(r).first(5)).code() == errc::invalid_parameter);
    CHECK(wo.rotate(std::vector<float>(25)).code() == errc::invalid_parameter);
    CHECK(ggml_output_projection(*t, 5).validate().code() == errc::invalid_parameter);
    CHECK(ggml_output_projection(*t, 0).validate().code() == errc::invalid_parameter);
    CHECK(ggml_output_projection().view().extent(0) == 0);
}
