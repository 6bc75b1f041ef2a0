// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/score/query_statistics.hpp>

#include <kvtrim/cache/ragged.hpp>
#include <kvtrim/score/expected_attention_score.hpp>

#include "oracle/expected_attention.hpp"
#include "support/checks.hpp"

#include <cmath>

using namespace kvtrim;
using namespace support;

namespace {

// Queries around a mean that is large beside their spread, which a sum of squares would not survive.
std::vector<float> random_queries(support::random& r, index_t heads, index_t rows, index_t dim) {
    std::vector<float> q = zeros(heads * rows * dim);
    for (index_t h = 0; h < heads; ++h) {
        std::vector<double> centre(static_cast<std::size_t>(dim));
        for (double& x : centre) { x = 20 * r.normal(); }
        for (index_t i = 0; i < rows * dim; ++i) {
            q[static_cast<std::size_t>(h * rows * dim + i)] =
                static_cast<float>(centre[static_cast<std::size_t>(i % dim)] + r.normal());
        }
    }
    return q;
}

// Rows [first, first + count) of every head.
view part(const view& v, index_t first, index_t count) {
    return {v.data_handle() + first * v.stride(1),
            {v.extent(0), count, v.extent(2)},
            {v.stride(0), v.stride(1), v.stride(2)}};
}

template <class Queries>
void add(query_statistics& statistics, const Queries& queries) {
    growing_workspace memory;
    workspace scratch = memory.of_bytes(statistics.workspace_bytes());
    REQUIRE(statistics.add(queries, scratch).ok());
}

// The largest distance to the oracle, relative to the largest variance.
double distance(const query_statistics& got, const oracle::tensor& queries) {
    double worst = 0;
    for (std::size_t h = 0; h < queries.size(); ++h) {
        const auto dim = static_cast<std::size_t>(got.head_dim);
        const oracle::moments m =
            oracle::query_moments(queries[h], static_cast<std::size_t>(got.skip_positions), dim);
        const auto head = static_cast<index_t>(h);
        double largest = 1e-30;
        for (std::size_t a = 0; a < dim; ++a) { largest = std::max(largest, m.covariance[a][a]); }
        const auto count = static_cast<double>(std::max<index_t>(1, got.counts[h]));
        for (std::size_t a = 0; a < dim; ++a) {
            worst = std::max(worst, std::abs(got.mean(head)[a] - m.mean[a]));
            for (std::size_t b = 0; b < dim; ++b) {
                const double covariance = static_cast<double>(got.co_moment(head)[a * dim + b]) / count;
                worst = std::max(worst, std::abs(covariance - m.covariance[a][b]) / largest);
            }
        }
    }
    return worst;
}

} // namespace

TEST_CASE("query_statistics: mean and covariance are the oracle's, however the prompt is cut into chunks",
          "[score][oracle]") {
    support::random r(501);
    for (int i = 0; i < 40; ++i) {
        const index_t heads = r.between(1, 4);
        const index_t dim = r.one_of({1, 2, 8, 20, 64, 128});
        const index_t rows = r.chance(0.3) ? r.between(0, 6) : r.between(1, 700);
        const std::vector<float> q = random_queries(r, heads, rows, dim);
        const view queries(q.data(), {heads, rows, dim});
        query_statistics whole(heads, dim, r.between(0, 5));
        query_statistics chunked = whole;
        add(whole, queries);
        for (index_t first = 0; first < rows;) {
            const index_t count = std::min(rows - first, r.chance(0.3) ? r.between(0, 3) : r.between(1, 300));
            add(chunked, part(queries, first, count));
            first += count;
        }
        CAPTURE(i, heads, rows, dim, whole.skip_positions);
        CHECK(whole.positions == rows);
        CHECK(chunked.positions == rows);
        CHECK(chunked.counts == whole.counts);
        CHECK(whole.counts[0] == std::max<index_t>(0, rows - whole.skip_positions));
        CHECK(distance(whole, to_oracle(queries)) < 1e-5);
        CHECK(distance(chunked, to_oracle(queries)) < 1e-5);
    }
}

TEST_CASE("query_statistics: any layout, element source and executor gives the same numbers", "[score]") {
    support::random r(502);
    const std::vector<float> q = random_queries(r, 3, 200, 16);
    const view queries(q.data(), {3, 200, 16});
    query_statistics plain(3, 16);
    add(plain, queries);
    query_statistics decoded(3, 16);
    add(decoded, decoding_source(queries));
    query_statistics transposed(3, 16);
    add(transposed, store(queries, layout::transposed).get());
    query_statistics threaded(3, 16);
    growing_workspace memory;
    workspace scratch = memory.of_bytes(threaded.workspace_bytes());
    REQUIRE(threaded.add(queries, scratch, thread_executor{}).ok());
    for (const query_statistics* other : {&decoded, &transposed, &threaded}) {
        CHECK(other->means == plain.means);
        CHECK(other->co_moments == plain.co_moments);
    }
}

