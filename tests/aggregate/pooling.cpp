// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/aggregate/pooling.hpp>

#include "support/checks.hpp"
#include "support/special_floats.hpp"

#include <cmath>
#include <optional>
#include <vector>

namespace {

using namespace kvtrim;
using support::infinity;
using support::not_a_number;

using row = std::vector<float>;

row pooled(pooling kind, index_t kernel, const row& in) {
    row out(in.size(), -99.0f);
    REQUIRE(pool(kind, kernel, in, out).ok());
    return out;
}

static_assert(valid_kernel(1).ok() && valid_kernel(7).ok());
static_assert(!valid_kernel(0).ok() && !valid_kernel(4).ok() && !valid_kernel(-3).ok());

} // namespace

TEST_CASE("pool: average and maximum equal a double loop, for any kernel and length", "[attention][oracle]") {
    support::random r(1);
    for (int round = 0; round < 200; ++round) {
        row in;
        for (index_t c = r.between(0, 40); c > 0; --c) { in.push_back(static_cast<float>(4 * r.normal())); }
        const index_t kernel = 2 * r.between(0, 12) + 1;
        const row average = pooled(pooling::average, kernel, in);
        const row maximum = pooled(pooling::maximum, kernel, in);
        const auto columns = static_cast<index_t>(in.size());
        for (index_t c = 0; c < columns; ++c) {
            double sum = 0;
            std::optional<float> largest;
            for (index_t d = c - kernel / 2; d <= c + kernel / 2; ++d) {
                if (d < 0 || d >= columns) { continue; }
                const float x = in[static_cast<std::size_t>(d)];
                sum += static_cast<double>(x);
                largest = largest ? std::max(*largest, x) : x;
            }
            CAPTURE(round, kernel, c);
            CHECK(static_cast<double>(average[static_cast<std::size_t>(c)]) ==
                  Approx(sum / static_cast<double>(kernel)).margin(1e-5));
            CHECK(maximum[static_cast<std::size_t>(c)] == largest);
        }
    }
}

TEST_CASE("pool: borders are damped by the average and ignored by the maximum", "[attention]") {
    CHECK(pooled(pooling::average, 3, {3, 6, 9}) == row{3, 6, 5});
    CHECK(pooled(pooling::maximum, 3, {-3, -6, -9}) == row{-3, -3, -6});
    CHECK(pooled(pooling::average, 5, {5}) == row{1});
    CHECK(pooled(pooling::maximum, 5, {-5}) == row{-5});
}

TEST_CASE("pool: none copies, whatever the kernel", "[attention]") {
    CHECK(pooled(pooling::none, 5, {1, 2, 3}) == row{1, 2, 3});
    CHECK(pooled(pooling::none, 1, {}).empty());
    CHECK(pooled(pooling::average, 1, {1, 2}) == row{1, 2});
}

TEST_CASE("pool: NaN spreads over the average's kernel and is ignored by the maximum", "[attention]") {
    const row average = pooled(pooling::average, 3, {1, 2, not_a_number, 4, 5});
    CHECK(average[0] == 1.0f);
    CHECK(std::isnan(average[1]));
    CHECK(std::isnan(average[2]));
    CHECK(std::isnan(average[3]));
    CHECK(average[4] == 3.0f);
    CHECK(pooled(pooling::maximum, 3, {not_a_number, 2, not_a_number, 4, not_a_number}) ==
          row{2, 2, 4, 4, 4});
    CHECK(std::isnan(pooled(pooling::maximum, 3, {not_a_number, not_a_number, not_a_number, 4})[0]));
    CHECK(pooled(pooling::maximum, 3, {-infinity, not_a_number, infinity})[0] == -infinity);
    CHECK(pooled(pooling::maximum, 3, {-infinity, not_a_number, infinity})[1] == infinity);
}

TEST_CASE("pool: an even or empty kernel and lengths that differ are refused, with nothing written",
          "[attention][errors]") {
    row out{-7, -7, -7};
    for (const index_t kernel : {0, 2, -1}) {
        CHECK(pool(pooling::average, kernel, row{1, 2, 3}, out).code() == errc::invalid_parameter);
    }
    CHECK(pool(pooling::average, 3, row{1, 2}, out).code() == errc::invalid_parameter);
    CHECK(out == row{-7, -7, -7});
    CHECK(valid_kernel(2).code() == errc::invalid_parameter);
}
