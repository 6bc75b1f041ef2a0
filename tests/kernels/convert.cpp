// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/kernels/convert.hpp>

#include "support/cpu_levels.hpp"

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

namespace {

using namespace kvtrim;

// What the bits of IEEE binary16 and of a truncated binary32 say.
double value_of(f16 x) {
    const int exponent = (x.bits >> 10) & 31;
    const int mantissa = x.bits & 1023;
    const double size = exponent == 31  ? (mantissa == 0 ? HUGE_VAL : NAN)
                        : exponent == 0 ? std::ldexp(mantissa, -24)
                                        : std::ldexp(1024 + mantissa, exponent - 25);
    return x.bits >= 0x8000 ? -size : size;
}

double value_of(bf16 x) {
    const int exponent = (x.bits >> 7) & 255;
    const int mantissa = x.bits & 127;
    const double size = exponent == 255 ? (mantissa == 0 ? HUGE_VAL : NAN)
                        : exponent == 0 ? std::ldexp(mantissa, -133)
                                        : std::ldexp(128 + mantissa, exponent - 134);
    return x.bits >= 0x8000 ? -size : size;
}

template <class Half>
void check_all_patterns() {
    std::vector<Half> from(65536);
    for (std::size_t i = 0; i < from.size(); ++i) { from[i].bits = static_cast<std::uint16_t>(i); }
    support::at_each_cpu_level([&] {
        std::vector<float> to(from.size());
        kernels::widen(from.data(), 65536, to.data());
        int wrong = 0;
        for (std::size_t i = 0; i < from.size(); ++i) {
            const double expected = value_of(from[i]);
            const auto got = static_cast<double>(to[i]);
            const bool same = std::isnan(expected) ? std::isnan(got)
                                                   : got == expected && std::signbit(got) == (i >= 0x8000);
            wrong += same ? 0 : 1;
        }
        CHECK(wrong == 0);
    });
}

} // namespace

TEST_CASE("widen: every pattern of f16 and bf16 becomes the float that it stands for", "[kernels]") {
    check_all_patterns<f16>();
    check_all_patterns<bf16>();
}

TEST_CASE("widen: any count from any address, and nothing behind it is written", "[kernels]") {
    std::vector<bf16> from(80);
    for (std::size_t i = 0; i < from.size(); ++i) {
        from[i] = element_traits<bf16>::from_float(static_cast<float>(i) - 40.0f);
    }
    support::at_each_cpu_level([&] {
        for (index_t count = 0; count <= 67; ++count) {
            for (const index_t begin : {0, 1, 5}) {
                std::vector<float> to(80, -1e9f);
                kernels::widen(from.data() + begin, count, to.data() + begin);
                for (index_t i = 0; i < 80; ++i) {
                    const bool inside = i >= begin && i < begin + count;
                    const float expected = inside ? static_cast<float>(i) - 40.0f : -1e9f;
                    if (to[static_cast<std::size_t>(i)] != expected) {
                        FAIL_CHECK("count " << count << ", element " << i);
                    }
                }
            }
        }
    });
}

namespace {

// Every kind of float: around each border of both half types, and many in between.
std::vector<float> all_kinds() {
    std::vector<float> floats;
    for (std::uint32_t bits = 0; bits < 0xffff0000u; bits += 0x3701u) {
        floats.push_back(std::bit_cast<float>(bits));
    }
    for (std::uint32_t high = 0; high < 0x10000u; high += 7) {
        for (const std::uint32_t low : {0u, 0x7fffu, 0x8000u, 0x8001u}) { // ties of bf16
            floats.push_back(std::bit_cast<float>((high << 16) | low));
        }
        const float half = to_float(f16{static_cast<std::uint16_t>(high)});
        floats.push_back(half);
        floats.push_back(0.5f * (half + to_float(f16{static_cast<std::uint16_t>(high + 1)}))); // ties of f16
    }
    return floats;
}

template <class T>
void check_against_trait() {
    const std::vector<float> floats = all_kinds();
    std::vector<T> got(floats.size());
    support::at_each_cpu_level([&] {
        const char* const level = name_of(active_cpu_level());
        kernels::narrow(floats.data(), static_cast<index_t>(floats.size()), got.data());
        index_t wrong = 0;
        for (std::size_t i = 0; i < floats.size(); ++i) {
            const T expected = element_traits<T>::from_float(floats[i]);
            const bool both_nan = std::isnan(floats[i]) && std::isnan(to_float(got[i]));
            wrong += both_nan || got[i].bits == expected.bits ? 0 : 1;
        }
        CAPTURE(level);
        CHECK(wrong == 0);
    });
}

} // namespace

TEST_CASE("narrow: every level rounds as the element's trait does, NaN stays NaN", "[kernels]") {
    check_against_trait<f16>();
    check_against_trait<bf16>();
}

TEST_CASE("narrow: it writes exactly count elements", "[kernels]") {
    const std::vector<float> ones(40, 1.0f);
    for (const index_t count : {0, 1, 15, 16, 17, 33}) {
        std::vector<bf16> got(40, bf16{0});
        kernels::narrow(ones.data(), count, got.data());
        for (index_t i = 0; i < 40; ++i) {
            CHECK(got[static_cast<std::size_t>(i)].bits == (i < count ? 0x3f80 : 0));
        }
    }
    std::vector<double> wide(3);
    kernels::narrow(ones.data(), 3, wide.data()); // any element with from_float
    CHECK(wide == std::vector<double>(3, 1.0));
}
