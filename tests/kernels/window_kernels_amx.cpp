// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/kernels/window_kernels.hpp>

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

struct logits_case {
    index_t rows, tokens, dim, query_stride, key_stride;
    float scale, soft_cap;
    std::vector<bf16> queries, keys; // nothing behind the last row

    [[nodiscard]] const bf16* key(index_t t) const { return keys.data() + t * key_stride; }
    [[nodiscard]] const bf16* query(index_t r) const { return queries.data() + r * query_stride; }
};

std::vector<bf16> random_rows(support::random& r, index_t count, index_t length, index_t stride) {
    std::vector<bf16> rows(static_cast<std::size_t>((count - 1) * stride + length));
    for (bf16& x : rows) { x = element_traits<bf16>::from_float(static_cast<float>(3 * r.normal())); }
    return rows;
}

logits_case random_logits_case(support::random& r, index_t rows, index_t tokens, index_t dim) {
    logits_case c{rows, tokens, dim, dim + r.between(0, 3), dim + r.between(0, 40), 0.05f, 0.0f, {}, {}};
    if (r.chance(0.3)) { c.soft_cap = 5.0f; }
    c.queries = random_rows(r, rows, dim, c.query_stride);
    c.keys = random_rows(r, tokens, dim, c.key_stride);
    return c;
}

// [tokens, rows]; the queries packed in two calls, into memory of NaN.
template <class Tiles>
std::vector<float> logits_of(const logits_case& c) {
    std::vector<bf16> packed(static_cast<std::size_t>(kernels::packed_bf16(c.rows, c.dim)), bf16{0x7fff});
    const index_t half = c.rows / 2;
    kernels::pack_columns<kernels::amx::order>(c.query(0), c.query_stride, 0, half, c.dim, packed.data());
    kernels::pack_columns<kernels::amx::order>(c.query(half), c.query_stride, half, c.rows - half, c.dim,
                                               packed.data());
    std::vector<float> out(static_cast<std::size_t>(c.tokens * c.rows + 16), support::guard);
    kernels::amx::logits<Tiles>(c.keys.data(), c.key_stride, c.tokens, packed.data(), c.rows, c.dim, c.scale,
                                c.soft_cap, out.data(), {});
    CHECK(std::all_of(out.end() - 16, out.end(), [](float x) { return x == support::guard; }));
    out.resize(out.size() - 16);
    return out;
}

double exact_logit(const logits_case& c, index_t t, index_t r, double& size) {
    double sum = 0;
    size = 0;
    for (index_t d = 0; d < c.dim; ++d) {
        const double x =
            static_cast<double>(to_float(c.query(r)[d])) * static_cast<double>(to_float(c.key(t)[d]));
        sum += x;
        size += std::abs(x);
    }
    const auto scale = static_cast<double>(c.scale), cap = static_cast<double>(c.soft_cap);
    size *= scale;
    return cap > 0 ? cap * std::tanh(scale * sum / cap) : scale * sum;
}

} // namespace

TEST_CASE("window_kernels_amx: logits of bf16 queries and keys are their products to the precision of floats",
          "[kernels]") {
    if (!support::runs_avx512()) { return; }
    support::random r(41);
    for (const index_t rows : {1, 15, 16, 17, 32, 33, 64, 100, 128}) {
        for (const index_t dim : {1, 31, 32, 33, 64, 80, 128}) {
            const logits_case c =
                random_logits_case(r, rows, r.one_of<index_t>({1, 7, 16, 31, 32, 33, 50}), dim);
            const std::vector<float> got = logits_of<support::emulated_tiles>(c);
            bool right = true;
            for (index_t t = 0; t < c.tokens; ++t) {
                for (index_t q = 0; q < rows; ++q) {
                    double size = 0;
                    const double expected = exact_logit(c, t, q, size);
                    const auto logit = static_cast<double>(got[static_cast<std::size_t>(t * rows + q)]);
                    right = right && std::abs(logit - expected) <= 2e-6 * size + 1e-6;
                }
            }
            CAPTURE(rows, dim, c.tokens, c.key_stride, c.soft_cap);
            CHECK(right);
        }
    }
}

TEST_CASE("window_kernels_amx: a key's logits do not depend on the tile that it is in", "[kernels]") {
    if (!support::runs_avx512()) { return; }
    support::random r(42);
    const logits_case c = random_logits_case(r, 40, 50, 96);
    const std::vector<float> whole = logits_of<support::emulated_tiles>(c);
    for (index_t t = 0; t < c.tokens; ++t) {
        logits_case one = c;
        one.tokens = 1;
        one.keys.assign(c.key(t), c.key(t) + c.dim);
        const std::vector<float> part = logits_of<support::emulated_tiles>(one);
        CHECK(std::equal(part.begin(), part.end(), whole.begin() + t * c.rows));
    }
}

TEST_CASE("window_kernels_amx: a broken key spoils its own logits and no other", "[kernels]") {
    if (!support::runs_avx512()) { return; }
    support::random r(43);
    logits_case c = random_logits_case(r, 33, 40, 70);
    c.soft_cap = 0;
    const std::vector<float> before = logits_of<support::emulated_tiles>(c);
    c.keys[static_cast<std::size_t>(7 * c.key_stride + 69)] = bf16{0x7fc0}; // NaN
    c.keys[static_cast<std::size_t>(9 * c.key_stride)] = bf16{0x7f80};      // infinity
    const std::vector<float> after = logits_of<support::emulated_tiles>(c);
    bool right = true;
    for (index_t t = 0; t < c.tokens; ++t) {
        for (index_t q = 0; q < c.rows; ++q) {
            const auto i = static_cast<std::size_t>(t * c.rows + q);
            const float sign = to_float(c.query(q)[0]);
            const bool expected = t == 7   ? std::isnan(after[i])
                                  : t == 9 ? std::isinf(after[i]) && (after[i] > 0) == (sign > 0)
                                           : after[i] == before[i];
            right = right && expected;
        }
    }
    CHECK(right);
}

TEST_CASE("window_kernels_amx: the level amx has it, the others leave bf16 to be widened", "[kernels]") {
    for (const auto level : {cpu_level::portable, cpu_level::avx2, cpu_level::avx512, cpu_level::amx}) {
        const kernels::window_kernels& steps = kernels::window_kernels_of<bf16>(level);
        CHECK((steps.bf16_logits != nullptr) == (level == cpu_level::amx));
        CHECK((steps.pack_bf16_queries != nullptr) == (level == cpu_level::amx));
        CHECK(kernels::window_kernels_of<float>(level).bf16_logits == nullptr); // floats need none
    }
}

#if defined(__linux__)
// To the bit, by the processor where there is AMX; elsewhere its instructions are decoded and emulated.
TEST_CASE("window_kernels_amx: the instructions of its tiles give what the emulated ones give", "[kernels]") {
    if (!support::runs_tile_instructions()) { return; }
    const support::trapped_tiles scope;
    support::random r(44);
    for (int n = 0; n < 20; ++n) {
        const logits_case c = random_logits_case(r, r.between(1, 70), r.between(1, 70), r.between(1, 100));
        CAPTURE(n, c.rows, c.tokens, c.dim);
        CHECK(logits_of<simd::amx_tiles>(c) == logits_of<support::emulated_tiles>(c));
    }
}
#endif

#endif // KVTRIM_HAS_X86
