// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/kernels/raise_to_pooled.hpp>

#include "support/cpu_levels.hpp"
#include "support/guarded.hpp"
#include "support/random_layer.hpp"

#include <cmath>
#include <vector>

using namespace kvtrim;
using support::at, support::guarded, support::guard_is_whole, support::wide;

TEST_CASE("raise_to_pooled: the highest pooled row of each token, for any count of rows and halo",
          "[kernels]") {
    support::at_each_cpu_level([] {
        support::random r(17);
        for (const index_t rows : {1, 4, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128}) {
            const index_t tokens = r.between(1, 40), half = r.between(0, 4);
            const index_t before = r.between(0, half), after = r.between(0, half);
            std::vector<float> all = guarded((before + tokens + after) * rows);
            for (std::size_t i = 0; i + 16 < all.size(); ++i) { all[i] = static_cast<float>(r.uniform()); }
            std::vector<float> factor = guarded(rows);
            for (index_t q = 0; q < rows; ++q) {
                factor[static_cast<std::size_t>(q)] = static_cast<float>(r.uniform());
            }
            const float* attention = all.data() + before * rows;
            std::vector<float> best = guarded(tokens, 0.25f);
            kernels::raise_to_pooled(attention, tokens, before, after, half, rows, factor.data(),
                                     best.data());
            CHECK(guard_is_whole(best));
            bool right = true;
            for (index_t t = 0; t < tokens; ++t) {
                double highest = 0.25;
                for (index_t q = 0; q < rows; ++q) {
                    double pooled = 0;
                    for (index_t j = std::max(t - half, -before); j <= std::min(t + half, tokens + after - 1);
                         ++j) {
                        pooled += wide(attention[j * rows + q]);
                    }
                    highest = std::max(highest, pooled * wide(at(factor, q)));
                }
                right = right && std::abs(wide(at(best, t)) - highest) <= 1e-5 * highest;
            }
            CAPTURE(rows, tokens, half, before, after);
            CHECK(right);
        }
    });
}
