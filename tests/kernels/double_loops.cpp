// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Products, sums and softmax statistics on tiles of any shape, against double loops.

#include <kvtrim/kernels/product_kernels.hpp>
#include <kvtrim/kernels/row_kernels.hpp>
#include <kvtrim/kernels/window_kernels.hpp>

#include "support/cpu_levels.hpp"
#include "support/random_layer.hpp"
#include "support/special_floats.hpp"

#include <cmath>
#include <limits>
#include <vector>

namespace {

using namespace kvtrim;
using support::infinity;
using support::largest_float;
using support::not_a_number;

// A matrix whose rows lie `stride` floats apart; what is between them must never be touched.
struct gapped_matrix {
    static constexpr float gap = -31337.0f;

    index_t rows, columns, stride;
    std::vector<float> values;

    gapped_matrix(index_t row_count, index_t column_count, index_t row_stride)
        : rows(row_count), columns(column_count), stride(row_stride),
          values(static_cast<std::size_t>(row_count * row_stride), gap) {}
    gapped_matrix(index_t row_count, index_t column_count)
        : gapped_matrix(row_count, column_count, column_count) {}

    [[nodiscard]] float& operator()(index_t r, index_t c) {
        return values[static_cast<std::size_t>(r * stride + c)];
    }
    [[nodiscard]] double operator()(index_t r, index_t c) const {
        return static_cast<double>(values[static_cast<std::size_t>(r * stride + c)]);
    }
    [[nodiscard]] float* data() { return values.data(); }
    [[nodiscard]] const float* data() const { return values.data(); }

    gapped_matrix& fill(support::random& r) {
        for (index_t i = 0; i < rows; ++i) {
            for (index_t j = 0; j < columns; ++j) { (*this)(i, j) = static_cast<float>(r.normal()); }
        }
        return *this;
    }
};

gapped_matrix random_matrix(support::random& r, index_t rows, index_t columns, index_t stride = 0) {
    return gapped_matrix(rows, columns, stride > 0 ? stride : columns).fill(r);
}

// Whether every element is near what element(row, column) -> {value, size of its terms} says.
struct near_value {
    double value;
    double size;
};

template <class Element>
bool is(const gapped_matrix& m, Element&& element) {
    for (index_t r = 0; r < m.rows; ++r) {
        for (index_t c = 0; c < m.columns; ++c) {
            const near_value expected = element(r, c);
            if (!(std::abs(m(r, c) - expected.value) <= 1e-5 * expected.size + 1e-30)) {
                UNSCOPED_INFO("element " << r << ", " << c << ": " << m(r, c) << ", not " << expected.value);
                return false;
            }
        }
    }
    return true;
}

// The sum of terms(i) for i in [0, count).
template <class Term>
near_value sum(index_t count, Term&& term, near_value start = {0, 0}) {
    for (index_t i = 0; i < count; ++i) {
        start.value += term(i);
        start.size += std::abs(term(i));
    }
    return start;
}

struct shape {
    index_t tokens, query_rows, dim;
};

// One of everything, odd sizes, the sizes of real models.
const std::vector<shape> shapes{{1, 1, 1},    {1, 5, 8},     {7, 1, 33},     {3, 17, 2},     {16, 16, 16},
                                {31, 33, 20}, {64, 128, 64}, {256, 128, 32}, {100, 128, 96}, {33, 7, 128}};

} // namespace

TEST_CASE("tile_tokens: tiles are multiples of 16 within [16, 256] that shrink with head_dim", "[kernels]") {
    CHECK(kernels::tile_tokens(32) == 256);
    CHECK(kernels::tile_tokens(128) == 192);
    CHECK(kernels::tile_tokens(256) == 96);
    CHECK(kernels::tile_tokens(0) == 256);
    for (index_t dim = 1; dim < 4000; ++dim) {
        const index_t tokens = kernels::tile_tokens(dim);
        const bool right = tokens % 16 == 0 && tokens >= 16 && tokens <= 256 &&
                           tokens <= kernels::tile_tokens(dim - 1) &&
                           (tokens == 16 || tokens * dim <= 24 * 1024);
        REQUIRE(right);
    }
}

