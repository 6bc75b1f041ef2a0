// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/kernels/widen.hpp>

#include "support/cpu_levels.hpp"

#include <bit>
#include <cmath>
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
