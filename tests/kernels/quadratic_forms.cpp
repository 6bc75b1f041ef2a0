// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/kernels/quadratic_forms.hpp>

#include "support/checks.hpp"

using namespace kvtrim;

TEST_CASE("add_quadratic_forms: x M x^T is added for each row, of any length and stride",
          "[kernels][oracle]") {
    support::random r(621);
    for (const index_t dim : {0, 1, 5, 64, 128, 200}) {
        for (const index_t rows : {1, 7, 120}) {
            const index_t stride = dim + r.between(0, 3);
            std::vector<float> x = support::zeros(rows * stride);
            std::vector<float> m = support::zeros(dim * dim);
            std::vector<float> product = support::zeros(rows * dim);
            std::vector<float> out = support::zeros(rows);
            for (auto* values : {&x, &m, &out}) {
                for (float& value : *values) { value = static_cast<float>(r.normal()); }
            }
            oracle::row expected(out.begin(), out.end());
            double size = 1;
            for (index_t t = 0; t < rows; ++t) {
                for (index_t a = 0; a < dim; ++a) {
                    for (index_t b = 0; b < dim; ++b) {
                        const double term = static_cast<double>(x[static_cast<std::size_t>(t * stride + a)]) *
                                            static_cast<double>(m[static_cast<std::size_t>(a * dim + b)]) *
                                            static_cast<double>(x[static_cast<std::size_t>(t * stride + b)]);
                        expected[static_cast<std::size_t>(t)] += term;
                        size = std::max(size, std::abs(expected[static_cast<std::size_t>(t)]));
                    }
                }
            }
            kernels::add_quadratic_forms(x.data(), stride, rows, m.data(), dim, product.data(), out.data());
            CAPTURE(dim, rows, stride);
            CHECK(support::difference(out, expected, 0, 2e-6 * size) == "");
        }
    }
}
