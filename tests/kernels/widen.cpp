// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/kernels/widen.hpp>

#include "support/random_prompt.hpp"

using namespace kvtrim;

namespace {

template <class Half>
void check_every_pattern() {
    std::vector<Half> all;
    for (std::uint32_t bits = 0; bits < 65536; ++bits) { all.push_back({static_cast<std::uint16_t>(bits)}); }
    for (const std::size_t count :
         {std::size_t{65536}, std::size_t{65531}, std::size_t{15}, std::size_t{0}}) {
        std::vector<float> got(all.size(), -7.0f);
        kernels::widen(all.data(), static_cast<index_t>(count), got.data());
        bool same = true;
        for (std::size_t i = 0; i < all.size(); ++i) {
            const float expected = i < count ? to_float(all[i]) : -7.0f;
            same = same && (std::isnan(expected) ? std::isnan(got[i])
                                                 : std::bit_cast<std::uint32_t>(got[i]) ==
                                                       std::bit_cast<std::uint32_t>(expected));
        }
        CHECK(same);
    }
}

} // namespace

TEST_CASE("widen: every 16-bit pattern, at every CPU level, and nothing beyond the end", "[kernels]") {
    support::at_every_cpu_level([] {
        check_every_pattern<f16>();
        check_every_pattern<bf16>();
    });
}

TEST_CASE("cpu_level: never above the machine's, and restored", "[kernels]") {
    const cpu_level before = active_cpu_level();
    CHECK(set_cpu_level(cpu_level::portable) == cpu_level::portable);
    CHECK(active_cpu_level() == cpu_level::portable);
    CHECK(set_cpu_level(cpu_level::avx512) == best_cpu_level());
    CHECK(set_cpu_level(before) == before);
    CHECK(std::string(name_of(cpu_level::portable)) == "portable");
}
