// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Which mutants each test runs through, for mutate.py: where KVTRIM_MUTANTS_REACHED names a file, a line for each test case,
//
//   name <tab> source file <tab> seconds <tab> numbers of mutants, with blanks between
#define CATCH_CONFIG_EXTERNAL_INTERFACES
#include "support/catch.hpp"

#include "mutants.hpp"

#include <chrono>

namespace {

using clock = std::chrono::steady_clock;
#if defined(CATCH_VERSION_MAJOR) && CATCH_VERSION_MAJOR == 2
using listener_base = Catch::TestEventListenerBase;
#else
using listener_base = Catch::EventListenerBase;
#endif

struct reached_mutants : listener_base {
    using listener_base::listener_base;

    void testCaseStarting(const Catch::TestCaseInfo&) override {
        kvtrim_mutants::global().reached.reset();
        begin_ = clock::now();
    }
    void testCaseEnded(const Catch::TestCaseStats& stats) override {
        const kvtrim_mutants::state& s = kvtrim_mutants::global();
        std::FILE* const file = s.log == nullptr ? nullptr : std::fopen(s.log, "a");
        if (file == nullptr) { return; }
        const auto& test = *const_of(stats.testInfo);
        const std::chrono::duration<double> seconds = clock::now() - begin_;
        std::fprintf(file, "%s\t%s\t%.3f\t", test.name.c_str(), test.lineInfo.file, seconds.count());
        for (std::size_t i = 0; i < kvtrim_mutants::most; ++i) {
            if (s.reached[i]) { std::fprintf(file, "%zu ", i); }
        }
        std::fputc('\n', file);
        std::fclose(file);
    }

  private:
    static const Catch::TestCaseInfo* const_of(const Catch::TestCaseInfo& info) { return &info; } // version 2
    static const Catch::TestCaseInfo* const_of(const Catch::TestCaseInfo* info) { return info; }  // version 3

    clock::time_point begin_;
};

CATCH_REGISTER_LISTENER(reached_mutants)

} // namespace
