// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/kernels/window_kernels.hpp>

#include "support/bf16_rows.hpp"
#include "support/cpu_levels.hpp"
#include "support/guarded.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#if KVTRIM_HAS_NEON

using namespace kvtrim;
using support::bf16_rows, support::guard, support::runs_bfmmla;

namespace {

// [tokens, rows]; the queries packed in two calls, into memory of NaN.
std::vector<float> logits_of(const bf16_rows& keys, index_t first, index_t tokens, const bf16_rows& queries,
                             float scale, float soft_cap) {
    const kernels::window_kernels& steps = kernels::window_kernels_of<bf16>(cpu_level::neon_bf16);
    const index_t rows = queries.count, dim = keys.length, half = rows / 2;
    std::vector<bf16> packed(static_cast<std::size_t>(kernels::packed_bf16(rows, dim)), bf16{0x7fff});
    steps.pack_bf16_queries(queries.row(0), queries.stride, 0, half, dim, packed.data());
    steps.pack_bf16_queries(queries.row(half), queries.stride, half, rows - half, dim, packed.data());
    std::vector<float> out(static_cast<std::size_t>(tokens * rows + 16), guard);
    steps.bf16_logits(keys.row(first), keys.stride, tokens, packed.data(), rows, dim, scale, soft_cap,
                      out.data(), {});
    CHECK(std::all_of(out.end() - 16, out.end(), [](float x) { return x == guard; }));
    out.resize(out.size() - 16);
    return out;
}

} // namespace

TEST_CASE(
    "window_kernels_bfmmla: logits of bf16 queries and keys are their products to the precision of floats",
    "[kernels]") {
    if (!runs_bfmmla()) { return; }
    support::random r(71);
    for (const index_t rows : {1, 2, 7, 8, 9, 12, 33, 128}) {
        for (const index_t dim : {1, 7, 8, 9, 64, 80, 128}) {
            const index_t tokens = r.one_of<index_t>({1, 2, 7, 8, 9, 31, 50});
            const bf16_rows keys(r, tokens, dim), queries(r, rows, dim);
            const float scale = 0.05f, soft_cap = r.chance(0.3) ? 5.0f : 0.0f;
            const std::vector<float> got = logits_of(keys, 0, tokens, queries, scale, soft_cap);
            bool right = true;
            for (index_t t = 0; t < tokens; ++t) {
                for (index_t q = 0; q < rows; ++q) {
                    double sum = 0, size = 0;
                    for (index_t d = 0; d < dim; ++d) {
                        sum += keys.at(t, d) * queries.at(q, d);
                        size += std::abs(keys.at(t, d) * queries.at(q, d));
                    }
                    const auto s = static_cast<double>(scale), cap = static_cast<double>(soft_cap);
                    const double expected = cap > 0 ? cap * std::tanh(s * sum / cap) : s * sum;
                    const auto logit = static_cast<double>(got[static_cast<std::size_t>(t * rows + q)]);
                    right = right && std::abs(logit - expected) <= 2e-6 * s * size + 1e-6;
                }
            }
            CAPTURE(rows, dim, tokens, soft_cap);
            CHECK(right);
        }
    }
}

TEST_CASE("window_kernels_bfmmla: a key's logits do not depend on the block that it is in", "[kernels]") {
    if (!runs_bfmmla()) { return; }
    support::random r(72);
    const bf16_rows keys(r, 21, 92), queries(r, 19, 92);
    const std::vector<float> whole = logits_of(keys, 0, 21, queries, 0.1f, 0);
    for (index_t t = 0; t < 21; ++t) {
        const std::vector<float> one = logits_of(keys, t, 1, queries, 0.1f, 0);
        CHECK(std::equal(one.begin(), one.end(), whole.begin() + t * 19));
    }
}

TEST_CASE("window_kernels_bfmmla: a broken key spoils its own logits and no other", "[kernels]") {
    if (!runs_bfmmla()) { return; }
    support::random r(73);
    bf16_rows keys(r, 20, 70);
    const bf16_rows queries(r, 11, 70);
    const std::vector<float> before = logits_of(keys, 0, 20, queries, 0.1f, 0);
    keys.row(7)[69] = bf16{0x7fc0}; // NaN
    keys.row(9)[0] = bf16{0x7f80};  // infinity
    const std::vector<float> after = logits_of(keys, 0, 20, queries, 0.1f, 0);
    bool right = true;
    for (index_t t = 0; t < 20; ++t) {
        for (index_t q = 0; q < 11; ++q) {
            const auto i = static_cast<std::size_t>(t * 11 + q);
            const bool expected = t == 7   ? std::isnan(after[i])
                                  : t == 9 ? std::isinf(after[i]) && (after[i] > 0) == (queries.at(q, 0) > 0)
                                           : after[i] == before[i];
            right = right && expected;
        }
    }
    CHECK(right);
}

TEST_CASE("window_kernels_bfmmla: the level neon_bf16 has it, portable leaves bf16 to be widened",
          "[kernels]") {
    for (const auto level : {cpu_level::portable, cpu_level::neon_bf16}) {
        const kernels::window_kernels& steps = kernels::window_kernels_of<bf16>(level);
        CHECK((steps.bf16_logits != nullptr) == (level == cpu_level::neon_bf16));
        CHECK((steps.pack_bf16_queries != nullptr) == (level == cpu_level::neon_bf16));
        CHECK(kernels::window_kernels_of<float>(level).bf16_logits == nullptr); // floats need none
    }
}

#endif // KVTRIM_HAS_NEON
