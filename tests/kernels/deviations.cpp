// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/kernels/deviations.hpp>

#include "support/cpu_levels.hpp"
#include "support/random_layer.hpp"
#include "support/special_floats.hpp"

#include <cmath>
#include <vector>

using namespace kvtrim;
using namespace support;

TEST_CASE("deviations: those of a double loop, wherever the row lies", "[kernels]") {
    support::at_each_cpu_level([&] {
        support::random r(76);
        for (const index_t length : {1, 2, 7, 16, 31, 32, 64, 77, 128, 200}) {
            const index_t stride = length + r.between(0, 3), count = 6;
            auto rows = r.normals(count * stride);
            std::copy_n(rows.begin() + stride, length, rows.begin() + 4 * stride);
            rows[static_cast<std::size_t>(3 * stride + length - 1)] = infinity;
            std::fill_n(rows.begin() + 5 * stride, length, 3e38f);
            std::vector<double> low(static_cast<std::size_t>(length)), scale = low, out(count + 1, 7.0);
            for (double& x : low) { x = r.normal(); }
            for (double& x : scale) { x = r.chance(0.1) ? 0.0 : 1e40 * std::abs(r.normal()); } // beyond float
            scale.back() = 1; // an infinity there is no number, whatever the others
            kernels::deviations(rows.data(), stride, count, length, low.data(), scale.data(), out.data());
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
        kernels::deviations(nullptr, 0, 1, 0, nullptr, nullptr, &none);
        CHECK(none == 0);
    });
}
