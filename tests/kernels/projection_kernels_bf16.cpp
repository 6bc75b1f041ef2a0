// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// As window_kernels_bf16.cpp: one body for each test, and a case for each way to multiply.

#include <kvtrim/kernels/projection_kernels.hpp>

#include "support/cpu_levels.hpp"
#include "support/emulated_tiles.hpp"
#include "support/guarded.hpp"
#include "support/random_bf16_rows.hpp"
#include "support/trapped_tiles.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

using namespace kvtrim;
using support::guarded, support::guard_is_whole, support::random_bf16_rows;

namespace {

// A matrix [inner, columns] of floats that are exactly bf16, with gaps between its rows.
struct bf16_projection {
    index_t inner, columns, stride;
    std::vector<float> data;

    bf16_projection(support::random& r, index_t rows, index_t row_length)
        : inner(rows), columns(row_length), stride(row_length + r.between(0, 3)),
          data(static_cast<std::size_t>(rows * stride)) {
        for (float& x : data) {
            x = to_float(element_traits<bf16>::from_float(static_cast<float>(r.normal())));
        }
    }
    [[nodiscard]] const float* row(index_t i) const { return data.data() + i * stride; }
};

class bf16_norm_checks {
  public:
    explicit bf16_norm_checks(const kernels::projection_kernels& steps) : steps_(steps) {}

    // Added to 0.5; the matrix is packed in two calls, into memory of NaN.
    [[nodiscard]] std::vector<float> norms(const random_bf16_rows& x, const bf16_projection& w) const {
        std::vector<bf16> packed(static_cast<std::size_t>(kernels::panel_bf16(w.inner, w.columns)),
                                 bf16{0x7fff});
        const index_t half = w.inner / 4 * 2;
        steps_.pack_bf16(w.row(0), w.stride, 0, half, w.inner, w.columns, packed.data());
        steps_.pack_bf16(w.row(half), w.stride, half, w.inner - half, w.inner, w.columns, packed.data());
        std::vector<float> scratch = guarded(kernels::norm_scratch_floats(x.count));
        std::vector<float> norms = guarded(x.count, 0.5f);
        steps_.add_bf16_l1(x.row(0), x.stride, x.count, packed.data(), w.inner, w.columns, scratch.data(),
                           norms.data());
        CHECK((guard_is_whole(scratch) && guard_is_whole(norms)));
        norms.resize(static_cast<std::size_t>(x.count));
        return norms;
    }

    // tolerance: of the sum of the products' absolute values.
    void are_sums(double tolerance) const {
        support::random r(51);
        for (const index_t rows : {1, 7, 8, 16, 17, 31, 32, 33, 65, 100}) {
            for (const index_t inner : {1, 6, 8, 31, 32, 33, 64, 100, 128}) {
                const random_bf16_rows x(r, rows, inner);
                const bf16_projection w(r, inner,
                                        r.one_of<index_t>({1, 2, 5, 8, 9, 15, 16, 17, 32, 40, 48, 70}));
                const std::vector<float> got = norms(x, w);
                bool right = true;
                for (index_t i = 0; i < rows; ++i) {
                    double norm = 0.5, size = 0.5;
                    for (index_t c = 0; c < w.columns; ++c) {
                        double sum = 0;
                        for (index_t d = 0; d < inner; ++d) {
                            const double product = x.at(i, d) * static_cast<double>(w.row(d)[c]);
                            sum += product;
                            size += std::abs(product);
                        }
                        norm += std::abs(sum);
                    }
                    const auto answer = static_cast<double>(got[static_cast<std::size_t>(i)]);
                    right = right && std::abs(answer - norm) <= tolerance * size;
                }
                CAPTURE(rows, inner, w.columns);
                CHECK(right);
            }
        }
    }

    // 0 times an infinite element is NaN: padding must not be multiplied by it, or not be summed.
    void are_spoilt_by_their_own_row_alone() const {
        support::random r(52);
        random_bf16_rows x(r, 40, 33);
        const bf16_projection w(r, 33, 19);
        const std::vector<float> before = norms(x, w);
        x.row(3)[32] = bf16{0x7fc0};  // NaN
        x.row(20)[32] = bf16{0xff80}; // -infinity
        x.row(39)[0] = bf16{0x7f80};  // infinity
        const std::vector<float> after = norms(x, w);
        constexpr float infinity = std::numeric_limits<float>::infinity();
        for (std::size_t i = 0; i < after.size(); ++i) {
            CAPTURE(i);
            if (i == 3) {
                CHECK(std::isnan(after[i]));
            } else {
                CHECK(after[i] == (i == 20 || i == 39 ? infinity : before[i]));
            }
        }
    }

