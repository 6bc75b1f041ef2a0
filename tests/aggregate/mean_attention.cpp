// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/aggregate/mean_attention.hpp>

#include "support/checks.hpp"
#include "support/random_attention.hpp"

using namespace kvtrim;
using namespace support;

namespace {

oracle::snapkv_setup slow_form(const mean_attention& m) {
    oracle::snapkv_setup s;
    s.pool = m.pool == pooling::none      ? oracle::pool_kind::none
             : m.pool == pooling::average ? oracle::pool_kind::average
                                          : oracle::pool_kind::maximum;
    s.kernel = static_cast<std::size_t>(m.kernel_tokens);
    s.group = m.group == group_reduction::mean      ? oracle::reduction::mean
              : m.group == group_reduction::maximum ? oracle::reduction::maximum
                                                    : oracle::reduction::sum;
    s.pool_first = m.order == pooling_order::pool_then_group;
    s.queries =
        m.queries == query_normalisation::sum ? oracle::query_average::sum : oracle::query_average::mean;
    return s;
}

} // namespace

TEST_CASE("mean_attention: every field combination equals the formula, however the fold is cut",
          "[aggregate][oracle]") {
    support::random r(71);
    for (const pooling pool : {pooling::none, pooling::average, pooling::maximum}) {
        for (const auto group : {group_reduction::mean, group_reduction::maximum, group_reduction::sum}) {
            for (const auto order : {pooling_order::pool_then_group, pooling_order::group_then_pool}) {
                for (const auto queries : {query_normalisation::mean, query_normalisation::sum}) {
                    for (const index_t kernel : {1, 3, 7, 99}) {
                        const mean_attention mean{pool, kernel, group, order, queries};
                        const auto columns = static_cast<std::size_t>(r.between(1, 40));
                        const oracle::tensor a =
                            random_attention(r, static_cast<std::size_t>(r.between(1, 4)),
                                             static_cast<std::size_t>(r.between(1, 6)), columns);
                        oracle::token_set all(columns);
                        std::iota(all.begin(), all.end(), std::size_t{0});
                        const auto expected = oracle::snapkv_scores(a, a.size(), 0, all, slow_form(mean));
                        CAPTURE(static_cast<int>(pool), static_cast<int>(group), static_cast<int>(order),
                                kernel, columns);
                        CHECK(difference(fold(r, mean, a).importance, expected, 1e-5) == "");
                    }
                }
            }
        }
    }
}

TEST_CASE("mean_attention: lifetime divides by the queries that see a token, and never by zero",
          "[aggregate]") {
    support::random r(72);
    // Four queries on rows 6..9; a window of 4 rows hides row 2 from all of them, row 3 from all but the first.
    const oracle::tensor a(1, oracle::matrix(4, oracle::row{0, 0, 0, 1, 1, 1}));
    const mean_attention lifetime{.pool = pooling::none, .queries = query_normalisation::lifetime};
    const std::vector<float> scores = fold(r, lifetime, a, 4).importance;
    CHECK(scores == std::vector<float>{0, 0, 0, 4.0f / 1, 4.0f / 2, 4.0f / 3});
}

TEST_CASE("mean_attention: the group is kept apart only where reducing it early would be wrong",
          "[aggregate]") {
    const auto lanes = [](pooling pool, group_reduction group, pooling_order order) {
        return mean_attention{.pool = pool, .group = group, .order = order}.lanes(4);
    };
    constexpr auto first = pooling_order::pool_then_group;
    constexpr auto last = pooling_order::group_then_pool;
    CHECK(lanes(pooling::average, group_reduction::mean, first) == 1);
    CHECK(lanes(pooling::none, group_reduction::sum, last) == 1);
    CHECK(lanes(pooling::maximum, group_reduction::mean, last) == 1);
    CHECK(lanes(pooling::maximum, group_reduction::mean, first) == 4);
    CHECK(lanes(pooling::average, group_reduction::maximum, last) == 4);
}

TEST_CASE("mean_attention: a kernel must be odd and positive", "[aggregate][errors]") {
    CHECK(mean_attention{}.validate().ok());
    CHECK(mean_attention{.kernel_tokens = 1}.validate().ok());
    for (const index_t kernel : {0, 2, -1, 64}) {
        CHECK(mean_attention{.kernel_tokens = kernel}.validate().code() == errc::invalid_parameter);
    }
}
