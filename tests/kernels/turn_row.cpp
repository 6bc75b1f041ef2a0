// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/kernels/turn_row.hpp>

#include "support/catch.hpp"
#include "support/cpu_levels.hpp"
#include "support/random_layer.hpp"

#include <cmath>

using namespace kvtrim;

TEST_CASE("rotate: two turns together are one turn by the sum of their angles, in both pairings",
          "[kernels]") {
    support::random r(611);
    for (const index_t pairs : {1, 3, 8, 16, 31, 64}) {
        const auto count = static_cast<std::size_t>(pairs);
        std::vector<double> angle(count), cos_a(count), sin_a(count), cos_b(count), sin_b(count);
        std::vector<float> halves(2 * count + 1, 7.0f); // one more, which must stay
        for (std::size_t i = 0; i < count; ++i) {
            const double a = 1000 * r.normal();
            const double b = r.normal();
            angle[i] = a + b;
            cos_a[i] = std::cos(a), sin_a[i] = std::sin(a);
            cos_b[i] = std::cos(b), sin_b[i] = std::sin(b);
            halves[i] = static_cast<float>(r.normal());
            halves[count + i] = static_cast<float>(r.normal());
        }
        std::vector<float> neighbours = halves;
        for (std::size_t i = 0; i < count; ++i) {
            neighbours[2 * i] = halves[i];
            neighbours[2 * i + 1] = halves[count + i];
        }
        const kernels::turn_row a{cos_a.data(), sin_a.data()};
        const kernels::turn_row b{cos_b.data(), sin_b.data()};
        support::at_each_cpu_level([&] {
            const char* const level = name_of(active_cpu_level());
            std::vector<float> split = halves;
            std::vector<float> interleaved = neighbours;
            kernels::rotate_half_split(a, b, pairs, split.data());
            kernels::rotate_interleaved(a, b, pairs, interleaved.data());
            double worst = 0;
            for (std::size_t i = 0; i < count; ++i) {
                const auto x = static_cast<double>(halves[i]);
                const auto y = static_cast<double>(halves[count + i]);
                const double first = x * std::cos(angle[i]) - y * std::sin(angle[i]);
                const double second = y * std::cos(angle[i]) + x * std::sin(angle[i]);
                const double allowed = 2e-7 * std::hypot(x, y);
                for (const double error :
                     {static_cast<double>(split[i]) - first, static_cast<double>(split[count + i]) - second,
                      static_cast<double>(interleaved[2 * i]) - first,
                      static_cast<double>(interleaved[2 * i + 1]) - second}) {
                    worst = std::max(worst, std::abs(error) / allowed);
                }
            }
            CAPTURE(level, pairs);
            CHECK(worst <= 1);
            CHECK(split.back() == 7.0f);
            CHECK(interleaved.back() == 7.0f);
        });
    }
}
