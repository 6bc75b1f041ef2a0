// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/kernels/narrow.hpp>

#include "support/catch.hpp"
#include "support/cpu_levels.hpp"

#include <cmath>
#include <limits>
#include <vector>

using namespace kvtrim;

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
    support::for_each_cpu_level([&](const char* level) {
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
