// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/aggregate/worst_case_attention.hpp>

#include "support/checks.hpp"
#include "support/random_attention.hpp"

using namespace kvtrim;
using namespace support;

namespace {

oracle::token_set all_columns(const oracle::tensor& a) {
    oracle::token_set all(a[0][0].size());
    std::iota(all.begin(), all.end(), std::size_t{0});
    return all;
}

} // namespace

TEST_CASE("worst_case_attention: it equals the formula, however the fold is cut", "[aggregate][oracle]") {
    support::random r(81);
    for (int i = 0; i < 120; ++i) {
        const worst_case_attention worst{.kernel_tokens = r.one_of({1, 3, 5, 15, 99}),
                                         .floor_weight = r.one_of({0.0f, 0.3f, 1.0f, 2.0f})};
        const oracle::tensor a = random_attention(r, static_cast<std::size_t>(r.between(1, 4)),
                                                  static_cast<std::size_t>(r.between(1, 20)),
                                                  static_cast<std::size_t>(r.between(1, 40)));
        const auto expected =
            oracle::worst_case(a, a.size(), 0, all_columns(a), static_cast<std::size_t>(worst.kernel_tokens),
                               static_cast<double>(worst.floor_weight));
        const folded got = fold(r, worst, a);
        CAPTURE(i, worst.kernel_tokens, worst.floor_weight);
        CHECK(difference(got.importance, expected.aggregated, 1e-5) == "");
        CHECK(difference(got.attention, expected.attention, 1e-5) == "");
    }
}

TEST_CASE("worst_case_attention: pooling does not change a row's mass, at the borders neither",
          "[aggregate]") {
    support::random r(82);
    // One query: its pooled row sums to what it paid, although the first token's neighbours are missing.
    const oracle::tensor a{{{8, 0, 0, 0, 0, 0}}};
    const worst_case_attention worst{.kernel_tokens = 3, .floor_weight = 0.0f};
    CHECK(fold(r, worst, a).importance == std::vector<float>{4, 4, 0, 0, 0, 0});
}

TEST_CASE("worst_case_attention: the most interested query decides, and the floor is the mean of that",
          "[aggregate]") {
    support::random r(83);
    const oracle::tensor a{{{1, 0, 0, 1}, {0, 6, 0, 0}}, {{0, 0, 0, 3}, {0, 0, 0, 0}}};
    const worst_case_attention worst{.kernel_tokens = 1};
    CHECK(fold(r, worst, a).importance == std::vector<float>{2.5f, 6, 2.5f, 3});
    CHECK(fold(r, worst, a).attention == std::vector<float>{0.25f, 1.5f, 0, 1});
    const worst_case_attention half_floor{.kernel_tokens = 1, .floor_weight = 0.5f};
    CHECK(fold(r, half_floor, a).importance == std::vector<float>{1.25f, 6, 1.25f, 3});
}

TEST_CASE("worst_case_attention: rows without mass count as zero, not as 0/0", "[aggregate][odd]") {
    support::random r(84);
    const oracle::tensor a(2, oracle::matrix(3, oracle::row(5, 0.0)));
    CHECK(fold(r, worst_case_attention{}, a).importance == std::vector<float>(5, 0.0f));
}

TEST_CASE("worst_case_attention: bad fields are named", "[aggregate][errors]") {
    CHECK(worst_case_attention{}.validate().ok());
    CHECK(worst_case_attention{.kernel_tokens = 4}.validate().code() == errc::invalid_parameter);
    CHECK(worst_case_attention{.kernel_tokens = 0}.validate().code() == errc::invalid_parameter);
    CHECK(worst_case_attention{.floor_weight = -1.0f}.validate().code() == errc::invalid_parameter);
}
