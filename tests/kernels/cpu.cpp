// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/kernels/cpu.hpp>

#include "support/cpu_levels.hpp"

#include <string>

using namespace kvtrim;

TEST_CASE("set_cpu_level: it never exceeds the best level and answers what is in force", "[kernels]") {
    const support::cpu_level_guard guard(active_cpu_level());
    CHECK(active_cpu_level() <= best_cpu_level());
    for (const cpu_level wanted : {cpu_level::portable, cpu_level::avx512, cpu_level::portable}) {
        const cpu_level got = set_cpu_level(wanted);
        CHECK(got <= wanted);
        CHECK(got <= best_cpu_level());
        CHECK(active_cpu_level() == got);
        CHECK((got == wanted || wanted > best_cpu_level()));
    }
}

TEST_CASE("cpu_level: a scope of the tests restores the level", "[kernels]") {
    const cpu_level before = active_cpu_level();
    { const support::cpu_level_guard guard(cpu_level::portable); }
    CHECK(active_cpu_level() == before);
    support::at_each_cpu_level([] { CHECK(active_cpu_level() <= best_cpu_level()); });
    CHECK(active_cpu_level() == before);
}

TEST_CASE("cpu_level: levels have names", "[kernels]") {
    CHECK(std::string(name_of(cpu_level::portable)) == "portable");
    CHECK(std::string(name_of(cpu_level::avx512)) == "avx512");
    CHECK(support::cpu_levels().back() == best_cpu_level());
}
