// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/kernels/product_kernels.hpp>

#include "support/catch.hpp"
#include "support/cpu_levels.hpp"
#include "support/random_layer.hpp"

#include <cmath>
#include <vector>

using namespace kvtrim;

namespace {

constexpr float behind = 1e30f; // what no product may read, or write over

// A matrix of random numbers, by rows or by columns, with gaps between these.
struct matrix {
    std::vector<float> elements;
    kernels::matrix_in view;

    matrix(index_t rows, index_t columns, bool by_rows, support::random& r) {
        const index_t length = by_rows ? columns : rows, lines = by_rows ? rows : columns;
        const index_t gap = r.between(0, 3);
        elements.assign(static_cast<std::size_t>(lines * (length + gap) + 1), behind); // never null
        view = {elements.data(), by_rows ? length + gap : 1, by_rows ? 1 : length + gap};
        for (index_t i = 0; i < rows; ++i) {
            for (index_t k = 0; k < columns; ++k) {
                elements[static_cast<std::size_t>(i * view.row + k * view.step)] =
                    static_cast<float>(r.normal());
            }
        }
    }
    [[nodiscard]] double at(index_t i, index_t k) const {
        return static_cast<double>(view.data[i * view.row + k * view.step]);
    }
};

} // namespace

TEST_CASE("products: of rows or columns with gaps, of any size, and nothing behind them is read or written",
          "[kernels]") {
    support::at_each_cpu_level([&] {
        support::random r(81);
        for (int n = 0; n < 300; ++n) {
            const index_t rows = r.between(0, 20),
                          inner = r.chance(0.1) ? r.between(250, 530) : r.between(0, 40);
            const index_t columns = r.between(1, 70), out_row = columns + r.between(0, 3);
            const matrix a(rows, inner, r.chance(0.5), r), b(inner, columns, r.chance(0.5), r);
            const auto floats = static_cast<std::size_t>(rows * out_row);
            std::vector<float> product(floats, behind), sum(floats, behind);
            for (index_t i = 0; i < rows; ++i) {
                for (index_t j = 0; j < columns; ++j) {
                    sum[static_cast<std::size_t>(i * out_row + j)] = 0.5f;
                }
            }
            const kernels::product_kernels& steps = kernels::active_product_kernels();
            steps.multiply(a.view, rows, b.view, inner, columns, product.data(), out_row);
            steps.add(a.view, rows, b.view, inner, columns, sum.data(), out_row);
            CAPTURE(rows, inner, columns, a.view.step, b.view.step);
            for (std::size_t x = 0; x < floats; ++x) {
                const auto i = static_cast<index_t>(x) / out_row, j = static_cast<index_t>(x) % out_row;
                if (j >= columns) {
                    REQUIRE(product[x] == behind);
                    REQUIRE(sum[x] == behind);
                    continue;
                }
                double exact = 0, size = 1;
                for (index_t k = 0; k < inner; ++k) {
                    exact += a.at(i, k) * b.at(k, j);
                    size += std::abs(a.at(i, k) * b.at(k, j));
                }
                REQUIRE(std::abs(static_cast<double>(product[x]) - exact) <= 1e-6 * size);
                REQUIRE(std::abs(static_cast<double>(sum[x]) - exact - 0.5) <= 1e-6 * size);
            }
        }
    });
}

TEST_CASE("products: an element does not depend on the rows and columns that are computed with it",
          "[kernels]") {
    support::at_each_cpu_level([&] {
        support::random r(82);
        const index_t rows = 19, inner = 300, columns = 67;
        for (const bool by_rows : {false, true}) {
            const matrix a(rows, inner, true, r), b(inner, columns, by_rows, r);
            std::vector<float> all(static_cast<std::size_t>(rows * columns));
            const kernels::product_kernels& steps = kernels::active_product_kernels();
            steps.multiply(a.view, rows, b.view, inner, columns, all.data(), columns);
            for (index_t i = 0; i < rows; i += 3) {
                for (index_t j = 0; j < columns; j += 5) {
                    float one = 0;
                    steps.multiply({a.view.data + i * a.view.row, a.view.row, a.view.step}, 1,
                                   {b.view.data + j * b.view.step, b.view.row, b.view.step}, inner, 1, &one,
                                   1);
                    CHECK(one == all[static_cast<std::size_t>(i * columns + j)]);
                }
            }
        }
    });
}
