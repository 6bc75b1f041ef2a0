// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/simd/simd.hpp>

#include <kvtrim/simd/choose.hpp>

#include <kvtrim/kernels/selection_kernels.hpp>

#include "support/cpu_levels.hpp"
#include "support/random_layer.hpp"
#include "support/special_floats.hpp"

#include <cmath>
#include <vector>

namespace probes {

using kvtrim::index_t;
using row = std::vector<float>;

struct table {
    std::vector<std::uint32_t> (*orders_of)(const row&);
    std::vector<std::uint32_t> (*compared)(const std::vector<std::uint32_t>&,
                                           const std::vector<std::uint32_t>&);
    std::vector<std::int32_t> (*packed_of)(const std::vector<std::uint32_t>&, unsigned);
    index_t lanes;
    row (*powers)(const row&);
    row (*minima)(const row&, float);
    row (*maxima)(const row&, float);
    row (*magnitudes)(const row&);
    row (*comparisons)(const row&, float);
    row (*folds)(const row&);
    row (*first_of)(const row&, index_t);
    row (*unzipped)(const row&);
    row (*products_of)(const std::vector<double>&);
    row (*nibbles_of)(const std::vector<std::uint8_t>&);
};

} // namespace probes

#define KVTRIM_BODY "simd/simd.inl"
#include <kvtrim/simd/for_each_target.inl>

namespace probes {

const table& of_level(kvtrim::cpu_level level) {
    using kvtrim::cpu_level;
    return KVTRIM_CHOOSE(level, probe_table);
}

} // namespace probes

namespace {

using namespace kvtrim;
using support::infinity;
using support::not_a_number;

template <class Fn>
void for_each_target(Fn&& fn) {
    for (const cpu_level level : support::cpu_levels()) {
        CAPTURE(name_of(level));
        fn(probes::of_level(level));
    }
}

} // namespace

TEST_CASE("simd: exp2 is within three units of the last place from -126 to 127", "[simd]") {
    for_each_target([](const probes::table& t) {
        std::vector<float> x;
        for (float e = -125.99f; e < 127.0f; e += 0.0613f) { x.push_back(e); }
        x.insert(x.end(), {-126.0f + 1e-5f, -1.0f, -0.0f, 0.0f, 1.0f, 126.0f, -1e-30f});
        x.resize((x.size() + 15) / 16 * 16, 0.5f);
        const std::vector<float> got = t.powers(x);
        double worst = 0;
        for (std::size_t i = 0; i < x.size(); ++i) {
            const double expected = std::exp2(static_cast<double>(x[i]));
            worst = std::max(worst, std::abs(static_cast<double>(got[i]) - expected) / expected);
        }
        CHECK(worst < 3e-7);
    });
}

TEST_CASE("simd: minimum and maximum give the second operand for NaN, and nothing compares with it",
          "[simd]") {
    for_each_target([](const probes::table& t) {
        const std::vector<float> x{not_a_number, -infinity, infinity, 1, 2,      3, -0.0f, 0,
                                   -1,           -2,        -3,       7, 1e-40f, 5, 5,     6};
        const auto low = t.minima(x, 2), high = t.maxima(x, 2), more = t.comparisons(x, 2),
                   size = t.magnitudes(x);
        for (std::size_t i = 0; i < x.size(); ++i) {
            CAPTURE(x[i]);
            CHECK(low[i] == (x[i] < 2 ? x[i] : 2.0f));
            CHECK(high[i] == (x[i] > 2 ? x[i] : 2.0f));
            if (!std::isinf(x[i])) { CHECK(more[i] == (x[i] > 2 ? 1.0f : 0.0f)); }
            CHECK((std::isnan(x[i]) || size[i] == std::abs(x[i])));
        }
    });
}

TEST_CASE("simd: the first lanes are read, written and kept, and no others", "[simd]") {
    for_each_target([](const probes::table& t) {
        std::vector<float> x(16);
        for (std::size_t i = 0; i < 16; ++i) { x[i] = static_cast<float>(i + 1); }
        for (index_t count = -1; count <= t.lanes + 1; ++count) {
            const std::vector<float> out = t.first_of(x, count);
            const index_t there = std::clamp<index_t>(count, 0, t.lanes);
            for (index_t i = 0; i < t.lanes; ++i) {
                const auto at = static_cast<std::size_t>(i);
                CHECK(out[at] == (i < there ? x[at] : -1.0f));
                CHECK(out[at + static_cast<std::size_t>(t.lanes)] == (i < there ? x[at] : 0.0f));
            }
            CHECK(out.back() == static_cast<float>(there));
        }
        const std::vector<float> folded = t.folds(x);
        CHECK(folded[0] == static_cast<float>(t.lanes * (t.lanes + 1) / 2));
        CHECK(folded[1] == static_cast<float>(t.lanes));
    });
}

