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

namespace {

std::vector<float> normals(support::random& r, index_t count) {
    std::vector<float> values = zeros(count);
    for (float& x : values) { x = static_cast<float>(r.normal()); }
    return values;
}

} // namespace

TEST_CASE("fold_bounds: it bounds rows of any stride, alone or with what is there, and skips NaN",
          "[kernels]") {
    support::at_each_cpu_level([&] {
        support::random r(71);
        for (const index_t columns : {1, 15, 16, 17, 32, 50}) {
            const index_t stride = columns + r.between(0, 5);
            auto rows = normals(r, 7 * stride);
            for (float& x : rows) { x = r.chance(0.1) ? not_a_number : x; }
            for (const bool are_first : {false, true}) {
                std::vector<float> high(static_cast<std::size_t>(columns) + 1, 0.5f), low = high;
                kernels::active_row_kernels().fold_bounds(rows.data(), stride, 7, columns, are_first,
                                                          high.data(), low.data());
                for (index_t c = 0; c < columns; ++c) {
                    float expected_high = are_first ? -infinity : 0.5f, expected_low = -expected_high;
                    if (!are_first) { expected_low = 0.5f; }
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
        }
    });
}

TEST_CASE("clear_empty_bounds: where no row had a number, both become 0", "[kernels]") {
    support::at_each_cpu_level([&] {
        for (const index_t columns : {1, 15, 32, 50}) {
            std::vector<float> high(static_cast<std::size_t>(columns) + 1, -infinity), low = high;
            for (float& x : low) { x = infinity; }
            for (std::size_t i = 0; i < high.size(); i += 3) { high[i] = low[i] = static_cast<float>(i) - 7; }
            auto cleared_high = high, cleared_low = low;
            kernels::active_row_kernels().clear_empty_bounds(columns, cleared_high.data(),
                                                             cleared_low.data());
            for (std::size_t i = 0; i < high.size(); ++i) {
                const bool is_cleared = static_cast<index_t>(i) < columns && i % 3 != 0;
                CHECK(cleared_high[i] == (is_cleared ? 0.0f : high[i]));
                CHECK(cleared_low[i] == (is_cleared ? 0.0f : low[i]));
            }
        }
    });
}

TEST_CASE("add_over_rows: the weighted sum of rows of any stride, and what weighs nothing is not read",
          "[kernels]") {
    support::at_each_cpu_level([&] {
        support::random r(74);
        for (const index_t length : {1, 7, 16, 33, 64, 128, 150}) {
            const index_t stride = length + r.between(0, 5), count = 21;
            auto rows = normals(r, count * stride);
            auto weights = normals(r, count);
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
            const auto from = normals(r, count + 1), before = normals(r, count + 1);
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
            const auto rows = normals(r, 3 * length + 1);
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

TEST_CASE("deviations: those of a double loop, wherever the row lies", "[kernels]") {
    support::at_each_cpu_level([&] {
        support::random r(76);
        for (const index_t length : {1, 2, 7, 16, 31, 32, 64, 77, 128, 200}) {
            const index_t stride = length + r.between(0, 3), count = 6;
            auto rows = normals(r, count * stride);
            std::copy_n(rows.begin() + stride, length, rows.begin() + 4 * stride);
            rows[static_cast<std::size_t>(3 * stride + length - 1)] = infinity;
            std::fill_n(rows.begin() + 5 * stride, length, 3e38f);
            std::vector<double> low(static_cast<std::size_t>(length)), scale = low, out(count + 1, 7.0);
            for (double& x : low) { x = r.normal(); }
            for (double& x : scale) { x = r.chance(0.1) ? 0.0 : 1e40 * std::abs(r.normal()); } // beyond float
            scale.back() = 1; // an infinity there is no number, whatever the others
            kernels::active_row_kernels().deviations(rows.data(), stride, count, length, low.data(),
                                                     scale.data(), out.data());
            for (index_t i = 0; i < count; ++i) {
                const auto z = [&](index_t d) {
                    const auto at = static_cast<std::size_t>(d);
                    return (static_cast<double>(rows[static_cast<std::size_t>(i * stride + d)]) - low[at]) *
                           scale[at];
                };
                double mean = 0, squares = 0;
                for (index_t d = 0; d < length; ++d) { mean += z(d) / static_cast<double>(length); }
                for (index_t d = 0; d < length; ++d) { squares += (z(d) - mean) * (z(d) - mean); }
                const double expected =
                    length > 1 ? std::sqrt(squares / static_cast<double>(length - 1)) : 0.0 * squares;
                const double got = out[static_cast<std::size_t>(i)];
                CHECK(
                    (std::isnan(expected) ? std::isnan(got) : std::abs(got - expected) <= 1e-12 * expected));
            }
            CHECK(out[4] == out[1]);
            CHECK(out.back() == 7.0);
        }
        double none = 7;
        kernels::active_row_kernels().deviations(nullptr, 0, 1, 0, nullptr, nullptr, &none);
        CHECK(none == 0);
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
        std::vector<float> extreme{largest_float, -largest_float, largest_float, 0};
        kernels::softmax(extreme.data(), 4);
        CHECK(extreme == std::vector<float>{0.5f, 0, 0.5f, 0});
        kernels::softmax(nullptr, 0);
    });
}
