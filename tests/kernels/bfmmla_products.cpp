// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/kernels/bfmmla_products.hpp>

#include "support/cpu_levels.hpp"
#include "support/random_layer.hpp"

#include <kvtrim/kernels/projection_kernels.hpp>
#include <kvtrim/kernels/window_kernels.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#if KVTRIM_HAS_NEON

using namespace kvtrim;

namespace {

constexpr float guard = -31337.0f; // behind the output: must stay

// Printed, so that a log shows what was not tested.
bool runs_here() {
    if (best_cpu_level() == cpu_level::neon_bf16) { return true; }
    WARN("no products of bf16 on this machine: not tested");
    return false;
}

struct bf16_rows {
    index_t count, length, stride;
    std::vector<bf16> data; // nothing behind the last row

    bf16_rows(support::random& r, index_t rows, index_t row_length)
        : count(rows), length(row_length), stride(row_length + r.between(0, 11)),
          data(static_cast<std::size_t>((rows - 1) * stride + row_length)) {
        for (bf16& x : data) { x = element_traits<bf16>::from_float(static_cast<float>(3 * r.normal())); }
    }
    [[nodiscard]] bf16* row(index_t i) { return data.data() + i * stride; }
    [[nodiscard]] const bf16* row(index_t i) const { return data.data() + i * stride; }
    [[nodiscard]] double at(index_t i, index_t d) const { return static_cast<double>(to_float(row(i)[d])); }
};

// [tokens, rows]; the queries packed in two calls, into memory of NaN.
std::vector<float> logits_of(const bf16_rows& keys, index_t first, index_t tokens, const bf16_rows& queries,
                             float scale, float soft_cap) {
    const kernels::window_kernels& steps = kernels::window_kernels_of<bf16>(cpu_level::neon_bf16);
    const index_t rows = queries.count, dim = keys.length, half = rows / 2;
    std::vector<bf16> packed(static_cast<std::size_t>(kernels::packed_bf16(rows, dim)), bf16{0x7fff});
    steps.pack_bf16_queries(queries.row(0), queries.stride, 0, half, dim, packed.data());
    steps.pack_bf16_queries(queries.row(half), queries.stride, half, rows - half, dim, packed.data());
    std::vector<float> out(static_cast<std::size_t>(tokens * rows + 16), guard);
    steps.bf16_logits(keys.row(first), keys.stride, tokens, packed.data(), rows, dim, scale, soft_cap,
                      out.data(), {});
    CHECK(std::all_of(out.end() - 16, out.end(), [](float x) { return x == guard; }));
    out.resize(out.size() - 16);
    return out;
}

// norms [rows] of x times a matrix [inner, columns], packed in two calls into memory of NaN, added to 1.
std::vector<float> norms_of(const bf16_rows& x, const std::vector<float>& matrix, index_t columns) {
    const kernels::projection_kernels& steps = kernels::projection_kernels_of(cpu_level::neon_bf16);
    const index_t inner = x.length, half = inner / 4 * 2;
    std::vector<bf16> packed(static_cast<std::size_t>(kernels::panel_bf16(inner, columns)), bf16{0x7fff});
    steps.pack_bf16(matrix.data(), columns, 0, half, inner, columns, packed.data());
    steps.pack_bf16(matrix.data() + half * columns, columns, half, inner - half, inner, columns,
                    packed.data());
    std::vector<float> scratch(static_cast<std::size_t>(kernels::norm_scratch_floats(x.count)));
    std::vector<float> norms(static_cast<std::size_t>(x.count + 1), 1.0f);
    norms.back() = guard;
    steps.add_bf16_l1(x.row(0), x.stride, x.count, packed.data(), inner, columns, scratch.data(),
                      norms.data());
    CHECK(norms.back() == guard);
    norms.pop_back();
    return norms;
}

std::vector<float> random_matrix(support::random& r, index_t inner, index_t columns) {
    std::vector<float> matrix(static_cast<std::size_t>(inner * columns));
    for (float& x : matrix) {
        x = to_float(element_traits<bf16>::from_float(static_cast<float>(0.1 * r.normal())));
    }
    return matrix;
}

} // namespace

TEST_CASE("bfmmla: logits of bf16 queries and keys are their products to the precision of floats",
          "[kernels]") {
    if (!runs_here()) { return; }
    support::random r(71);
    for (const index_t rows : {1, 2, 7, 8, 9, 12, 33, 128}) {
        for (const index_t dim : {1, 7, 8, 9, 64, 80, 128}) {
            const index_t tokens = r.one_of<index_t>({1, 2, 7, 8, 9, 31, 50});
            const bf16_rows keys(r, tokens, dim), queries(r, rows, dim);
            const float scale = 0.05f, soft_cap = r.chance(0.3) ? 5.0f : 0.0f;
            const std::vector<float> got = logits_of(keys, 0, tokens, queries, scale, soft_cap);
            bool right = true;
            for (index_t t = 0; t < tokens; ++t) {
                for (index_t q = 0; q < rows; ++q) {
                    double sum = 0, size = 0;
                    for (index_t d = 0; d < dim; ++d) {
                        sum += keys.at(t, d) * queries.at(q, d);
                        size += std::abs(keys.at(t, d) * queries.at(q, d));
                    }
                    const auto s = static_cast<double>(scale), cap = static_cast<double>(soft_cap);
                    const double expected = cap > 0 ? cap * std::tanh(s * sum / cap) : s * sum;
                    const auto logit = static_cast<double>(got[static_cast<std::size_t>(t * rows + q)]);
                    right = right && std::abs(logit - expected) <= 2e-6 * s * size + 1e-6;
                }
            }
            CAPTURE(rows, dim, tokens, soft_cap);
            CHECK(right);
        }
    }
}

