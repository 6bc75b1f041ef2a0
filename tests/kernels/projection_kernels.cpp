// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/kernels/projection_kernels.hpp>

#include "support/cpu_levels.hpp"
#include "support/guarded.hpp"
#include "support/random_layer.hpp"

#include <cmath>
#include <vector>

namespace {

using namespace kvtrim;
using support::at, support::guarded, support::guard_is_whole, support::infinity, support::not_a_number,
    support::wide;

std::vector<float> random_floats(support::random& r, index_t count) {
    std::vector<float> floats = guarded(count);
    for (index_t i = 0; i < count; ++i) {
        floats[static_cast<std::size_t>(i)] = static_cast<float>(8 * r.normal());
    }
    return floats;
}

} // namespace

TEST_CASE("projection_kernels: L1 and Gram norms of random shapes equal their sums", "[kernels]") {
    for (const cpu_level level : support::cpu_levels()) {
        CAPTURE(name_of(level));
        const kernels::projection_kernels& steps = kernels::projection_kernels_of(level);
        support::random r(23);
        for (int run = 0; run < 40; ++run) {
            const index_t dim = r.between(1, 70), columns = r.between(1, 100), rows = r.between(1, 30);
            const index_t x_stride = dim + r.between(0, 3), stride = columns + r.between(0, 3);
            const std::vector<float> x = random_floats(r, rows * x_stride);
            const std::vector<float> matrix = random_floats(r, dim * stride);
            std::vector<float> packed = guarded(kernels::panel_floats(dim, columns));
            const index_t half = dim / 2; // packed in two calls
            steps.pack(matrix.data(), stride, 0, half, dim, columns, packed.data());
            steps.pack(matrix.data() + half * stride, stride, half, dim - half, dim, columns, packed.data());
            std::vector<float> scratch = guarded(kernels::norm_scratch_floats(rows));
            std::vector<float> norms = guarded(rows, 0.5f);
            steps.add_l1(x.data(), x_stride, rows, packed.data(), dim, columns, scratch.data(), norms.data());
            CHECK((guard_is_whole(packed) && guard_is_whole(scratch) && guard_is_whole(norms)));
            bool right = true;
            for (index_t i = 0; i < rows; ++i) {
                double norm = 0.5, size = 0.5;
                for (index_t c = 0; c < columns; ++c) {
                    double sum = 0;
                    for (index_t d = 0; d < dim; ++d) {
                        const double term = wide(at(x, i * x_stride + d)) * wide(at(matrix, d * stride + c));
                        sum += term;
                        size += std::abs(term);
                    }
                    norm += std::abs(sum);
                }
                right = right && std::abs(wide(at(norms, i)) - norm) <= 1e-6 * size;
            }
            CAPTURE(run, dim, columns, rows);
            CHECK(right);

            // G = M M^T of the same matrix: sqrt(x G x^T) = || x M ||_2.
            std::vector<float> gram = guarded(dim * dim);
            for (index_t i = 0; i < dim; ++i) {
                for (index_t j = 0; j < dim; ++j) {
                    double sum = 0;
                    for (index_t c = 0; c < columns; ++c) {
                        sum += wide(at(matrix, i * stride + c)) * wide(at(matrix, j * stride + c));
                    }
                    gram[static_cast<std::size_t>(i * dim + j)] = static_cast<float>(sum);
                }
            }
            std::vector<float> packed_gram = guarded(kernels::panel_floats(dim, dim));
            steps.pack(gram.data(), dim, 0, dim, dim, dim, packed_gram.data());
            std::vector<float> l2 = guarded(rows, 0.5f);
            steps.add_gram_l2(x.data(), x_stride, rows, packed_gram.data(), dim, scratch.data(), l2.data());
            std::vector<float> forms = guarded(rows, 0.5f);
            steps.add_forms(x.data(), x_stride, rows, packed_gram.data(), dim, scratch.data(), forms.data());
            CHECK((guard_is_whole(packed_gram) && guard_is_whole(scratch)));
            CHECK((guard_is_whole(l2) && guard_is_whole(forms)));
            for (index_t i = 0; i < rows; ++i) {
                double square = 0, size = 0;
                for (index_t j = 0; j < dim; ++j) {
                    for (index_t k = 0; k < dim; ++k) {
                        const double term = wide(at(x, i * x_stride + j)) * wide(at(gram, j * dim + k)) *
                                            wide(at(x, i * x_stride + k));
                        square += term;
                        size += std::abs(term);
                    }
                }
                const double got = wide(at(l2, i)) - 0.5;
                right = right && std::abs(got * got - square) <= 1e-5 * size;
                right = right && std::abs(wide(at(forms, i)) - 0.5 - square) <= 1e-5 * size;
            }
            CHECK(right);
        }
    }
}

TEST_CASE("projection_kernels: a broken row keeps its norm to itself", "[kernels]") {
    for (const cpu_level level : support::cpu_levels()) {
        CAPTURE(name_of(level));
        const kernels::projection_kernels& steps = kernels::projection_kernels_of(level);
        const std::vector<float> matrix{1.0f, -2.0f, 3.0f}; // [1, 3]
        std::vector<float> packed = guarded(32), scratch = guarded(kernels::norm_scratch_floats(3));
        steps.pack(matrix.data(), 3, 0, 1, 1, 3, packed.data());
        const std::vector<float> x{2.0f, infinity, not_a_number};
        std::vector<float> norms = guarded(3);
        steps.add_l1(x.data(), 1, 3, packed.data(), 1, 3, scratch.data(), norms.data());
        CHECK(norms[0] == 12.0f);
        CHECK(norms[1] == infinity);
        CHECK(std::isnan(norms[2]));
    }
}

TEST_CASE("projection_kernels: a square that rounds below zero is a norm of zero", "[kernels]") {
    for (const cpu_level level : support::cpu_levels()) {
        CAPTURE(name_of(level));
        const kernels::projection_kernels& steps = kernels::projection_kernels_of(level);
        const std::vector<float> x{1, 1};
        const std::vector<float> gram{1, -1.5f, -1.5f,
                                      1}; // not positive: what rounding can make of a singular one
        std::vector<float> packed = guarded(kernels::panel_floats(2, 2));
        std::vector<float> scratch = guarded(kernels::norm_scratch_floats(1));
        steps.pack(gram.data(), 2, 0, 2, 2, 2, packed.data());
        float norm = 0.5f, form = 0.5f;
        steps.add_gram_l2(x.data(), 2, 1, packed.data(), 2, scratch.data(), &norm);
        steps.add_forms(x.data(), 2, 1, packed.data(), 2, scratch.data(), &form);
        CHECK(norm == 0.5f);
        CHECK(form == -0.5f);
    }
}
