// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/kernels/row_kernels.hpp>

#include <kvtrim/kernels/product_kernels.hpp>

#include "support/cpu_levels.hpp"
#include "support/prefill.hpp"
#include "support/special_floats.hpp"

#include <cmath>
#include <limits>
#include <vector>

using namespace kvtrim;
using namespace support;

TEST_CASE("add_over_rows: the weighted sum of rows of any stride, and what weighs nothing is not read",
          "[kernels]") {
    support::at_each_cpu_level([&] {
        support::random r(74);
        for (const index_t length : {1, 7, 16, 33, 64, 128, 150}) {
            const index_t stride = length + r.between(0, 5), count = 21;
            auto rows = r.normals(count * stride);
            auto weights = r.normals(count);
            for (const index_t i : {0, 9, 20}) {
                weights[static_cast<std::size_t>(i)] = 0;
                std::fill_n(rows.begin() + i * stride, length, i == 9 ? infinity : not_a_number);
            }
            std::vector<double> sums(static_cast<std::size_t>(length) + 1, 0.25), ones = sums;
            const kernels::row_kernels& steps = kernels::active_row_kernels();
            steps.add_over_rows(rows.data(), stride, count, length, weights.data(), sums.data());
            steps.add_over_rows(rows.data() + stride, stride, 8, length, nullptr, ones.data());
            for (index_t d = 0; d < length; ++d) {
                double sum = 0.25, sum_of_ones = 0.25;
                for (index_t i = 0; i < count; ++i) {
                    const auto x = static_cast<double>(rows[static_cast<std::size_t>(i * stride + d)]);
                    const auto weight = static_cast<double>(weights[static_cast<std::size_t>(i)]);
                    sum += weight == 0 ? 0.0 : weight * x;
                    sum_of_ones += 1 <= i && i < 9 ? x : 0.0;
                }
                CHECK(std::abs(sums[static_cast<std::size_t>(d)] - sum) < 1e-5);
                CHECK(std::abs(ones[static_cast<std::size_t>(d)] - sum_of_ones) < 1e-5);
            }
            CHECK(sums.back() == 0.25);
        }
    });
}

TEST_CASE("add_row, add_squares, raise_row, weigh_row: element by element, NaN raises nothing", "[kernels]") {
    support::at_each_cpu_level([&] {
        support::random r(77);
        const kernels::row_kernels& steps = kernels::active_row_kernels();
        for (const index_t count : {0, 1, 7, 16, 50, 64}) {
            const auto from = r.normals(count + 1), before = r.normals(count + 1);
            auto odd = from, added = before, squared = before, raised = before, weighed = before;
            for (float& x : odd) { x = r.chance(0.2) ? not_a_number : x; }
            steps.add_row(from.data(), count, added.data());
            steps.add_squares(from.data(), count, squared.data());
            steps.raise_row(odd.data(), count, raised.data());
            steps.weigh_row(weighed.data(), count, 0.5f, from.data());
            for (std::size_t i = 0; i < from.size(); ++i) {
                const bool is_in = static_cast<index_t>(i) < count; // what lies behind stays
                CHECK(added[i] == (is_in ? before[i] + from[i] : before[i]));
                const auto old = static_cast<double>(before[i]), x = static_cast<double>(from[i]);
                CHECK(static_cast<double>(squared[i]) ==
                      Approx(is_in ? old + x * std::abs(x) : old).epsilon(1e-6).margin(1e-6));
                CHECK(raised[i] == (is_in ? std::fmax(before[i], odd[i]) : before[i]));
                CHECK(weighed[i] == (is_in ? (before[i] + 0.5f) * from[i] : before[i]));
            }
        }
    });
}

TEST_CASE("scale_rows: each row by its factor, and nothing behind them", "[kernels]") {
    support::at_each_cpu_level([&] {
        support::random r(75);
        for (const index_t length : {1, 15, 32, 50}) {
            const auto rows = r.normals(3 * length + 1);
            auto scaled = rows;
            const float factors[] = {2, not_a_number, -0.5f};
            kernels::active_row_kernels().scale_rows(scaled.data(), 3, length, factors);
            for (std::size_t i = 0; i < rows.size() - 1; ++i) {
                const float factor = factors[i / static_cast<std::size_t>(length)];
                CHECK((std::isnan(factor) ? std::isnan(scaled[i]) : scaled[i] == rows[i] * factor));
            }
            CHECK(scaled.back() == rows.back());
        }
    });
}

TEST_CASE("inner_products: every product of two sets of rows, columns apart from what lies between",
          "[kernels]") {
    support::at_each_cpu_level([&] {
        support::random r(72);
        for (const index_t inner : {1, 3, 16, 64, 130, 300}) {
            for (const index_t columns : {1, 5, 90, 300}) {
                const index_t rows = r.between(1, 8);
                const index_t stride = columns + r.between(0, 2);
                const auto a = r.normals(rows * inner);
                const auto b = r.normals(columns * inner);
                std::vector<float> out(static_cast<std::size_t>(rows * stride), 777.0f);
                kernels::inner_products(a.data(), rows, b.data(), columns, inner, out.data(), stride);
                double worst = 0;
                for (index_t i = 0; i < rows; ++i) {
                    for (index_t j = 0; j < stride; ++j) {
                        const auto got = static_cast<double>(out[static_cast<std::size_t>(i * stride + j)]);
                        double expected = j < columns ? 0 : 777;
                        for (index_t d = 0; d < inner && j < columns; ++d) {
                            expected += static_cast<double>(a[static_cast<std::size_t>(i * inner + d)]) *
                                        static_cast<double>(b[static_cast<std::size_t>(j * inner + d)]);
                        }
                        worst = std::max(worst, std::abs(got - expected));
                    }
                }
                CHECK(worst < 1e-4);
            }
        }
    });
}

TEST_CASE("softmax: it sums to one, whatever the size of the logits", "[kernels]") {
    support::at_each_cpu_level([&] {
        support::random r(73);
        for (const index_t count : {1, 2, 17, 100}) {
            for (const float size : {1.0f, 20.0f, 1e30f}) {
                auto row = r.normals(count);
                for (float& x : row) { x *= size; }
                const oracle::row logits(row.begin(), row.end());
                kernels::softmax(row.data(), count);
                // Below e^-75 a weight is 0; the float logits of size 20 carry an error of about 1e-6.
                CHECK(difference(row, oracle::softmax(logits), 1e-5, 1e-30) == "");
            }
        }
    });
}

TEST_CASE("softmax: masked logits weigh nothing, and a row of them becomes zeros", "[kernels]") {
    support::at_each_cpu_level([&] {
        std::vector<float> row{-infinity, 1, -infinity, 1};
        kernels::softmax(row.data(), 4);
        CHECK(row == std::vector<float>{0, 0.5f, 0, 0.5f});
        std::vector<float> all{-infinity, -infinity};
        kernels::softmax(all.data(), 2);
        CHECK(all == std::vector<float>{0, 0});
        std::vector<float> extreme{largest_float, -largest_float, largest_float, 0};
        kernels::softmax(extreme.data(), 4);
        CHECK(extreme == std::vector<float>{0.5f, 0, 0.5f, 0});
        kernels::softmax(nullptr, 0);
    });
}
