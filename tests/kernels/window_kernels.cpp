// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/kernels/window_kernels.hpp>

#include "support/cpu_levels.hpp"
#include "support/guarded.hpp"
#include "support/random_layer.hpp"

#include <cmath>
#include <vector>

namespace {

using namespace kvtrim;
using support::at, support::guarded, support::guard_is_whole, support::infinity, support::not_a_number,
    support::wide;

// Row counts around every width that a kernel treats apart, and the window of a real layer.
const std::vector<index_t> row_counts{1, 4, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128};

// Logits with what a broken key leaves in them.
std::vector<float> random_logits(support::random& r, index_t count, bool broken) {
    std::vector<float> logits = guarded(count);
    for (index_t i = 0; i < count; ++i) {
        float& x = logits[static_cast<std::size_t>(i)];
        x = static_cast<float>(8 * r.normal());
        if (broken && r.chance(0.05)) { x = not_a_number; }
        if (broken && r.chance(0.05)) { x = kernels::masked_logit; }
    }
    return logits;
}

// What the steps promise of a logit: NaN is masked.
double logit_of(float x) {
    return std::isnan(x) ? -INFINITY : std::min(wide(x), wide(std::numeric_limits<float>::max()));
}

double weight_of(float logit, float maximum) {
    if (maximum == kernels::masked_logit) { return 0; }
    const double x = logit_of(logit) - wide(maximum);
    return x < -75 ? 0 : std::exp(x);
}

// Calls fn(steps, random) for every level of the machine.
template <class Fn>
void for_each_level(Fn&& fn) {
    for (const cpu_level level : support::cpu_levels()) {
        CAPTURE(name_of(level));
        support::random r(17);
        fn(kernels::window_kernels_of(level), r);
    }
}

} // namespace

TEST_CASE("window_kernels: logits of packed queries are scaled products, capped where asked", "[kernels]") {
    for_each_level([](const kernels::window_kernels& steps, support::random& r) {
        for (const index_t rows : row_counts) {
            for (const float soft_cap : {0.0f, 5.0f}) {
                const index_t dim = r.between(1, 70), tokens = r.between(1, 40),
                              stride = dim + r.between(0, 3);
                const std::vector<float> queries = random_logits(r, rows * dim, false);
                const std::vector<float> keys = random_logits(r, tokens * stride, false);
                std::vector<float> packed = guarded(kernels::rows_packed(rows) * dim);
                const index_t half = rows / 2; // packed in two calls
                steps.pack_queries(queries.data(), 0, half, dim, 0.05f, packed.data());
                steps.pack_queries(queries.data() + half * dim, half, rows - half, dim, 0.05f, packed.data());
                CHECK(guard_is_whole(packed));
                std::vector<float> out = guarded(tokens * rows);
                steps.logits(keys.data(), stride, tokens, packed.data(), rows, dim, soft_cap, out.data(), {});
                CHECK(guard_is_whole(out));
                bool right = true;
                for (index_t t = 0; t < tokens; ++t) {
                    for (index_t q = 0; q < rows; ++q) {
                        double sum = 0, size = 0;
                        for (index_t d = 0; d < dim; ++d) {
                            const double x =
                                0.05 * wide(at(queries, q * dim + d)) * wide(at(keys, t * stride + d));
                            sum += x;
                            size += std::abs(x);
                        }
                        const double cap = wide(soft_cap);
                        const double expected = cap > 0 ? cap * std::tanh(sum / cap) : sum;
                        right =
                            right && std::abs(wide(at(out, t * rows + q)) - expected) <= 1e-5 * size + 1e-6;
                    }
                }
                CAPTURE(rows, soft_cap, dim, tokens, stride);
                CHECK(right);
            }
        }
    });
}

TEST_CASE("window_kernels: a key's logits do not depend on the tile that it is in", "[kernels]") {
    const index_t rows = 128, dim = 64, tokens = 50;
    for_each_level([&](const kernels::window_kernels& steps, support::random& r) {
        const std::vector<float> queries = random_logits(r, rows * dim, false);
        const std::vector<float> keys = random_logits(r, tokens * dim, false);
        std::vector<float> packed = guarded(kernels::rows_packed(rows) * dim);
        steps.pack_queries(queries.data(), 0, rows, dim, 1.0f, packed.data());
        std::vector<float> whole = guarded(tokens * rows), part = guarded(rows);
        steps.logits(keys.data(), dim, tokens, packed.data(), rows, dim, 0.0f, whole.data(), {});
        for (index_t t = 0; t < tokens; ++t) {
            steps.logits(keys.data() + t * dim, dim, 1, packed.data(), rows, dim, 0.0f, part.data(), {});
            CHECK(std::equal(part.begin(), part.begin() + rows, whole.begin() + t * rows));
        }
    });
}