    void unpack_what_was_packed() const {
        support::random r(54);
        for (int n = 0; n < 20; ++n) {
            const bf16_projection w(r, r.between(1, 100), r.between(1, 70));
            std::vector<bf16> packed(static_cast<std::size_t>(kernels::panel_bf16(w.inner, w.columns)));
            steps_.pack_bf16(w.row(0), w.stride, 0, w.inner, w.inner, w.columns, packed.data());
            const index_t first = r.between(0, w.inner - 1), count = w.inner - first;
            std::vector<float> rows = guarded(count * w.columns);
            steps_.unpack_bf16(packed.data(), first, count, w.inner, w.columns, rows.data());
            bool same = guard_is_whole(rows);
            for (index_t i = 0; i < count; ++i) {
                const float* const row = rows.data() + i * w.columns;
                same = same && std::equal(row, row + w.columns, w.row(first + i));
            }
            CAPTURE(n, w.inner, w.columns, first);
            CHECK(same);
        }
    }

  private:
    const kernels::projection_kernels& steps_;
};

const kernels::projection_kernels& bfmmla_projection_steps() {
    return kernels::projection_kernels_of(cpu_level::neon_bf16);
}

#if KVTRIM_HAS_X86
template <class Tiles>
constexpr kernels::projection_kernels amx_projection_steps_by = [] {
    kernels::projection_kernels steps = kernels::avx512::projection_table;
    steps.pack_bf16 = kernels::amx::pack_matrix;
    steps.unpack_bf16 = kernels::unpack_matrix<kernels::amx::order>;
    steps.add_bf16_l1 = kernels::amx::add_l1<Tiles>;
    return steps;
}();
const kernels::projection_kernels& emulated_amx_projection_steps() {
    return amx_projection_steps_by<support::emulated_tiles>;
}
#else
const kernels::projection_kernels& emulated_amx_projection_steps() {
    return kernels::projection_kernels_of(cpu_level::amx);
}
#endif

} // namespace

TEST_CASE("projection_kernels of bf16: norms are sums to the precision of floats, AMX", "[kernels]") {
    if (!support::runs_avx512()) { return; }
    bf16_norm_checks(emulated_amx_projection_steps()).are_sums(1e-6);
}
TEST_CASE("projection_kernels of bf16: norms are sums to the precision of floats, BFMMLA", "[kernels]") {
    if (!support::runs_bfmmla()) { return; }
    bf16_norm_checks(bfmmla_projection_steps()).are_sums(2e-6);
}

TEST_CASE("projection_kernels of bf16: a broken row keeps its norm to itself, AMX", "[kernels]") {
    if (!support::runs_avx512()) { return; }
    bf16_norm_checks(emulated_amx_projection_steps()).are_spoilt_by_their_own_row_alone();
}
TEST_CASE("projection_kernels of bf16: a broken row keeps its norm to itself, BFMMLA", "[kernels]") {
    if (!support::runs_bfmmla()) { return; }
    bf16_norm_checks(bfmmla_projection_steps()).are_spoilt_by_their_own_row_alone();
}

TEST_CASE("projection_kernels of bf16: what is packed unpacks to the same rows, from any row on, AMX",
          "[kernels]") {
    if (!support::runs_avx512()) { return; }
    bf16_norm_checks(emulated_amx_projection_steps()).unpack_what_was_packed();
}
TEST_CASE("projection_kernels of bf16: what is packed unpacks to the same rows, from any row on, BFMMLA",
          "[kernels]") {
    if (!support::runs_bfmmla()) { return; }
    bf16_norm_checks(bfmmla_projection_steps()).unpack_what_was_packed();
}

TEST_CASE("projection_kernels of bf16: levels without such products leave bf16 to be widened", "[kernels]") {
    for (const auto level : support::all_cpu_levels()) {
        const bool has_products = support::has_bf16_products(level);
        const kernels::projection_kernels& steps = kernels::projection_kernels_of(level);
        CAPTURE(name_of(level));
        CHECK((steps.add_bf16_l1 != nullptr) == has_products);
        CHECK((steps.pack_bf16 != nullptr) == has_products);
        CHECK((steps.unpack_bf16 != nullptr) == has_products);
    }
}

#if KVTRIM_HAS_X86 && defined(__linux__)
// To the bit, by the processor where there is AMX; elsewhere its instructions are decoded and emulated.
TEST_CASE("projection_kernels of bf16: the instructions of AMX's tiles give what the emulated ones give",
          "[kernels]") {
    if (!support::runs_tile_instructions()) { return; }
    const support::trapped_tiles scope;
    const bf16_norm_checks emulated(emulated_amx_projection_steps());
    const bf16_norm_checks real(amx_projection_steps_by<simd::amx_tiles>);
    support::random r(53);
    for (int n = 0; n < 20; ++n) {
        const random_bf16_rows x(r, r.between(1, 70), r.between(1, 100));
        const bf16_projection w(r, x.length, r.between(1, 70));
        CAPTURE(n, x.count, w.inner, w.columns);
        CHECK(real.norms(x, w) == emulated.norms(x, w));
    }
}
#endif
