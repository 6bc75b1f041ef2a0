// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/simd/cpu_level.hpp>

#include "support/cpu_levels.hpp"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <vector>

using namespace kvtrim;

// The levels of this architecture above the portable one.
#if KVTRIM_HAS_X86
#define KVTRIM_LEVELS_HERE cpu_level::avx2, cpu_level::avx512, cpu_level::amx
#else
#define KVTRIM_LEVELS_HERE cpu_level::neon_bf16
#endif

TEST_CASE("set_cpu_level: it never exceeds the best level and answers what is in force", "[kernels]") {
    const support::cpu_level_guard guard(active_cpu_level());
    CHECK(active_cpu_level() <= best_cpu_level());
    for (const cpu_level first : {cpu_level::portable, KVTRIM_LEVELS_HERE}) {
        for (const cpu_level wanted : {first, KVTRIM_LEVELS_HERE, cpu_level::portable}) { // up and down
            const cpu_level got = set_cpu_level(wanted);
            CHECK(got <= wanted);
            CHECK(got <= best_cpu_level());
            CHECK(active_cpu_level() == got);
            CHECK((got == wanted || wanted > best_cpu_level()));
        }
    }
}

TEST_CASE("cpu_level: a scope of the tests restores the level", "[kernels]") {
    const cpu_level before = active_cpu_level();
    { const support::cpu_level_guard guard(cpu_level::portable); }
    CHECK(active_cpu_level() == before);
    support::at_each_cpu_level([] { CHECK(active_cpu_level() <= best_cpu_level()); });
    CHECK(active_cpu_level() == before);
}

// What "at each level" leaves out: a level that the machine lacks is skipped here, by its name.
TEMPLATE_TEST_CASE_SIG("cpu_level: tests at each level run at this one", "[kernels]",
                       ((cpu_level Level), Level), KVTRIM_LEVELS_HERE) {
    if (Level > best_cpu_level()) {
        WARN("no " << name_of(Level) << " on this machine: tests at each level are not tested at this one");
        return;
    }
    std::vector<cpu_level> seen;
    support::at_each_cpu_level([&] { seen.push_back(active_cpu_level()); });
    CHECK(std::count(seen.begin(), seen.end(), Level) == 1);
}

TEST_CASE("cpu_level: levels have names", "[kernels]") {
    CHECK(std::string(name_of(cpu_level::portable)) == "portable");
    CHECK(std::string(name_of(cpu_level::neon_bf16)) == "neon_bf16");
    CHECK(std::string(name_of(cpu_level::avx2)) == "avx2");
    CHECK(std::string(name_of(cpu_level::avx512)) == "avx512");
    CHECK(std::string(name_of(cpu_level::amx)) == "amx");
    CHECK(support::cpu_levels().back() == best_cpu_level());
    std::set<std::string> names;
    for (const cpu_level level : support::all_cpu_levels()) { names.insert(name_of(level)); }
    CHECK(names.size() == support::all_cpu_levels().size());
}

TEST_CASE("cpu_level: detection stays below what is asked for", "[kernels]") {
    for (const cpu_level highest : {cpu_level::portable, KVTRIM_LEVELS_HERE}) {
        CHECK(detail::detect_cpu_level(highest) == std::min(highest, best_cpu_level()));
    }
}

TEST_CASE("cpu_level: a level of another architecture is never used", "[kernels]") {
    const support::cpu_level_guard guard(active_cpu_level());
#if KVTRIM_HAS_X86
    CHECK(set_cpu_level(cpu_level::neon_bf16) == cpu_level::portable);
#else
    CHECK(best_cpu_level() <= cpu_level::neon_bf16);
    CHECK(set_cpu_level(cpu_level::avx2) == best_cpu_level());
#endif
}

#if KVTRIM_HAS_NEON && defined(__linux__)
TEST_CASE("cpu_level: neon_bf16 means that the system reports products of bf16", "[kernels]") {
    std::ifstream info("/proc/cpuinfo");
    const std::string text{std::istreambuf_iterator<char>(info), {}};
    if (text.find("Features") == std::string::npos) {
        WARN(
            "no features in /proc/cpuinfo on this machine: not tested"); // under qemu it is the build machine's
        return;
    }
    CHECK((best_cpu_level() == cpu_level::neon_bf16) == (text.find(" bf16") != std::string::npos));
}
#endif

#if KVTRIM_HAS_X86
TEST_CASE("cpu_level: amx means that the processor has tiles and the system lets us use them", "[kernels]") {
    CHECK((best_cpu_level() == cpu_level::amx) ==
          (detail::has_avx512() && detail::has_amx() && detail::is_permitted_amx()));
}
#endif

TEST_CASE("cpu_level: the environment names a level, and what it does not name is the best", "[kernels]") {
    const char* const before = std::getenv("KVTRIM_CPU_LEVEL");
    const std::string restored = before != nullptr ? before : "";
    const auto wanted = [](const char* name) {
        setenv("KVTRIM_CPU_LEVEL", name, 1);
        return detail::wanted_cpu_level();
    };
    for (const cpu_level level : support::all_cpu_levels()) { CHECK(wanted(name_of(level)) == level); }
    const cpu_level highest = support::all_cpu_levels().back();
    CHECK(wanted("") == highest);
    unsetenv("KVTRIM_CPU_LEVEL");
    CHECK(detail::wanted_cpu_level() == highest);
    if (before != nullptr) { setenv("KVTRIM_CPU_LEVEL", restored.c_str(), 1); }
}

#undef KVTRIM_LEVELS_HERE
