// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/kernels/projection_kernels.hpp>

#include "support/bf16_rows.hpp"
#include "support/cpu_levels.hpp"
#include "support/guarded.hpp"

#include <cmath>
#include <limits>
#include <vector>

#if KVTRIM_HAS_NEON

using namespace kvtrim;
using support::bf16_rows, support::guard, support::runs_bfmmla;

namespace {

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

std::vector<float> random_projection(support::random& r, index_t inner, index_t columns) {
    std::vector<float> matrix(static_cast<std::size_t>(inner * columns));
    for (float& x : matrix) {
        x = to_float(element_traits<bf16>::from_float(static_cast<float>(0.1 * r.normal())));
    }
    return matrix;
}

} // namespace

TEST_CASE(
    "projection_kernels_bfmmla: norms are sums of the products' absolute values to the precision of floats",
    "[kernels]") {
    if (!runs_bfmmla()) { return; }
    support::random r(74);
    for (const index_t rows : {1, 7, 8, 17, 70}) {
        for (const index_t inner : {1, 6, 8, 40, 128}) {
            for (const index_t columns : {1, 2, 5, 8, 9, 48}) {
                const bf16_rows x(r, rows, inner);
                const std::vector<float> matrix = random_projection(r, inner, columns);
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

TEST_CASE("projection_kernels_bfmmla: an infinite element makes its row's norm infinite and no padding makes "
          "it NaN",
          "[kernels]") {
    if (!runs_bfmmla()) { return; }
    support::random r(75);
    bf16_rows x(r, 10, 12);
    const std::vector<float> matrix = random_projection(r, 12, 3);
    const std::vector<float> before = norms_of(x, matrix, 3);
    x.row(4)[11] = bf16{0xff80}; // -infinity
    const std::vector<float> after = norms_of(x, matrix, 3);
    for (std::size_t i = 0; i < 10; ++i) {
        CHECK(after[i] == (i == 4 ? std::numeric_limits<float>::infinity() : before[i]));
    }
}

TEST_CASE("projection_kernels_bfmmla: what is packed unpacks to the same rows, from any row on",
          "[kernels]") {
    const kernels::projection_kernels& steps = kernels::projection_kernels_of(cpu_level::neon_bf16);
    support::random r(76);
    for (const index_t inner : {1, 8, 12, 65}) {
        for (const index_t columns : {1, 7, 8, 9, 40}) {
            const std::vector<float> matrix = random_projection(r, inner, columns);
            std::vector<bf16> packed(static_cast<std::size_t>(kernels::panel_bf16(inner, columns)));
            steps.pack_bf16(matrix.data(), columns, 0, inner, inner, columns, packed.data());
            const index_t first = r.between(0, inner - 1);
            std::vector<float> rows(static_cast<std::size_t>((inner - first) * columns + 1), guard);
            steps.unpack_bf16(packed.data(), first, inner - first, inner, columns, rows.data());
            CAPTURE(inner, columns, first);
            CHECK(rows.back() == guard);
            CHECK(std::equal(rows.begin(), rows.end() - 1, matrix.begin() + first * columns));
        }
    }
}

TEST_CASE("projection_kernels_bfmmla: the level neon_bf16 has it, portable leaves bf16 to be widened",
          "[kernels]") {
    for (const auto level : {cpu_level::portable, cpu_level::neon_bf16}) {
        const kernels::projection_kernels& steps = kernels::projection_kernels_of(level);
        CHECK((steps.add_bf16_l1 != nullptr) == (level == cpu_level::neon_bf16));
        CHECK((steps.pack_bf16 != nullptr) == (level == cpu_level::neon_bf16));
        CHECK((steps.unpack_bf16 != nullptr) == (level == cpu_level::neon_bf16));
    }
}

#endif // KVTRIM_HAS_NEON
