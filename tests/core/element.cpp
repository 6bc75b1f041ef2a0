// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/core/element.hpp>

#include "support/catch.hpp"
#include "support/random_layer.hpp"

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace {

using namespace kvtrim;

static_assert(sizeof(f16) == 2 && std::is_trivial_v<f16> && sizeof(bf16) == 2 && std::is_trivial_v<bf16>);
static_assert(element<float> && element<const double> && element<f16> && element<const bf16>);
static_assert(!element<int> && !element<void*>);
static_assert(to_float(f16{0x3c00}) == 1.0f && element_traits<f16>::from_float(-2.0f).bits == 0xc000);
static_assert(to_float(bf16{0x3f80}) == 1.0f && element_traits<bf16>::from_float(-2.0f).bits == 0xc000);

// A 16-bit format as IEEE 754 describes it: sign, exponent, mantissa.
struct format {
    int mantissa_bits;
    int bias;

    [[nodiscard]] std::uint32_t infinity() const { return 0x7fffu >> mantissa_bits << mantissa_bits; }
    // The magnitude of a pattern without sign; infinity is where the next finite number would be.
    [[nodiscard]] double magnitude(std::uint32_t bits) const {
        const std::uint32_t exponent = bits >> mantissa_bits;
        const std::uint32_t mantissa = bits & ((1u << mantissa_bits) - 1);
        const std::uint32_t whole = exponent == 0 ? mantissa : mantissa + (1u << mantissa_bits);
        return std::ldexp(whole, static_cast<int>(std::max(exponent, 1u)) - bias - mantissa_bits);
    }
};

template <class T>
constexpr format format_of{};
template <>
constexpr format format_of<f16>{10, 15};
template <>
constexpr format format_of<bf16>{7, 127};

template <class T>
std::uint32_t narrowed(double x) {
    return element_traits<T>::from_float(static_cast<float>(x)).bits;
}

using patterns = std::vector<std::uint32_t>;
const patterns none;

} // namespace

TEMPLATE_TEST_CASE("16-bit elements: every pattern becomes the float it stands for", "[core]", f16, bf16) {
    const format f = format_of<TestType>;
    patterns wrong;
    for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
        const float got = to_float(TestType{static_cast<std::uint16_t>(bits)});
        const std::uint32_t unsigned_bits = bits & 0x7fffu;
        const bool negative = bits >= 0x8000u;
        bool right = std::signbit(got) == negative;
        if (unsigned_bits > f.infinity()) {
            right = right && std::isnan(got);
        } else if (unsigned_bits == f.infinity()) {
            right = right && std::isinf(got);
        } else {
            right = right && std::abs(static_cast<double>(got)) == f.magnitude(unsigned_bits);
        }
        if (!right) { wrong.push_back(bits); }
    }
    CHECK(wrong == none);
}

TEMPLATE_TEST_CASE("16-bit elements: to float and back is the same pattern, and NaN stays NaN", "[core]", f16,
                   bf16) {
    patterns wrong;
    for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
        const float wide = to_float(TestType{static_cast<std::uint16_t>(bits)});
        const TestType back = element_traits<TestType>::from_float(wide);
        const bool right = std::isnan(wide)
                               ? std::isnan(to_float(back)) && (back.bits & 0x8000u) == (bits & 0x8000u)
                               : back.bits == bits;
        if (!right) { wrong.push_back(bits); }
    }
    CHECK(wrong == none);
}

TEMPLATE_TEST_CASE("16-bit elements: narrowing rounds to nearest, halves to even, and overflows to infinity",
                   "[core]", f16, bf16) {
    // The middle between two neighbours is a float; the floats next to it belong to one side each. The last pair
    // is the largest finite number and infinity.
    const format f = format_of<TestType>;
    patterns wrong;
    for (std::uint32_t low = 0; low < f.infinity(); ++low) {
        const double middle = (f.magnitude(low) + f.magnitude(low + 1)) / 2;
        const auto half = static_cast<float>(middle);
        const float below = std::nextafter(half, 0.0f);
        const float above = std::nextafter(half, std::numeric_limits<float>::infinity());
        const std::uint32_t even = low % 2 == 0 ? low : low + 1;
        const bool right = static_cast<double>(half) == middle && narrowed<TestType>(middle) == even &&
                           narrowed<TestType>(-middle) == (even | 0x8000u) &&
                           narrowed<TestType>(static_cast<double>(below)) == low &&
                           narrowed<TestType>(static_cast<double>(above)) == low + 1;
        if (!right) { wrong.push_back(low); }
    }
    CHECK(wrong == none);
}