TEST_CASE("query_statistics: a query that is not finite is left out of its head alone", "[score][odd]") {
    support::random r(503);
    std::vector<float> q = random_queries(r, 2, 50, 8);
    std::vector<float> without; // head 0 lacks row 20
    for (std::size_t i = 0; i < 50 * 8; ++i) {
        if (i / 8 != 20) { without.push_back(q[i]); }
    }
    query_statistics expected(1, 8, 0);
    add(expected, view(without.data(), {1, 49, 8}));
    for (const float odd :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        q[20 * 8 + 3] = odd;
        query_statistics got(2, 8, 0);
        add(got, view(q.data(), {2, 50, 8}));
        CHECK(got.counts == std::vector<index_t>{49, 50});
        CHECK(got.positions == 50);
        CHECK(std::equal(expected.means.begin(), expected.means.end(), got.means.begin()));
        CHECK(std::equal(expected.co_moments.begin(), expected.co_moments.end(), got.co_moments.begin()));
    }
}

TEST_CASE("query_statistics: a workspace that is too small is refused with nothing added",
          "[score][errors]") {
    const std::vector<float> q(2 * 30 * 8, 1.0f);
    query_statistics statistics(2, 8);
    std::vector<std::byte> few(static_cast<std::size_t>(statistics.workspace_bytes() / 2));
    workspace scratch(few);
    const status s = statistics.add(view(q.data(), {2, 30, 8}), scratch);
    CHECK(s.code() == errc::workspace_too_small);
    CHECK(s.needed() == statistics.workspace_bytes());
    CHECK(statistics.positions == 0);
    CHECK(statistics.counts == std::vector<index_t>{0, 0});
}

TEST_CASE("query_statistics: queries of another shape are refused, with nothing added", "[score][errors]") {
    const std::vector<float> q(4 * 30 * 8, 1.0f);
    query_statistics statistics(3, 8, 0);
    growing_workspace memory;
    workspace scratch = memory.of_bytes(statistics.workspace_bytes());
    CHECK(statistics.add(view(q.data(), {2, 30, 8}), scratch).code() == errc::invalid_parameter);
    CHECK(statistics.add(view(q.data(), {3, 30, 7}), scratch).code() == errc::invalid_parameter);
    CHECK(statistics.add(view(nullptr, {3, 30, 8}), scratch).code() == errc::invalid_parameter);
    const std::vector<std::int32_t> ends{0, 30, 50, 80};
    CHECK(statistics.add(ragged<const float>(q.data(), ends, 8), scratch).code() == errc::rows_differ);
    statistics.positions = std::numeric_limits<index_t>::max() - 29;
    CHECK(statistics.add(view(q.data(), {3, 30, 8}), scratch).code() == errc::invalid_parameter);
    CHECK(statistics.positions == std::numeric_limits<index_t>::max() - 29);
    CHECK(statistics.counts == std::vector<index_t>{0, 0, 0});
}

TEST_CASE(
    "query_statistics: wrong numbers give empty statistics that say so, restored ones are checked alike",
    "[score][errors]") {
    growing_workspace memory;
    workspace scratch = memory.of_bytes(1 << 16);
    constexpr index_t most = std::numeric_limits<index_t>::max();
    for (query_statistics wrong :
         {query_statistics(-1, 8), query_statistics(2, -8), query_statistics(2, 8, -1),
          query_statistics(most, most), query_statistics(index_t{1} << 32, index_t{1} << 32)}) {
        CHECK(wrong.validate().code() == errc::invalid_parameter);
        CHECK(wrong.co_moments.empty());
        CHECK(wrong.workspace_bytes() == 0);
        CHECK(wrong.add(view(nullptr, {0, 0, 8}), scratch).code() == errc::invalid_parameter);
    }
    const std::vector<float> q(2 * 3 * 4, 1.0f);
    const auto refuses = [&](auto&& change) {
        query_statistics restored(2, 4);
        REQUIRE(restored.validate().ok());
        change(restored);
        CHECK(restored.add(view(q.data(), {2, 3, 4}), scratch).code() == errc::invalid_parameter);
        const std::vector<float> k(2 * 10 * 4);
        const auto in = kvtrim::layer(view(k.data(), {2, 10, 4}));
        CHECK(expected_attention_score{&restored}.validate(in, {}).code() == errc::invalid_parameter);
    };
    refuses([](auto& s) { s.counts.pop_back(); });
    refuses([](auto& s) { s.means.pop_back(); });
    refuses([](auto& s) { s.co_moments.clear(); });
    refuses([](auto& s) { s.counts[1] = -1; });
    refuses([](auto& s) { s.counts[1] = s.positions + 1; });
    refuses([](auto& s) { s.positions = -1; });
    refuses([](auto& s) { s.q_heads = 1; });
}

TEST_CASE("query_statistics: what its workspace held before does not matter", "[score]") {
    support::random r(533);
    const std::vector<float> q = random_queries(r, 2, 30, 8);
    const view queries(q.data(), {2, 30, 8});
    query_statistics expected(2, 8), got(2, 8);
    add(expected, queries);
    std::vector<std::byte> bytes(static_cast<std::size_t>(got.workspace_bytes()) + 64,
                                 std::byte{0xff}); // NaN
    workspace scratch(bytes);
    REQUIRE(got.add(queries, scratch).ok());
    CHECK(got.counts == std::vector<index_t>{26, 26}); // of 30, without the first four
    CHECK(got.means == expected.means);
    CHECK(got.co_moments == expected.co_moments);
}
