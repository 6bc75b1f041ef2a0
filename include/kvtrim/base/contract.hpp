// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Preconditions of the public functions: a caller's bug stops here, with one line that says which.
//
// KVTRIM_EXPECTS(condition, "what the caller must do") is checked in every build; it is O(1) or O(heads) and stands
// at the entry of public functions only, never in a loop over tokens. A violation calls the handler; the
// default prints one line to stderr and aborts (an engine's worker thread must not unwind). A handler may
// throw or long-jump; if it returns, the program aborts.
//
// Input that can come from a request or a file (a budget, a ratio, a window) is not a caller's bug: it is
// answered with a `status` (base/status.hpp).

#include <atomic>
#include <cstdio>
#include <cstdlib>

namespace kvtrim {

// What was violated; all texts are string literals.
struct violation {
    const char* condition;
    const char* message;
    const char* file;
    int line;
};

using violation_handler = void (*)(const violation&);

namespace detail {

inline void print_violation(const violation& v) {
    std::fprintf(stderr, "kvtrim: %s [%s, %s:%d]\n", v.message, v.condition, v.file, v.line);
}

inline std::atomic<violation_handler>& current_violation_handler() {
    static std::atomic<violation_handler> handler{&print_violation};
    return handler;
}

[[noreturn]] inline void contract_violated(const violation& v) {
    current_violation_handler().load()(v);
    std::abort();
}

} // namespace detail

// Replaces the handler for the whole program and returns the previous one. Thread-safe. nullptr restores
// the default.
inline violation_handler set_violation_handler(violation_handler handler) {
    return detail::current_violation_handler().exchange(handler ? handler : &detail::print_violation);
}

} // namespace kvtrim

#define KVTRIM_EXPECTS(condition, message)                                                                   \
    ((condition) ? static_cast<void>(0)                                                                      \
                 : ::kvtrim::detail::contract_violated({#condition, message, __FILE__, __LINE__}))