TEST_CASE("window_kernels: running maximum, its rescaling, and sums relative to it", "[kernels]") {
    for_each_level([](const kernels::window_kernels& steps, support::random& r) {
        for (const index_t rows : row_counts) {
            const index_t tokens = r.between(1, 70);
            std::vector<float> tile = random_logits(r, tokens * rows, true);
            for (index_t t = 0; t < tokens; ++t) { // row 0 sees nothing
                tile[static_cast<std::size_t>(t * rows)] = kernels::masked_logit;
            }
            std::vector<float> maximum = guarded(rows, kernels::masked_logit), rescale = guarded(rows);
            if (rows > 2) { maximum[2] = 1000.0f; } // above all of the tile
            const std::vector<float> before = maximum;
            steps.raise_maximum(tile.data(), tokens, rows, maximum.data(), rescale.data());
            std::vector<double> sums(static_cast<std::size_t>(rows), 0.5);
            steps.add_exponentials(tile.data(), tokens, rows, maximum.data(), sums.data());
            std::vector<float> weights = guarded(tokens * rows), factor = guarded(rows, 0.25f);
            std::vector<float> finite = maximum;
            for (float& m : finite) { m = m == kernels::masked_logit ? 0.0f : m; }
            steps.attention(tile.data(), tokens, rows, finite.data(), factor.data(), weights.data());
            CHECK((guard_is_whole(maximum) && guard_is_whole(rescale) && guard_is_whole(weights)));
            bool right = true;
            for (index_t q = 0; q < rows; ++q) {
                double highest = wide(at(before, q)), sum = 0.5;
                for (index_t t = 0; t < tokens; ++t) {
                    highest = std::max(highest, logit_of(at(tile, t * rows + q)));
                    const double weight = weight_of(at(tile, t * rows + q), at(maximum, q));
                    sum += weight;
                    right = right && std::abs(wide(at(weights, t * rows + q)) - 0.25 * weight) <=
                                         1e-5 * weight + 1e-33;
                }
                right = right && wide(at(maximum, q)) == highest;
                right = right && std::abs(sums[static_cast<std::size_t>(q)] - sum) <= 1e-5 * sum;
                const double expected = at(before, q) == at(maximum, q) ? 1.0 : 0.0; // from -infinity
                right = right && wide(at(rescale, q)) == expected;
            }
            CAPTURE(rows, tokens);
            CHECK(right);
        }
    });
}

TEST_CASE("window_kernels: a maximum that rises rescales by exp of the rise", "[kernels]") {
    for_each_level([](const kernels::window_kernels& steps, support::random&) {
        std::vector<float> maximum = guarded(2, 1.0f), rescale = guarded(2);
        const std::vector<float> tile{3.5f, 0.5f};
        steps.raise_maximum(tile.data(), 1, 2, maximum.data(), rescale.data());
        CHECK(maximum[0] == 3.5f);
        CHECK(maximum[1] == 1.0f);
        CHECK(wide(rescale[0]) == Approx(std::exp(-2.5)).epsilon(1e-6));
        CHECK(rescale[1] == 1.0f);
    });
}

TEST_CASE("window_kernels: an infinite logit is the largest float and takes all", "[kernels]") {
    for_each_level([](const kernels::window_kernels& steps, support::random&) {
        const std::vector<float> keys{1.0f, infinity, not_a_number};
        std::vector<float> packed = guarded(32), tile = guarded(3);
        const float query = 2.0f;
        steps.pack_queries(&query, 0, 1, 1, 1.0f, packed.data());
        steps.logits(keys.data(), 1, 3, packed.data(), 1, 1, 0.0f, tile.data(), {});
        float maximum = kernels::masked_logit, rescale = 0, weight = 1.0f;
        double sum = 0;
        steps.raise_maximum(tile.data(), 3, 1, &maximum, &rescale);
        steps.add_exponentials(tile.data(), 3, 1, &maximum, &sum);
        steps.attention(tile.data(), 3, 1, &maximum, &weight, tile.data());
        CHECK(maximum == std::numeric_limits<float>::max());
        CHECK(sum == Approx(1.0).epsilon(1e-6));
        CHECK(tile[0] == 0.0f);
        CHECK(wide(tile[1]) == Approx(1.0).epsilon(1e-6));
        CHECK(tile[2] == 0.0f);
    });
}

TEST_CASE("window_kernels: sums over rows", "[kernels]") {
    for_each_level([](const kernels::window_kernels& steps, support::random& r) {
        for (const index_t rows : row_counts) {
            const index_t tokens = r.between(1, 40);
            std::vector<float> all = guarded(tokens * rows);
            for (std::size_t i = 0; i + 16 < all.size(); ++i) { all[i] = static_cast<float>(r.uniform()); }
            const float* attention = all.data();
            const index_t begin = r.between(0, rows - 1), end = r.between(begin + 1, rows);
            std::vector<float> sums = guarded(tokens, 0.5f);
            steps.add_row_sums(attention, tokens, rows, begin, end, sums.data());
            CHECK(guard_is_whole(sums));
            bool right = true;
            for (index_t t = 0; t < tokens; ++t) {
                double sum = 0.5;
                for (index_t q = begin; q < end; ++q) { sum += wide(attention[t * rows + q]); }
                right = right && std::abs(wide(at(sums, t)) - sum) <= 1e-5 * sum;
            }
            CAPTURE(rows, tokens, begin, end);
            CHECK(right);
        }
    });
}
