// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/kernels/projection_kernels.hpp>

#include "support/cpu_levels.hpp"
#include "support/emulated_tiles.hpp"
#include "support/guarded.hpp"
#include "support/random_layer.hpp"
#include "support/trapped_tiles.hpp"

#include <cmath>
#include <limits>
#include <vector>

#if KVTRIM_HAS_X86

using namespace kvtrim;

namespace {

struct norms_case {
    index_t rows, inner, columns, x_stride, stride;
    std::vector<bf16> x;       // nothing behind the last row
    std::vector<float> matrix; // bf16 exactly

    [[nodiscard]] double term(index_t row, index_t i, index_t c) const {
        return static_cast<double>(to_float(x[static_cast<std::size_t>(row * x_stride + i)])) *
               static_cast<double>(matrix[static_cast<std::size_t>(i * stride + c)]);
    }
};

bf16 random_bf16(support::random& r) {
    return element_traits<bf16>::from_float(static_cast<float>(r.normal()));
}

norms_case random_norms_case(support::random& r, index_t rows, index_t inner, index_t columns) {
    norms_case c{rows, inner, columns, inner + r.between(0, 40), columns + r.between(0, 3), {}, {}};
    c.x.resize(static_cast<std::size_t>((rows - 1) * c.x_stride + inner));
    c.matrix.resize(static_cast<std::size_t>(inner * c.stride));
    for (bf16& x : c.x) { x = random_bf16(r); }
    for (float& x : c.matrix) { x = to_float(random_bf16(r)); }
    return c;
}

// Norms added to 0.5; the matrix packed in two calls, into memory of NaN.
template <class Tiles>
std::vector<float> norms_of(const norms_case& c) {
    std::vector<bf16> packed(static_cast<std::size_t>(kernels::panel_bf16(c.inner, c.columns)), bf16{0x7fff});
    const index_t half = c.inner / 4 * 2;
    kernels::amx::pack_matrix(c.matrix.data(), c.stride, 0, half, c.inner, c.columns, packed.data());
    kernels::amx::pack_matrix(c.matrix.data() + half * c.stride, c.stride, half, c.inner - half, c.inner,
                              c.columns, packed.data());
    std::vector<float> scratch(static_cast<std::size_t>(kernels::norm_scratch_floats(c.rows) + 1),
                               support::guard);
    std::vector<float> norms(static_cast<std::size_t>(c.rows + 1), 0.5f);
    norms.back() = support::guard;
    kernels::amx::add_l1<Tiles>(c.x.data(), c.x_stride, c.rows, packed.data(), c.inner, c.columns,
                                scratch.data(), norms.data());
    CHECK((scratch.back() == support::guard && norms.back() == support::guard));
    norms.pop_back();
    return norms;
}

} // namespace

TEST_CASE("projection_kernels_amx: L1 norms of bf16 equal their sums to the precision of floats",
          "[kernels]") {
    if (!support::runs_avx512()) { return; }
    support::random r(51);
    for (const index_t rows : {1, 16, 31, 32, 33, 64, 65, 100}) {
        for (const index_t inner : {1, 31, 32, 33, 64, 100}) {
            const norms_case c =
                random_norms_case(r, rows, inner, r.one_of<index_t>({1, 15, 16, 17, 32, 40, 70}));
            const std::vector<float> got = norms_of<support::emulated_tiles>(c);
            bool right = true;
            for (index_t i = 0; i < rows; ++i) {
                double norm = 0.5, size = 0.5;
                for (index_t column = 0; column < c.columns; ++column) {
                    double sum = 0;
                    for (index_t k = 0; k < inner; ++k) {
                        sum += c.term(i, k, column);
                        size += std::abs(c.term(i, k, column));
                    }
                    norm += std::abs(sum);
                }
                right = right &&
                        std::abs(static_cast<double>(got[static_cast<std::size_t>(i)]) - norm) <= 1e-6 * size;
            }
            CAPTURE(rows, inner, c.columns);
            CHECK(right);
        }
    }
}

TEST_CASE("projection_kernels_amx: a broken row keeps its norm to itself", "[kernels]") {
    if (!support::runs_avx512()) { return; }
    support::random r(52);
    norms_case c = random_norms_case(r, 40, 33, 20);
    const std::vector<float> before = norms_of<support::emulated_tiles>(c);
    c.x[static_cast<std::size_t>(3 * c.x_stride + 32)] = bf16{0x7fc0}; // NaN
    c.x[static_cast<std::size_t>(39 * c.x_stride)] = bf16{0x7f80};     // infinity
    const std::vector<float> after = norms_of<support::emulated_tiles>(c);
    for (std::size_t i = 0; i < after.size(); ++i) {
        const bool right = i == 3    ? std::isnan(after[i])
                           : i == 39 ? std::isinf(after[i])
                                     : after[i] == before[i];
        CHECK(right);
    }
}

TEST_CASE("projection_kernels_amx: what is packed unpacks to the same rows, from any row on", "[kernels]") {
    if (!support::runs_avx512()) { return; }
    support::random r(54);
    for (int n = 0; n < 20; ++n) {
        const norms_case c = random_norms_case(r, 1, r.between(1, 100), r.between(1, 70));
        std::vector<bf16> packed(static_cast<std::size_t>(kernels::panel_bf16(c.inner, c.columns)));
        kernels::amx::pack_matrix(c.matrix.data(), c.stride, 0, c.inner, c.inner, c.columns, packed.data());
        const index_t first = r.between(0, c.inner - 1);
        std::vector<float> rows(static_cast<std::size_t>((c.inner - first) * c.columns + 1), guard);
        kernels::unpack_matrix<kernels::amx::order>(packed.data(), first, c.inner - first, c.inner, c.columns,
                                                    rows.data());
        bool same = rows.back() == guard;
        for (index_t i = first; i < c.inner; ++i) {
            const float* const row = rows.data() + (i - first) * c.columns;
            same = same && std::equal(row, row + c.columns, c.matrix.data() + i * c.stride);
        }
        CAPTURE(n, c.inner, c.columns, first);
        CHECK(same);
    }
}

TEST_CASE("projection_kernels_amx: the level amx has it, the others leave bf16 to be widened", "[kernels]") {
    for (const auto level : {cpu_level::portable, cpu_level::avx2, cpu_level::avx512, cpu_level::amx}) {
        const kernels::projection_kernels& steps = kernels::projection_kernels_of(level);
        CHECK((steps.add_bf16_l1 != nullptr) == (level == cpu_level::amx));
        CHECK((steps.pack_bf16 != nullptr) == (level == cpu_level::amx));
        CHECK((steps.unpack_bf16 != nullptr) == (level == cpu_level::amx));
    }
}

#if defined(__linux__)
// To the bit, by the processor where there is AMX; elsewhere its instructions are decoded and emulated.
TEST_CASE("projection_kernels_amx: the instructions of its tiles give what the emulated ones give",
          "[kernels]") {
    if (!support::runs_tile_instructions()) { return; }
    const support::trapped_tiles scope;
    support::random r(53);
    for (int n = 0; n < 20; ++n) {
        const norms_case c = random_norms_case(r, r.between(1, 70), r.between(1, 100), r.between(1, 70));
        CAPTURE(n, c.rows, c.inner, c.columns);
        CHECK(norms_of<simd::amx_tiles>(c) == norms_of<support::emulated_tiles>(c));
    }
}
#endif

#endif // KVTRIM_HAS_X86
