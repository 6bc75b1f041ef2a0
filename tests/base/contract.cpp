// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/base/contract.hpp>

#include "support/checks.hpp"

#include <stdexcept>
#include <string>

#if defined(__unix__)
#include <csignal>
#include <sys/wait.h>
#include <unistd.h>
#endif

namespace {

using namespace kvtrim;

void require_even(int x) {
    KVTRIM_EXPECTS(x % 2 == 0, "x must be even");
}

void throwing_handler(const violation& v) {
    throw std::runtime_error(v.message);
}

[[maybe_unused]] void returning_handler(const violation&) {}

#if defined(__unix__)
struct ending {
    std::string printed;
    int signal = 0; // 0: the program went on
};

// What a program does that runs `body`.
template <class Body>
ending run_apart(Body&& body) {
    int ends[2];
    if (::pipe(ends) != 0) { throw std::runtime_error("pipe"); }
    const pid_t child = ::fork();
    if (child == 0) {
        std::signal(SIGABRT, SIG_DFL); // not the test framework's
        ::dup2(ends[1], STDERR_FILENO);
        body();
        ::_exit(0);
    }
    ::close(ends[1]);
    ending result;
    char buffer[256];
    for (ssize_t count = 0; (count = ::read(ends[0], buffer, sizeof buffer)) > 0;) {
        result.printed.append(buffer, static_cast<std::size_t>(count));
    }
    ::close(ends[0]);
    int how = 0;
    ::waitpid(child, &how, 0);
    result.signal = WIFSIGNALED(how) ? WTERMSIG(how) : 0;
    return result;
}
#endif

} // namespace

TEST_CASE("KVTRIM_EXPECTS: the handler learns the condition, the message and the place", "[base][contract]") {
    static violation seen{};
    const violation_handler before = set_violation_handler([](const violation& v) {
        seen = v;
        throw std::runtime_error("stop");
    });
    CHECK_NOTHROW(require_even(2));
    CHECK(seen.message == nullptr);
    CHECK_THROWS(require_even(3));
    set_violation_handler(before);
    CHECK(std::string(seen.condition) == "x % 2 == 0");
    CHECK(std::string(seen.message) == "x must be even");
    CHECK(std::string(seen.file).find("contract.cpp") != std::string::npos);
    CHECK(seen.line > 20);
}

TEST_CASE("set_violation_handler: it returns the previous handler, and nullptr restores the default",
          "[base][contract]") {
    const violation_handler original = set_violation_handler(&throwing_handler);
    CHECK(set_violation_handler(nullptr) == &throwing_handler);
    const violation_handler fallback = set_violation_handler(original);
    CHECK(fallback != nullptr);
    CHECK(fallback != &throwing_handler);
    CHECK(support::violation_of([] { require_even(1); }) == "x must be even");
    CHECK(set_violation_handler(original) == original); // restored by violation_of
}

#if defined(__unix__)
TEST_CASE("KVTRIM_EXPECTS: by default one line is printed and the program aborts", "[base][contract]") {
    const ending e = run_apart([] {
        set_violation_handler(nullptr);
        require_even(7);
    });
    CHECK(e.signal == SIGABRT);
    CHECK(e.printed.find("kvtrim: x must be even [x % 2 == 0, ") == 0);
    CHECK(e.printed.find('\n') == e.printed.size() - 1);
}

TEST_CASE("KVTRIM_EXPECTS: the program aborts even if the handler returns", "[base][contract]") {
    const ending e = run_apart([] {
        set_violation_handler(&returning_handler);
        require_even(7);
    });
    CHECK(e.signal == SIGABRT);
    CHECK(e.printed.empty());
}
#endif
