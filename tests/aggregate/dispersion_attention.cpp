// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/aggregate/dispersion_attention.hpp>

#include "support/checks.hpp"
#include "support/random_attention.hpp"

#include <cmath>

using namespace kvtrim;
using namespace support;

namespace {

// Attention of one head to column c over its queries: mean and unbiased variance, in two passes.
std::pair<double, double> moments(const oracle::matrix& head, std::size_t c) {
    const auto queries = static_cast<double>(head.size());
    double mean = 0;
    for (const auto& row : head) { mean += row[c] / queries; }
    double squares = 0;
    for (const auto& row : head) { squares += (row[c] - mean) * (row[c] - mean); }
    return {mean, head.size() < 2 ? 0.0 : squares / (queries - 1)};
}

oracle::tensor softmax_like(support::random& r) {
    oracle::tensor a = random_attention(r, static_cast<std::size_t>(r.between(1, 4)),
                                        static_cast<std::size_t>(r.between(1, 20)),
                                        static_cast<std::size_t>(r.between(1, 40)));
    for (auto& head : a) {
        for (auto& row : head) {
            const double sum = oracle::sum(row) + 1;
            for (double& x : row) { x = static_cast<double>(static_cast<float>(x / sum)); }
        }
    }
    return a;
}

} // namespace

TEST_CASE("mean_variance_attention: it equals the formula, however the fold is cut", "[aggregate][oracle]") {
    support::random r(941);
    for (int i = 0; i < 120; ++i) {
        const oracle::tensor a = softmax_like(r);
        const mean_variance_attention aggregator{.gamma = r.one_of({0.0f, 1.0f, 200.0f}),
                                                 .kernel_tokens = r.one_of({1, 3, 5})};
        oracle::row expected(a[0][0].size(), 0.0);
        for (const auto& head : a) {
            oracle::row scores;
            for (std::size_t c = 0; c < expected.size(); ++c) {
                const auto [mean, variance] = moments(head, c);
                scores.push_back(mean + static_cast<double>(aggregator.gamma) * variance);
            }
            const auto kernel = static_cast<std::size_t>(aggregator.kernel_tokens);
            const oracle::row pooled = oracle::pooled(scores, oracle::pool_kind::average, kernel);
            for (std::size_t c = 0; c < expected.size(); ++c) {
                expected[c] += pooled[c] / static_cast<double>(a.size());
            }
        }
        CAPTURE(i, aggregator.gamma, aggregator.kernel_tokens);
        CHECK(difference(fold(r, aggregator, a).importance, expected, 1e-4, 1e-7) == "");
    }
}

TEST_CASE("dispersion_attention: entropy and variance of each token", "[aggregate][oracle]") {
    support::random r(942);
    for (int i = 0; i < 120; ++i) {
        const oracle::tensor a = softmax_like(r);
        oracle::row entropy(a[0][0].size(), 0.0), variance(entropy);
        for (const auto& head : a) {
            for (std::size_t c = 0; c < entropy.size(); ++c) {
                variance[c] += moments(head, c).second;
                for (const auto& row : head) { entropy[c] -= row[c] * std::log(row[c] + 1e-10); }
            }
        }
        const folded got = fold(r, dispersion_attention{}, a);
        CAPTURE(i);
        CHECK(difference(got.importance, entropy, 1e-4, 1e-6) == "");
        CHECK(difference(got.attention, variance, 1e-4, 1e-8) == "");
    }
}

TEST_CASE("mean_variance_attention: attention that never changes has no variance", "[aggregate][odd]") {
    support::random r(943);
    const oracle::tensor a(2, oracle::matrix(7, oracle::row{0.1, 0.3, 0.6}));
    const folded got = fold(r, mean_variance_attention{.kernel_tokens = 1}, a);
    CHECK(difference(got.importance, {0.1, 0.3, 0.6}, 1e-4) == "");
    const oracle::tensor one_query(1, oracle::matrix(1, oracle::row{0.5, 0.25}));
    CHECK(fold(r, mean_variance_attention{.kernel_tokens = 1}, one_query).importance ==
          std::vector<float>{0.5f, 0.25f});
}

TEST_CASE("mean_variance_attention: bad fields are named", "[aggregate][errors]") {
    CHECK(mean_variance_attention{}.validate().ok());
    CHECK(mean_variance_attention{.gamma = -1}.validate().code() == errc::invalid_parameter);
    CHECK(mean_variance_attention{.gamma = std::numeric_limits<float>::infinity()}.validate().code() ==
          errc::invalid_parameter);
    CHECK(mean_variance_attention{.kernel_tokens = 2}.validate().code() == errc::invalid_parameter);
}