TEST_CASE("bfmmla: a key's logits do not depend on the block that it is in", "[kernels]") {
    if (!runs_here()) { return; }
    support::random r(72);
    const bf16_rows keys(r, 21, 92), queries(r, 19, 92);
    const std::vector<float> whole = logits_of(keys, 0, 21, queries, 0.1f, 0);
    for (index_t t = 0; t < 21; ++t) {
        const std::vector<float> one = logits_of(keys, t, 1, queries, 0.1f, 0);
        CHECK(std::equal(one.begin(), one.end(), whole.begin() + t * 19));
    }
}

TEST_CASE("bfmmla: a broken key spoils its own logits and no other", "[kernels]") {
    if (!runs_here()) { return; }
    support::random r(73);
    bf16_rows keys(r, 20, 70);
    const bf16_rows queries(r, 11, 70);
    const std::vector<float> before = logits_of(keys, 0, 20, queries, 0.1f, 0);
    keys.row(7)[69] = bf16{0x7fc0}; // NaN
    keys.row(9)[0] = bf16{0x7f80};  // infinity
    const std::vector<float> after = logits_of(keys, 0, 20, queries, 0.1f, 0);
    bool right = true;
    for (index_t t = 0; t < 20; ++t) {
        for (index_t q = 0; q < 11; ++q) {
            const auto i = static_cast<std::size_t>(t * 11 + q);
            const bool expected = t == 7   ? std::isnan(after[i])
                                  : t == 9 ? std::isinf(after[i]) && (after[i] > 0) == (queries.at(q, 0) > 0)
                                           : after[i] == before[i];
            right = right && expected;
        }
    }
    CHECK(right);
}

TEST_CASE("bfmmla: norms are sums of the products' absolute values to the precision of floats", "[kernels]") {
    if (!runs_here()) { return; }
    support::random r(74);
    for (const index_t rows : {1, 7, 8, 17, 70}) {
        for (const index_t inner : {1, 6, 8, 40, 128}) {
            for (const index_t columns : {1, 2, 5, 8, 9, 48}) {
                const bf16_rows x(r, rows, inner);
                const std::vector<float> matrix = random_matrix(r, inner, columns);
                const std::vector<float> got = norms_of(x, matrix, columns);
                bool right = true;
                for (index_t i = 0; i < rows; ++i) {
                    double norm = 1, size = 1;
                    for (index_t c = 0; c < columns; ++c) {
                        double sum = 0;
                        for (index_t d = 0; d < inner; ++d) {
                            const double p =
                                x.at(i, d) *
                                static_cast<double>(matrix[static_cast<std::size_t>(d * columns + c)]);
                            sum += p;
                            size += std::abs(p);
                        }
                        norm += std::abs(sum);
                    }
                    right = right && std::abs(static_cast<double>(got[static_cast<std::size_t>(i)]) - norm) <=
                                         2e-6 * size;
                }
                CAPTURE(rows, inner, columns);
                CHECK(right);
            }
        }
    }
}

TEST_CASE("bfmmla: an infinite element makes its row's norm infinite and no padding makes it NaN",
          "[kernels]") {
    if (!runs_here()) { return; }
    support::random r(75);
    bf16_rows x(r, 10, 12);
    const std::vector<float> matrix = random_matrix(r, 12, 3);
    const std::vector<float> before = norms_of(x, matrix, 3);
    x.row(4)[11] = bf16{0xff80}; // -infinity
    const std::vector<float> after = norms_of(x, matrix, 3);
    for (std::size_t i = 0; i < 10; ++i) {
        CHECK(after[i] == (i == 4 ? std::numeric_limits<float>::infinity() : before[i]));
    }
}

TEST_CASE("bfmmla: the level neon_bf16 has its products, portable leaves bf16 to be widened", "[kernels]") {
    for (const auto level : {cpu_level::portable, cpu_level::neon_bf16}) {
        const bool has = level == cpu_level::neon_bf16;
        CHECK((kernels::window_kernels_of<bf16>(level).bf16_logits != nullptr) == has);
        CHECK((kernels::window_kernels_of<bf16>(level).pack_bf16_queries != nullptr) == has);
        CHECK((kernels::projection_kernels_of(level).add_bf16_l1 != nullptr) == has);
        CHECK((kernels::projection_kernels_of(level).pack_bf16 != nullptr) == has);
        CHECK((kernels::projection_kernels_of(level).unpack_bf16 != nullptr) == has);
        CHECK(kernels::window_kernels_of<float>(level).bf16_logits == nullptr); // floats need none
    }
}

#endif // KVTRIM_HAS_NEON
