// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/kernels/row_ops.hpp>

#include <kvtrim/kernels/products.hpp>

#include "support/cpu_levels.hpp"
#include "support/prefill.hpp"

#include <cmath>
#include <limits>
#include <vector>

using namespace kvtrim;
using namespace support;

namespace {

constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float largest = std::numeric_limits<float>::max();

std::vector<float> normals(support::random& r, index_t count) {
    std::vector<float> values = zeros(count);
    for (float& x : values) { x = static_cast<float>(r.normal()); }
    return values;
}

} // namespace

TEST_CASE("fold_bounds: it folds rows of any stride into what is there, and skips NaN", "[kernels]") {
    support::at_each_cpu_level([&] {
        support::random r(71);
        for (const index_t columns : {1, 15, 16, 17, 32, 50}) {
            const index_t stride = columns + r.between(0, 5);
            auto rows = normals(r, 7 * stride);
            for (float& x : rows) { x = r.chance(0.1) ? not_a_number : x; }
            std::vector<float> high(static_cast<std::size_t>(columns) + 1, 0.5f), low = high;
            kernels::fold_bounds(rows.data(), stride, 7, columns, high.data(), low.data());
            for (index_t c = 0; c < columns; ++c) {
                float expected_high = 0.5f, expected_low = 0.5f;
                for (index_t t = 0; t < 7; ++t) {
                    const float x = rows[static_cast<std::size_t>(t * stride + c)];
                    if (x > expected_high) { expected_high = x; }
                    if (x < expected_low) { expected_low = x; }
                }
                CHECK(high[static_cast<std::size_t>(c)] == expected_high);
                CHECK(low[static_cast<std::size_t>(c)] == expected_low);
            }
            CHECK(high.back() == 0.5f);
            CHECK(low.back() == 0.5f);
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
                const auto a = normals(r, rows * inner);
                const auto b = normals(r, columns * inner);
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

TEST_CASE("corner_bound: the best corner of every channel", "[kernels]") {
    support::at_each_cpu_level([&] {
        const std::vector<float> q_high{1, -1, 2, 0.5f}, q_low{-2, -3, 2, -0.5f};
        const std::vector<float> k_high{3, 1, -1, 4}, k_low{-4, -2, -5, 4};
        // Corners of the channels: -2 * -4, -3 * -2, 2 * -1, 0.5 * 4.
        CHECK(kernels::corner_bound(q_high.data(), q_low.data(), k_high.data(), k_low.data(), 4) ==
              8 + 6 - 2 + 2);
        CHECK(kernels::corner_bound(q_high.data(), q_low.data(), k_high.data(), k_low.data(), 0) == 0);
    });
}

TEST_CASE("softmax: it sums to one, whatever the size of the logits", "[kernels]") {
    support::at_each_cpu_level([&] {
        support::random r(73);
        for (const index_t count : {1, 2, 17, 100}) {
            for (const float size : {1.0f, 20.0f, 1e30f}) {
                auto row = normals(r, count);
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
        std::vector<float> extreme{largest, -largest, largest, 0};
        kernels::softmax(extreme.data(), 4);
        CHECK(extreme == std::vector<float>{0.5f, 0, 0.5f, 0});
        kernels::softmax(nullptr, 0);
    });
}
