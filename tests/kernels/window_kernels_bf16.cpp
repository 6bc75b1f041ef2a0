// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Each test has one body (bf16_window_checks) and a case for each way to multiply: AMX's tiles emulated, which needs AVX-512 alone,
// and BFMMLA. The last test shows that AMX's instructions do what the emulated tiles do.

#include <kvtrim/kernels/window_kernels.hpp>

#include "support/cpu_levels.hpp"
#include "support/emulated_tiles.hpp"
#include "support/guarded.hpp"
#include "support/random_bf16_rows.hpp"
#include "support/trapped_tiles.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

using namespace kvtrim;
using support::guarded, support::guard_is_whole, support::random_bf16_rows;

namespace {

class bf16_window_checks {
  public:
    explicit bf16_window_checks(const kernels::window_kernels& steps) : steps_(steps) {}

    // Of `tokens` keys from `first` on, [tokens, rows]; the queries are packed in two calls, into memory of NaN.
    [[nodiscard]] std::vector<float> logits(const random_bf16_rows& keys, index_t first, index_t tokens,
                                            const random_bf16_rows& queries, float soft_cap) const {
        const index_t rows = queries.count, dim = keys.length, half = rows / 2;
        std::vector<bf16> packed(static_cast<std::size_t>(kernels::packed_bf16(rows, dim)), bf16{0x7fff});
        steps_.pack_bf16_queries(queries.row(0), queries.stride, 0, half, dim, packed.data());
        steps_.pack_bf16_queries(queries.row(half), queries.stride, half, rows - half, dim, packed.data());
        std::vector<float> out = guarded(tokens * rows);
        steps_.bf16_logits(keys.row(first), keys.stride, tokens, packed.data(), rows, dim, scale, soft_cap,
                           out.data(), {});
        CHECK(guard_is_whole(out));
        out.resize(static_cast<std::size_t>(tokens * rows));
        return out;
    }

    void are_products() const {
        support::random r(41);
        for (const index_t rows : {1, 2, 7, 8, 9, 15, 16, 17, 33, 100, 128}) {
            for (const index_t dim : {1, 7, 8, 9, 31, 32, 33, 64, 80, 128}) {
                const index_t tokens = r.one_of<index_t>({1, 2, 7, 8, 9, 16, 31, 32, 33, 50});
                const random_bf16_rows keys(r, tokens, dim), queries(r, rows, dim);
                const float soft_cap = r.chance(0.3) ? 5.0f : 0.0f;
                const std::vector<float> got = logits(keys, 0, tokens, queries, soft_cap);
                bool right = true;
                for (index_t t = 0; t < tokens; ++t) {
                    for (index_t q = 0; q < rows; ++q) {
                        double size = 0;
                        const double expected = exact_logit(keys, t, queries, q, soft_cap, size);
                        const auto logit = static_cast<double>(got[static_cast<std::size_t>(t * rows + q)]);
                        right = right && std::abs(logit - expected) <= 2e-6 * size + 1e-6;
                    }
                }
                CAPTURE(rows, dim, tokens, keys.stride, soft_cap);
                CHECK(right);
            }
        }
    }

    void depend_on_no_other_key() const {
        support::random r(42);
        const random_bf16_rows keys(r, 50, 92), queries(r, 40, 92);
        const std::vector<float> whole = logits(keys, 0, keys.count, queries, 0);
        for (index_t t = 0; t < keys.count; ++t) {
            const std::vector<float> one = logits(keys, t, 1, queries, 0);
            CHECK(std::equal(one.begin(), one.end(), whole.begin() + t * queries.count));
        }
    }

    void are_spoilt_by_their_own_key_alone() const {
        support::random r(43);
        random_bf16_rows keys(r, 40, 70);
        const random_bf16_rows queries(r, 33, 70);
        const std::vector<float> before = logits(keys, 0, keys.count, queries, 0);
        keys.row(7)[69] = bf16{0x7fc0}; // NaN
        keys.row(9)[0] = bf16{0x7f80};  // infinity
        const std::vector<float> after = logits(keys, 0, keys.count, queries, 0);
        bool right = true;
        for (index_t t = 0; t < keys.count; ++t) {
            for (index_t q = 0; q < queries.count; ++q) {
                const auto i = static_cast<std::size_t>(t * queries.count + q);
                const bool is_positive = queries.at(q, 0) > 0;
                const bool expected = t == 7   ? std::isnan(after[i])
                                      : t == 9 ? std::isinf(after[i]) && (after[i] > 0) == is_positive
                                               : after[i] == before[i];
                right = right && expected;
            }
        }
        CHECK(right);
    }

  private:
    static constexpr float scale = 0.05f;

