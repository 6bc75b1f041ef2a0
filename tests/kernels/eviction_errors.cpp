// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/kernels/eviction_errors.hpp>

#include "support/cpu_levels.hpp"
#include "support/guarded.hpp"
#include "support/random_layer.hpp"

#include <cmath>
#include <vector>

using namespace kvtrim;
using support::at, support::guarded, support::guard_is_whole, support::not_a_number, support::wide;

TEST_CASE("eviction_errors: of each token, for a range of rows, whatever the weight", "[kernels]") {
    support::at_each_cpu_level([] {
        support::random r(17);
        for (const index_t rows : {1, 4, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128}) {
            const index_t tokens = r.between(1, 20);
            std::vector<float> tile = guarded(tokens * rows), products = guarded(tokens * rows);
            std::vector<float> squares = guarded(tokens), outputs = guarded(rows);
            const auto some = [&] {
                const double kind = r.uniform();
                return kind < 0.1 ? 0.0f : kind < 0.2 ? 1.0f : static_cast<float>(r.uniform());
            };
            for (index_t i = 0; i < tokens * rows; ++i) {
                tile[static_cast<std::size_t>(i)] = some();
                products[static_cast<std::size_t>(i)] =
                    r.chance(0.05) ? not_a_number : static_cast<float>(r.normal());
            }
            for (index_t t = 0; t < tokens; ++t) { squares[static_cast<std::size_t>(t)] = 3 * some(); }
            for (index_t q = 0; q < rows; ++q) { outputs[static_cast<std::size_t>(q)] = 3 * some(); }
            const std::vector<float> before = tile;
            const index_t begin = r.between(0, rows - 1), end = r.between(begin + 1, rows);
            kernels::eviction_errors(tile.data(), products.data(), tokens, rows, begin, end, squares.data(),
                                     outputs.data());
            CHECK(guard_is_whole(tile));
            bool right = true;
            for (index_t t = 0; t < tokens; ++t) {
                for (index_t q = 0; q < rows; ++q) {
                    const double p = wide(at(before, t * rows + q)),
                                 product = wide(at(products, t * rows + q));
                    const double distance =
                        std::max(0.0, wide(at(squares, t)) + wide(at(outputs, q)) - 2 * product);
                    const double ratio = p / (1 - p);
                    double expected =
                        p > 1 - 0x1p-8 ? p * p * wide(at(squares, t)) : ratio * ratio * distance;
                    if (p <= 1 - 0x1p-8 && std::isnan(product)) { expected = 0; }
                    if (q < begin || q >= end) { expected = p; }
                    const double got = wide(at(tile, t * rows + q));
                    right = right && std::abs(got - expected) <= 1e-4 * expected + 1e-5 * ratio * ratio;
                }
            }
            CHECK(right);
        }
    });
}
