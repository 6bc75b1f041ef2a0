// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What mutate.py writes into copies of the headers: every mutant is compiled in, and the environment says which one is on.
//
//   KVTRIM_MUTANT=17            mutant 17 is on, all others compute what the header says
//   KVTRIM_MUTANTS_REACHED=f    which mutants' places each test has run is appended to file f (reached.cpp)
//
// In constant expressions all are off: a mutant there would not compile.

#include <algorithm>
#include <bitset>
#include <cstdlib>
#include <initializer_list>
#include <type_traits>

namespace kvtrim_mutants {

inline constexpr std::size_t most = 1 << 16;

struct state {
    int active = 0;
    const char* log = nullptr;
    std::bitset<most> reached = {};

    state() : log(std::getenv("KVTRIM_MUTANTS_REACHED")) {
        if (const char* number = std::getenv("KVTRIM_MUTANT")) { active = std::atoi(number); }
    }
};

inline state& global() {
    static state s;
    return s;
}

inline bool is_active(int id) {
    state& s = global();
    if (s.log != nullptr) { s.reached[static_cast<std::size_t>(id)] = true; }
    return s.active == id;
}

[[nodiscard]] constexpr bool on(int id) {
    if (std::is_constant_evaluated()) { return false; }
    return is_active(id);
}

// A condition, negated.
[[nodiscard]] constexpr bool flip(int id, bool condition) {
    return on(id) ? !condition : condition;
}

// A literal, and what stands in its place; ids are id and id + 1.
[[nodiscard]] constexpr int number(int id, int original, int first, int second) {
    return on(id) ? first : on(id + 1) ? second : original;
}

// `a < b` is written `a <less<17>()> b`: both operators of the pair have the precedence of the one that was there.
template <int Id, class Original, class Mutant>
struct relation {};

template <int Id, class Original, class Mutant, class A>
struct half {
    const A& a;
};

#define KVTRIM_MUTANTS_PAIR(name, mutant, op, back)                                                          \
    struct name {                                                                                            \
        template <class A, class B>                                                                          \
        static constexpr bool of(const A& a, const B& b) {                                                   \
            return static_cast<bool>(a op b);                                                                \
        }                                                                                                    \
    };                                                                                                       \
    struct mutant;                                                                                           \
    template <class A, int Id, class M>                                                                      \
    constexpr half<Id, name, M, A> operator op(const A& a, relation<Id, name, M>) {                          \
        return {a};                                                                                          \
    }                                                                                                        \
    template <int Id, class M, class A, class B>                                                             \
    constexpr bool operator back(const half<Id, name, M, A>& h, const B& b) {                                \
        return on(Id) ? M::of(h.a, b) : name::of(h.a, b);                                                    \
    }

KVTRIM_MUTANTS_PAIR(less, less_equal, <, >)
KVTRIM_MUTANTS_PAIR(less_equal, less, <=, >=)
KVTRIM_MUTANTS_PAIR(greater, greater_equal, >, <)
KVTRIM_MUTANTS_PAIR(greater_equal, greater, >=, <=)
KVTRIM_MUTANTS_PAIR(equal, not_equal, ==, !=)
KVTRIM_MUTANTS_PAIR(not_equal, equal, !=, ==)
#undef KVTRIM_MUTANTS_PAIR

// std::min and std::max, exchanged.
template <class Of = void>
struct min {
    int id;

    template <class T>
    constexpr T operator()(const T& a, const T& b) const {
        return on(id) ? std::max<T>(a, b) : std::min<T>(a, b);
    }
    template <class T>
    constexpr T operator()(std::initializer_list<T> all) const {
        return on(id) ? std::max<T>(all) : std::min<T>(all);
    }
};
template <class Of>
    requires(!std::is_void_v<Of>)
struct min<Of> {
    int id;

    constexpr Of operator()(const Of& a, const Of& b) const {
        return on(id) ? std::max<Of>(a, b) : std::min<Of>(a, b);
    }
};
template <class Of = void>
struct max {
    int id;

    template <class... T>
    constexpr auto operator()(const T&... of) const {
        return on(id) ? std::min(of...) : std::max(of...);
    }
    template <class T>
    constexpr T operator()(std::initializer_list<T> all) const {
        return on(id) ? std::min<T>(all) : std::max<T>(all);
    }
};
template <class Of>
    requires(!std::is_void_v<Of>)
struct max<Of> {
    int id;

    constexpr Of operator()(const Of& a, const Of& b) const {
        return on(id) ? std::min<Of>(a, b) : std::max<Of>(a, b);
    }
};

} // namespace kvtrim_mutants
