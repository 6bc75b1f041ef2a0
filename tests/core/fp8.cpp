// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/cache/read_rows.hpp>
#include <kvtrim/core/fp8.hpp>

#include "support/cpu_levels.hpp"
#include "support/random_layer.hpp"

#include <cmath>
#include <limits>
#include <vector>

namespace {

using namespace kvtrim;

static_assert(sizeof(f8_e4m3) == 1 && std::is_trivial_v<f8_e4m3> && sizeof(f8_e5m2) == 1);
static_assert(to_float(f8_e4m3{0x38}) == 1.0f && element_traits<f8_e4m3>::from_float(-2.0f).bits == 0xc0);
static_assert(to_float(f8_e5m2{0x3c}) == 1.0f && element_traits<f8_e5m2>::from_float(-2.0f).bits == 0xc0);

// The formats as the specification describes them.
struct f8_format {
    int mantissa_bits;
    int bias;
    std::uint32_t largest; // pattern of the largest number
    bool has_infinity;     // right above it; the patterns above are NaN

    // Of a pattern without sign, as if it were a number.
    [[nodiscard]] double magnitude(std::uint32_t bits) const {
        const int exponent = static_cast<int>(bits >> mantissa_bits);
        const std::uint32_t mantissa = bits & ((1u << mantissa_bits) - 1);
        const std::uint32_t whole = exponent == 0 ? mantissa : mantissa + (1u << mantissa_bits);
        return std::ldexp(whole, std::max(exponent, 1) - bias - mantissa_bits);
    }
    [[nodiscard]] double value(std::uint32_t bits) const {
        const std::uint32_t unsigned_bits = bits & 0x7fu;
        double size = magnitude(unsigned_bits);
        if (unsigned_bits > largest) { size = has_infinity && unsigned_bits == largest + 1 ? HUGE_VAL : NAN; }
        return bits >= 0x80u ? -size : size;
    }
};

template <class T>
constexpr f8_format f8_format_of{};
template <>
constexpr f8_format f8_format_of<f8_e4m3>{3, 7, 0x7e, false};
template <>
constexpr f8_format f8_format_of<f8_e5m2>{2, 15, 0x7b, true};

template <class T>
std::uint32_t narrowed_to_f8(double x) {
    return element_traits<T>::from_float(static_cast<float>(x)).bits;
}

bool same(double expected, float got) {
    return std::isnan(expected)
               ? std::isnan(got)
               : static_cast<double>(got) == expected && std::signbit(got) == std::signbit(expected);
}

} // namespace

TEMPLATE_TEST_CASE("fp8: each of the 256 patterns is what its format says, at every level and any count",
                   "[core]", f8_e4m3, f8_e5m2) {
    std::vector<TestType> all(256);
    for (std::size_t i = 0; i < 256; ++i) { all[i].bits = static_cast<std::uint8_t>(i); }
    for (std::uint32_t i = 0; i < 256; ++i) {
        if (!same(f8_format_of<TestType>.value(i), to_float(all[i]))) { FAIL_CHECK("pattern " << i); }
    }
    support::at_each_cpu_level([&] {
        for (const std::size_t begin : {0u, 1u, 125u, 241u, 255u}) {
            std::vector<float> wide(257, 7.0f);
            kernels::widen(all.data() + begin, static_cast<index_t>(256 - begin), wide.data() + begin);
            for (std::size_t i = begin; i < 256; ++i) {
                if (!same(f8_format_of<TestType>.value(static_cast<std::uint32_t>(i)), wide[i])) {
                    FAIL_CHECK("pattern " << i << " widened");
                }
            }
            CHECK(wide[256] == 7.0f);
            CHECK((begin == 0 || wide[begin - 1] == 7.0f));
        }
    });
}

TEMPLATE_TEST_CASE("fp8: narrowing rounds to nearest, halves to even, and every number comes back", "[core]",
                   f8_e4m3, f8_e5m2) {
    const f8_format f = f8_format_of<TestType>;
    for (std::uint32_t low = 0; low < f.largest; ++low) {
        CAPTURE(low);
        const double middle = (f.magnitude(low) + f.magnitude(low + 1)) / 2;
        const auto half = static_cast<float>(middle);
        const std::uint32_t even = low % 2 == 0 ? low : low + 1;
        CHECK(narrowed_to_f8<TestType>(f.magnitude(low)) == low);
        CHECK(narrowed_to_f8<TestType>(-f.magnitude(low)) == (low | 0x80u));
        CHECK(narrowed_to_f8<TestType>(middle) == even);
        CHECK(narrowed_to_f8<TestType>(-middle) == (even | 0x80u));
        CHECK(element_traits<TestType>::from_float(std::nextafter(half, 0.0f)).bits == low);
        CHECK(element_traits<TestType>::from_float(std::nextafter(half, HUGE_VALF)).bits == low + 1);
    }
}

TEMPLATE_TEST_CASE("fp8: what is too large becomes the largest number, and NaN stays NaN", "[core]", f8_e4m3,
                   f8_e5m2) {
    const f8_format f = f8_format_of<TestType>;
    for (const float x : {std::nextafter(static_cast<float>(f.magnitude(f.largest)), HUGE_VALF), 60000.0f,
                          std::numeric_limits<float>::max(), HUGE_VALF}) {
        CHECK(element_traits<TestType>::from_float(x).bits == f.largest);
        CHECK(element_traits<TestType>::from_float(-x).bits == (f.largest | 0x80u));
    }
    for (const std::uint32_t bits : {0x7f800001u, 0xffc00000u}) {
        const TestType narrow = element_traits<TestType>::from_float(std::bit_cast<float>(bits));
        CHECK(std::isnan(to_float(narrow)));
        CHECK((narrow.bits >> 7) == (bits >> 31));
    }
}

TEST_CASE("fp8: rows of any view, contiguous or transposed, are its elements", "[core]") {
    support::random r(1);
    std::vector<f8_e4m3> data(2 * 5 * 35);
    for (auto& x : data) { x = element_traits<f8_e4m3>::from_float(static_cast<float>(r.normal())); }
    const strided<const f8_e4m3, 3> rows(data.data(), {2, 5, 35});
    const strided<const f8_e4m3, 3> transposed(data.data(), {2, 35, 5}, {175, 1, 35});
    support::at_each_cpu_level([&] {
        std::vector<float> tile(5 * 35), turned(5 * 35);
        load_rows(rows, 1, 0, 5, tile.data());
        load_rows(transposed, 1, 0, 35, turned.data());
        for (index_t t = 0; t < 5; ++t) {
            for (index_t d = 0; d < 35; ++d) {
                const float expected = to_float(rows(1, t, d));
                REQUIRE(tile[static_cast<std::size_t>(t * 35 + d)] == expected);
                REQUIRE(turned[static_cast<std::size_t>(d * 5 + t)] == expected);
            }
        }
    });
}