    // `size`: the sum of the absolute values of what is summed, scaled.
    static double exact_logit(const random_bf16_rows& keys, index_t t, const random_bf16_rows& queries,
                              index_t q, float soft_cap, double& size) {
        double sum = 0;
        for (index_t d = 0; d < keys.length; ++d) {
            sum += keys.at(t, d) * queries.at(q, d);
            size += std::abs(keys.at(t, d) * queries.at(q, d));
        }
        const auto s = static_cast<double>(scale), cap = static_cast<double>(soft_cap);
        size *= s;
        return cap > 0 ? cap * std::tanh(s * sum / cap) : s * sum;
    }

    const kernels::window_kernels& steps_;
};

// The steps of a level that is not compiled here are those of another one: none of it is tested then.
const kernels::window_kernels& bfmmla_window_steps() {
    return kernels::window_kernels_of<bf16>(cpu_level::neon_bf16);
}

#if KVTRIM_HAS_X86
template <class Tiles>
constexpr kernels::window_kernels amx_window_steps_by = [] {
    kernels::window_kernels steps = kernels::avx512::window_table;
    steps.pack_bf16_queries = kernels::pack_columns<kernels::amx::order>;
    steps.bf16_logits = kernels::amx::logits<Tiles>;
    return steps;
}();
const kernels::window_kernels& emulated_amx_window_steps() {
    return amx_window_steps_by<support::emulated_tiles>;
}
#else
const kernels::window_kernels& emulated_amx_window_steps() {
    return kernels::window_kernels_of<bf16>(cpu_level::amx);
}
#endif

} // namespace

TEST_CASE("window_kernels of bf16: logits are products to the precision of floats, AMX", "[kernels]") {
    if (!support::runs_avx512()) { return; }
    bf16_window_checks(emulated_amx_window_steps()).are_products();
}
TEST_CASE("window_kernels of bf16: logits are products to the precision of floats, BFMMLA", "[kernels]") {
    if (!support::runs_bfmmla()) { return; }
    bf16_window_checks(bfmmla_window_steps()).are_products();
}

TEST_CASE("window_kernels of bf16: a key's logits do not depend on its neighbours, AMX", "[kernels]") {
    if (!support::runs_avx512()) { return; }
    bf16_window_checks(emulated_amx_window_steps()).depend_on_no_other_key();
}
TEST_CASE("window_kernels of bf16: a key's logits do not depend on its neighbours, BFMMLA", "[kernels]") {
    if (!support::runs_bfmmla()) { return; }
    bf16_window_checks(bfmmla_window_steps()).depend_on_no_other_key();
}

TEST_CASE("window_kernels of bf16: a broken key spoils its own logits and no other, AMX", "[kernels]") {
    if (!support::runs_avx512()) { return; }
    bf16_window_checks(emulated_amx_window_steps()).are_spoilt_by_their_own_key_alone();
}
TEST_CASE("window_kernels of bf16: a broken key spoils its own logits and no other, BFMMLA", "[kernels]") {
    if (!support::runs_bfmmla()) { return; }
    bf16_window_checks(bfmmla_window_steps()).are_spoilt_by_their_own_key_alone();
}

TEST_CASE("window_kernels of bf16: levels without such products leave bf16 to be widened", "[kernels]") {
    for (const auto level : support::all_cpu_levels()) {
        const bool has_products = support::has_bf16_products(level);
        const kernels::window_kernels& steps = kernels::window_kernels_of<bf16>(level);
        CAPTURE(name_of(level));
        CHECK((steps.bf16_logits != nullptr) == has_products);
        CHECK((steps.pack_bf16_queries != nullptr) == has_products);
        CHECK(kernels::window_kernels_of<float>(level).bf16_logits == nullptr); // floats need none
    }
}

#if KVTRIM_HAS_X86 && defined(__linux__)
// To the bit, by the processor where there is AMX; elsewhere its instructions are decoded and emulated.
TEST_CASE("window_kernels of bf16: the instructions of AMX's tiles give what the emulated ones give",
          "[kernels]") {
    if (!support::runs_tile_instructions()) { return; }
    const support::trapped_tiles scope;
    const bf16_window_checks emulated(emulated_amx_window_steps());
    const bf16_window_checks real(amx_window_steps_by<simd::amx_tiles>);
    support::random r(44);
    for (int n = 0; n < 20; ++n) {
        const index_t rows = r.between(1, 70), tokens = r.between(1, 70), dim = r.between(1, 100);
        const random_bf16_rows keys(r, tokens, dim), queries(r, rows, dim);
        const float soft_cap = r.chance(0.3) ? 5.0f : 0.0f;
        CAPTURE(n, rows, tokens, dim, soft_cap);
        CHECK(real.logits(keys, 0, tokens, queries, soft_cap) ==
              emulated.logits(keys, 0, tokens, queries, soft_cap));
    }
}
#endif
