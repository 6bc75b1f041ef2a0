// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/kernels/bound_kernels.hpp>

#include "support/cpu_levels.hpp"
#include "support/random_layer.hpp"
#include "support/special_floats.hpp"

#include <vector>

using namespace kvtrim;
using namespace support;

TEST_CASE("fold_bounds: it bounds rows of any stride, alone or with what is there, and skips NaN",
          "[kernels]") {
    support::at_each_cpu_level([&] {
        support::random r(71);
        for (const index_t columns : {1, 15, 16, 17, 32, 50}) {
            const index_t stride = columns + r.between(0, 5);
            auto rows = r.normals(7 * stride);
            for (float& x : rows) { x = r.chance(0.1) ? not_a_number : x; }
            for (const bool are_first : {false, true}) {
                std::vector<float> high(static_cast<std::size_t>(columns) + 1, 0.5f), low = high;
                kernels::active_bound_kernels().fold_bounds(rows.data(), stride, 7, columns, are_first,
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
            kernels::active_bound_kernels().clear_empty_bounds(columns, cleared_high.data(),
                                                               cleared_low.data());
            for (std::size_t i = 0; i < high.size(); ++i) {
                const bool is_cleared = static_cast<index_t>(i) < columns && i % 3 != 0;
                CHECK(cleared_high[i] == (is_cleared ? 0.0f : high[i]));
                CHECK(cleared_low[i] == (is_cleared ? 0.0f : low[i]));
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