TEST_CASE("simd: pairs are taken apart and put together, doubles rounded once, halves of bytes centred",
          "[simd]") {
    for_each_target([](const probes::table& t) {
        std::vector<float> x(32);
        for (std::size_t i = 0; i < 32; ++i) { x[i] = static_cast<float>(i); }
        const std::vector<float> out = t.unzipped(x);
        const auto n = static_cast<std::size_t>(t.lanes);
        for (std::size_t i = 0; i < n; ++i) {
            CHECK(out[i] == x[2 * i]);
            CHECK(out[n + i] == x[2 * i + 1]);
        }
        CHECK(std::equal(out.begin() + 2 * t.lanes, out.end(), x.begin()));

        support::random r(5);
        std::vector<double> d(19);
        for (double& y : d) { y = r.normal(); }
        std::vector<std::uint8_t> bytes(16);
        for (std::uint8_t& b : bytes) { b = static_cast<std::uint8_t>(r.between(0, 255)); }
        const std::vector<float> products = t.products_of(d), nibbles = t.nibbles_of(bytes);
        for (std::size_t i = 0; i < n; ++i) {
            const double expected = d[i] * d[i + 1] - d[i + 2] * d[i + 3];
            CHECK(static_cast<double>(products[i]) == Approx(expected).epsilon(1e-6));
        }
        for (std::size_t i = 0; i < 16; ++i) {
            CHECK(nibbles[i] == static_cast<float>((bytes[i] & 15) - 8));
            CHECK(nibbles[16 + i] == static_cast<float>((bytes[i] >> 4) - 8));
        }
    });
}

TEST_CASE("simd: integers are compared without a sign, and chosen ones are written one behind the other",
          "[simd]") {
    for_each_target([](const probes::table& t) {
        support::random r(6);
        const auto n = static_cast<std::size_t>(t.lanes);
        const unsigned every = (1u << t.lanes) - 1u;
        for (int run = 0; run < 400; ++run) {
            std::vector<std::uint32_t> a(n), b(n);
            for (std::size_t i = 0; i < n; ++i) {
                a[i] = r.chance(0.5) ? static_cast<std::uint32_t>(r.bits())
                                     : r.one_of({0u, 1u, 0x7fffffffu, 0x80000000u, 0xfffffffeu});
                b[i] = r.chance(0.3) ? a[i] : r.one_of({0u, 0x7fffffffu, 0x80000000u, 0xffffffffu});
            }
            const auto got = t.compared(a, b);
            for (std::size_t i = 0; i < n; ++i) {
                CHECK((got[0] >> i & 1u) == (a[i] <= b[i] ? 1u : 0u));
                CHECK((got[1] >> i & 1u) == (a[i] == b[i] ? 1u : 0u));
                CHECK(got[2 + i] == a[i] + (a[i] <= b[i] ? 1u : 0u));
            }
            CHECK((got[0] | every) == every);

            const unsigned chosen = static_cast<unsigned>(r.bits()) & every;
            const auto packed = t.packed_of(a, chosen);
            std::vector<std::int32_t> expected;
            for (std::size_t i = 0; i < n; ++i) {
                if ((chosen >> i & 1u) != 0) { expected.push_back(static_cast<std::int32_t>(a[i])); }
            }
            const auto count = static_cast<std::int32_t>(expected.size());
            expected.resize(2 * n + 1, -1);
            expected.push_back(count);
            CHECK(packed == expected);
        }
    });
}

TEST_CASE("simd: floats become integers of their order, with one zero, and NaN below all", "[simd]") {
    for_each_target([](const probes::table& t) {
        support::random r(7);
        std::vector<float> x{not_a_number, -not_a_number, infinity, -infinity, 0.0f, -0.0f, 1e-40f, -1e-40f};
        while (x.size() < 512) { x.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(r.bits()))); }
        const auto got = t.orders_of(x);
        for (std::size_t i = 0; i < x.size(); ++i) {
            CAPTURE(x[i]);
            CHECK(got[i] == ordered_bits(x[i]));
        }
    });
}