TEST_CASE("logits, add_weighted_values, add_products: products equal double loops", "[kernels][oracle]") {
    support::at_each_cpu_level([&] {
        support::random r(1);
        for (const auto& [tokens, query_rows, dim] : shapes) {
            CAPTURE(tokens, query_rows, dim);
            const index_t rows_of_out = query_rows;
            for (const index_t gap : {0, 3}) {
                const gapped_matrix keys = random_matrix(r, tokens, dim, dim + gap);
                const gapped_matrix queries = random_matrix(r, query_rows, dim);
                gapped_matrix tile(tokens, query_rows);
                kernels::logits(keys.data(), keys.stride, tokens, queries.data(), query_rows, dim,
                                tile.data());
                CHECK(is(tile, [&, inner = dim](index_t t, index_t q) {
                    return sum(inner, [&](index_t d) { return keys(t, d) * queries(q, d); });
                }));

                const gapped_matrix before = random_matrix(r, rows_of_out, dim);
                gapped_matrix out = before;
                const gapped_matrix values = random_matrix(r, tokens, dim, dim + gap);
                kernels::add_weighted_values(tile.data(), tokens, query_rows, values.data(), values.stride,
                                             dim, out.data());
                CHECK(is(out, [&, inner = tokens](index_t q, index_t d) {
                    return sum(inner, [&](index_t t) { return tile(t, q) * values(t, d); },
                               {before(q, d), std::abs(before(q, d))});
                }));

                const gapped_matrix left = random_matrix(r, query_rows, tokens, tokens + gap);
                gapped_matrix product = before;
                kernels::add_products(left.data(), left.stride, query_rows, values.data(), values.stride,
                                      tokens, dim, product.data());
                CHECK(is(product, [&, inner = tokens](index_t q, index_t d) {
                    return sum(inner, [&](index_t t) { return left(q, t) * values(t, d); },
                               {before(q, d), std::abs(before(q, d))});
                }));
            }
        }
    });
}

TEST_CASE("condition_logits: NaN is masked, +infinity becomes the largest float, all else stays",
          "[kernels]") {
    support::at_each_cpu_level([&] {
        for (const index_t count : {1, 3, 8, 29}) { // whole vectors and their rests
            for (index_t at = 0; at < count; ++at) {
                std::vector<float> logits(static_cast<std::size_t>(count), 0.5f);
                float& odd = logits[static_cast<std::size_t>(at)];
                const auto conditioned = [&](float x) {
                    odd = x;
                    kernels::condition_logits(logits.data(), count, 0.0f);
                    return odd;
                };
                CHECK(conditioned(not_a_number) == -infinity);
                CHECK(conditioned(-not_a_number) == -infinity);
                CHECK(conditioned(infinity) == largest_float);
                CHECK(conditioned(-infinity) == -infinity);
                CHECK(conditioned(-1e30f) == -1e30f);
                CHECK(std::count(logits.begin(), logits.end(), 0.5f) == count - 1);
            }
        }
    });
}

TEST_CASE("condition_logits: the soft cap is cap * tanh(logit / cap), of odd logits too",
          "[kernels][oracle]") {
    support::at_each_cpu_level([&] {
        support::random r(2);
        for (const float cap : {1.0f, 30.0f, 50.0f}) {
            gapped_matrix logits = random_matrix(r, 1, 77);
            for (float& x : logits.values) { x *= 40; }
            const gapped_matrix before = logits;
            kernels::condition_logits(logits.data(), 77, cap);
            CHECK(is(logits, [&](index_t i, index_t j) {
                const double value =
                    static_cast<double>(cap) * std::tanh(before(i, j) / static_cast<double>(cap));
                return near_value{value, 2 * std::abs(value) + 1e-3};
            }));
            for (index_t at = 0; at < 29; ++at) {
                std::vector<float> odd(29, 0.0f);
                const auto capped = [&](float x) {
                    std::fill(odd.begin(), odd.end(), 0.0f);
                    odd[static_cast<std::size_t>(at)] = x;
                    kernels::condition_logits(odd.data(), 29, cap);
                    return odd[static_cast<std::size_t>(at)];
                };
                CAPTURE(cap, at);
                CHECK(capped(infinity) == Approx(cap));
                CHECK(capped(-infinity) == Approx(-cap));
                CHECK(capped(not_a_number) == -infinity); // masked, not capped
            }
        }
    });
}