TEMPLATE_TEST_CASE("16-bit elements: random floats narrow to the nearest number", "[core]", f16, bf16) {
    const format f = format_of<TestType>;
    support::random r(1);
    patterns wrong;
    for (int i = 0; i < 200000; ++i) {
        const float x = std::bit_cast<float>(static_cast<std::uint32_t>(r.bits()));
        const std::uint32_t got = narrowed<TestType>(static_cast<double>(x));
        if (std::isnan(x)) {
            if (!std::isnan(to_float(TestType{static_cast<std::uint16_t>(got)}))) { wrong.push_back(got); }
            continue;
        }
        const double size = std::min(std::abs(static_cast<double>(x)), f.magnitude(f.infinity()));
        const std::uint32_t bits = got & 0x7fffu;
        const double error = std::abs(f.magnitude(bits) - size);
        const bool nearest = (bits == 0 || std::abs(f.magnitude(bits - 1) - size) >= error) &&
                             (bits == f.infinity() || std::abs(f.magnitude(bits + 1) - size) >= error);
        if (!nearest || std::signbit(x) != (got >= 0x8000u)) { wrong.push_back(got); }
    }
    CHECK(wrong == none);
}

TEST_CASE("f16, bf16: the borders of their ranges are where the formats say", "[core]") {
    CHECK(narrowed<f16>(65504) == 0x7bff);
    CHECK(narrowed<f16>(65519.996) == 0x7bff);
    CHECK(narrowed<f16>(65520) == 0x7c00);
    CHECK(narrowed<f16>(0x1p-14) == 0x0400); // smallest normal
    CHECK(narrowed<f16>(0x1p-24) == 0x0001); // smallest subnormal
    CHECK(narrowed<f16>(0x1p-25) == 0x0000); // a tie, to even
    CHECK(narrowed<f16>(0x1.8p-25) == 0x0001);
    CHECK(narrowed<f16>(-0.0) == 0x8000);
    CHECK(narrowed<bf16>(0x1.fep127) == 0x7f7f);
    CHECK(narrowed<bf16>(0x1.ffp127) == 0x7f80);
    CHECK(narrowed<bf16>(-0.0) == 0x8000);
}

TEST_CASE("bf16: a NaN whose payload lies in the dropped bits stays a NaN", "[core]") {
    for (const std::uint32_t bits : {0x7f800001u, 0xff800001u, 0x7fffffffu, 0x7f80ffffu}) {
        const bf16 narrow = element_traits<bf16>::from_float(std::bit_cast<float>(bits));
        CHECK(std::isnan(to_float(narrow)));
        CHECK((narrow.bits >> 15) == (bits >> 31));
    }
}

TEST_CASE("float, double: widening is exact and narrowing a double rounds", "[core]") {
    CHECK(to_float(0.1) == 0.1f);
    CHECK(to_float(-0.25f) == -0.25f);
    CHECK(element_traits<double>::from_float(0.1f) == static_cast<double>(0.1f));
    CHECK(std::isinf(to_float(1e300)));
}

#if KVTRIM_HAS_FLOAT16
TEST_CASE("f16: it equals the compiler's _Float16 in every pattern and in rounding", "[core]") {
    support::random r(2);
    patterns wrong;
    for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
        const auto own = to_float(f16{static_cast<std::uint16_t>(bits)});
        const auto theirs = to_float(std::bit_cast<_Float16>(static_cast<std::uint16_t>(bits)));
        if (std::isnan(own) ? !std::isnan(theirs) : own != theirs) { wrong.push_back(bits); }
    }
    for (int i = 0; i < 100000; ++i) {
        const auto x = static_cast<float>(std::exp2(34 * r.uniform() - 17) * (r.chance(0.5) ? 1 : -1));
        const auto theirs = std::bit_cast<std::uint16_t>(element_traits<_Float16>::from_float(x));
        if (element_traits<f16>::from_float(x).bits != theirs) { wrong.push_back(theirs); }
    }
    CHECK(wrong == none);
}
#endif
