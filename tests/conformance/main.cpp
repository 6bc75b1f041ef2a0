// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Checks kvtrim against a directory of golden vectors: ./dev conformance DIR

#include "policies.hpp"

#include <kvtrim/simd/cpu_level.hpp>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <limits>
#include <string>

namespace {

using conformance::array;
using conformance::golden_case;

constexpr int skip_return_code = 77;

// Relative tolerance of float arrays; two kinds of array need an absolute one (tests/golden/README.md).
constexpr double relative_tolerance = 1e-4;

double absolute_tolerance(const golden_case& c, const std::string& name) {
    const bool cosine = c.text("policy", "") == "keydiff" ||
                        (c.text("policy", "") == "chunkkv" && c.text("scorer", "") == "keydiff");
    if (cosine && name == "scores") { return 1e-6; }
    if (name == "rerotated_keys") { return 1e-4; }
    return std::numeric_limits<float>::min(); // below it floats have no relative precision
}

bool close(double expected, double got, bool integral, double absolute) {
    if (std::isinf(expected) || integral) { return expected == got; }
    return std::abs(expected - got) <= std::max(absolute, relative_tolerance * std::abs(expected));
}

// An empty string, or the first difference.
std::string compare(const array& expected, const std::vector<double>& got, double absolute) {
    char text[160];
    for (std::size_t i = 0; i < std::min(expected.values.size(), got.size()); ++i) {
        if (close(expected.values[i], got[i], expected.integral, absolute)) { continue; }
        std::snprintf(text, sizeof text, "element %zu: expected %.9g, got %.9g", i, expected.values[i],
                      got[i]);
        return text;
    }
    if (expected.values.size() != got.size()) {
        std::snprintf(text, sizeof text, "expected %zu elements, got %zu", expected.values.size(),
                      got.size());
        return text;
    }
    return {};
}

// Whether every array of the case is as expected; prints the first difference of each that is not.
bool passes(const golden_case& c) {
    const conformance::results got = conformance::run(c);
    bool all = !c.expected.empty();
    if (!all) { std::printf("FAILED  %s: the case lists no arrays\n", c.name.c_str()); }
    for (const auto& [name, expected] : c.expected) {
        const auto found = got.find(name);
        const std::string difference = found == got.end()
                                           ? "kvtrim does not compute this array"
                                           : compare(expected, found->second, absolute_tolerance(c, name));
        if (difference.empty()) { continue; }
        std::printf("FAILED  %s, array %s: %s\n", c.name.c_str(), name.c_str(), difference.c_str());
        all = false;
    }
    return all;
}

} // namespace

int main(int argc, char** argv) {
    if (argc != 2) {
        std::fprintf(stderr, "usage: kvtrim_conformance DIR   (a directory in the format of tests/golden)\n");
        return 2;
    }
    const char* level = std::getenv("KVTRIM_CPU_LEVEL");
    if (level != nullptr && std::string(level) != name_of(kvtrim::active_cpu_level())) {
        std::printf("no %s on this machine: not tested\n", level);
        return skip_return_code;
    }
    int passed = 0;
    int failed = 0;
    int skipped = 0;
    std::vector<std::string> names;
    try {
        names = conformance::case_names(argv[1]);
    } catch (const std::exception& e) {
        std::fprintf(stderr, "%s\n", e.what());
        return 2;
    }
    for (const std::string& name : names) {
        try {
            const golden_case c = conformance::load_case(argv[1], name);
            if (const auto reason = conformance::reason_to_skip(c)) {
                std::printf("skipped %s: %s\n", name.c_str(), reason->c_str());
                ++skipped;
                continue;
            }
            ++(passes(c) ? passed : failed);
            if (const auto share = conformance::gram_agreement(c)) {
                std::printf("note    %s: Gram and exact norms keep %.1f %% in common\n", name.c_str(),
                            100 * *share);
            }
        } catch (const std::exception& e) {
            std::printf("FAILED  %s: %s\n", name.c_str(), e.what());
            ++failed;
        }
    }
    std::printf("%d passed, %d failed", passed, failed);
    if (skipped > 0) { std::printf(", %d skipped", skipped); }
    std::printf("\n");
    return failed == 0 && passed > 0 ? 0 : 1;
}