TEST_CASE("raise_maximum, add_exponentials: any tiling gives the softmax denominators", "[kernels][oracle]") {
    support::at_each_cpu_level([&] {
        support::random r(3);
        for (int round = 0; round < 60; ++round) {
            const index_t query_rows = r.one_of({1, 5, 16, 17, 100, 128});
            const index_t tokens = r.between(1, 300);
            gapped_matrix logits = random_matrix(r, tokens, query_rows);
            const float spread = r.one_of({1.0f, 30.0f, 1000.0f});
            const bool late = r.chance(0.5); // first tiles fully masked
            for (index_t t = 0; t < tokens; ++t) {
                for (index_t q = 0; q < query_rows; ++q) {
                    logits(t, q) *= spread;
                    if (r.chance(0.1) || (late && t < tokens / 2)) { logits(t, q) = kernels::masked_logit; }
                    if (q == 3) { logits(t, q) = kernels::masked_logit; } // a query that sees nothing
                    if (q == 4 && t == tokens / 3) { logits(t, q) = largest_float; }
                }
            }
            const auto rows = static_cast<std::size_t>(query_rows);
            std::vector<float> maximum(rows, kernels::masked_logit);
            std::vector<float> rescale(rows);
            std::vector<double> sums(rows, 0.0);
            gapped_matrix tiles = logits;
            for (index_t t = 0; t < tokens;) {
                const index_t count = std::min(tokens - t, r.between(1, 64));
                float* tile = tiles.data() + t * query_rows;
                const std::vector<float> maximum_before = maximum;
                const kernels::window_kernels& steps = kernels::active_window_kernels();
                steps.raise_maximum(tile, count, query_rows, maximum.data(), rescale.data());
                for (std::size_t q = 0; q < rows; ++q) { sums[q] *= static_cast<double>(rescale[q]); }
                steps.add_exponentials(tile, count, query_rows, maximum.data(), sums.data());
                for (std::size_t q = 0; q < rows; ++q) {
                    const double change =
                        static_cast<double>(maximum_before[q]) - static_cast<double>(maximum[q]);
                    const double expected = maximum[q] == kernels::masked_logit ? 1.0 : std::exp(change);
                    REQUIRE(static_cast<double>(rescale[q]) == Approx(expected).epsilon(1e-5).margin(1e-32));
                }
                t += count;
            }
            CAPTURE(round, query_rows, tokens);
            bool right = true;
            for (index_t q = 0; q < query_rows; ++q) {
                const auto i = static_cast<std::size_t>(q);
                double top = -std::numeric_limits<double>::infinity();
                for (index_t t = 0; t < tokens; ++t) { top = std::max(top, std::as_const(logits)(t, q)); }
                right = right && static_cast<double>(maximum[i]) == top;
                double expected = 0;
                for (index_t t = 0; t < tokens; ++t) {
                    const double l = std::as_const(logits)(t, q);
                    expected += top > -1e300 ? std::exp(l - top) : 0.0;
                }
                right = right && std::abs(sums[i] - expected) <= 1e-5 * expected;
            }
            CHECK(right);
        }
    });
}

TEST_CASE("add_over_tokens, dot: reductions equal double loops", "[kernels][oracle]") {
    support::at_each_cpu_level([&] {
        support::random r(5);
        for (const auto& [tokens, query_rows, dim] : shapes) {
            CAPTURE(tokens, query_rows, dim);
            const gapped_matrix tile = random_matrix(r, tokens, query_rows);
            std::vector<double> sums(static_cast<std::size_t>(query_rows), 0.5);
            kernels::add_over_tokens(tile.data(), tokens, query_rows, sums.data());
            for (index_t q = 0; q < query_rows; ++q) {
                const near_value s = sum(tokens, [&, row = q](index_t t) { return tile(t, row); });
                CHECK(std::abs(sums[static_cast<std::size_t>(q)] - 0.5 - s.value) <= 1e-5 * s.size);
            }
            const gapped_matrix a = random_matrix(r, 1, dim);
            const gapped_matrix b = random_matrix(r, 1, dim);
            const near_value product = sum(dim, [&](index_t d) { return a(0, d) * b(0, d); });
            CHECK(std::abs(static_cast<double>(kernels::dot(a.data(), b.data(), dim)) - product.value) <=
                  1e-5 * product.size);
        }
    });
}

TEST_CASE("add_gram: it equals a double loop and adds up over parts of the columns", "[kernels][oracle]") {
    support::at_each_cpu_level([&] {
        support::random r(6);
        for (const auto& [unused, hidden, dim] : shapes) {
            CAPTURE(hidden, dim);
            const gapped_matrix projection = random_matrix(r, dim, hidden, hidden + 5);
            gapped_matrix gram(dim, dim);
            std::fill(gram.values.begin(), gram.values.end(), 0.0f);
            const index_t first = hidden / 3;
            for (const auto& [begin, columns] :
                 {std::pair{index_t{0}, first}, std::pair{first, hidden - first}}) {
                kernels::add_gram(projection.data() + begin, projection.stride, dim, columns, gram.data());
            }
            CHECK(is(gram, [&, inner = hidden](index_t i, index_t j) {
                return sum(inner, [&](index_t c) { return projection(i, c) * projection(j, c); });
            }));
        }
    });
}
