// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Choices from the bytes of a fuzzer, so that every input is a legal sequence of choices and near bytes make near cases:
// what a target does with them is stated in its own file. Behind the end of the bytes every choice is the first one.

#include <kvtrim/core/element.hpp>
#include <kvtrim/core/eviction_request.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <span>
#include <vector>

// An invariant. Not assert(): it must hold in every build.
#define FUZZ_CHECK(condition)                                                                                \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            std::fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition);              \
            std::abort();                                                                                    \
        }                                                                                                    \
    } while (false)

namespace fuzz {

using kvtrim::index_t;

class input {
  public:
    explicit input(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

    [[nodiscard]] bool is_empty() const { return bytes_.empty(); }
    std::uint8_t byte() {
        if (bytes_.empty()) { return 0; }
        const std::uint8_t first = bytes_.front();
        bytes_ = bytes_.subspan(1);
        return first;
    }
    template <class T>
    T number() {
        T value{};
        const std::size_t size = std::min(sizeof value, bytes_.size());
        if (size > 0) { std::memcpy(&value, bytes_.data(), size); }
        bytes_ = bytes_.subspan(size);
        return value;
    }
    // [low, high], both included; one byte for up to 256 choices.
    index_t between(index_t low, index_t high) {
        const auto choices = static_cast<std::uint64_t>(high - low) + 1;
        const std::uint64_t choice = choices <= 256 ? byte() : number<std::uint32_t>();
        return low + static_cast<index_t>(choice % choices);
    }
    // True for so many of 256 bytes, the highest ones: the end of the bytes says false.
    bool chance(int of_256) { return byte() >= 256 - of_256; }
    template <class T, std::size_t N>
    T one_of(const T (&choices)[N]) {
        return choices[byte() % N];
    }
    // A number where `good` would be right: mostly that, else one that has broken programs before.
    index_t hostile(index_t good, int of_256 = 16) {
        if (!chance(of_256)) { return good; }
        constexpr index_t most = std::numeric_limits<index_t>::max(), most32 = 0x7fffffff;
        const auto bits = static_cast<std::uint64_t>(good); // which may be hostile itself
        const auto more = static_cast<index_t>(bits + 1), less = static_cast<index_t>(bits - 1),
                   negative = static_cast<index_t>(0 - bits);
        const index_t odd[] = {0,        -1,       1,         more,           less,
                               negative, most,     -most - 1, most32,         most32 + 1,
                               most / 2, most / 4, -most / 8, 2 * most32 + 1, index_t{1} << 56,
                               65536};
        return chance(64) ? number<index_t>() : odd[byte() % std::size(odd)];
    }
    // Small whole numbers, so that ties are common, and the odd ones.
    float value() {
        const std::uint8_t b = byte();
        if (b < 240) { return (static_cast<float>(b) - 120) / 16; }
        constexpr float odd[] = {std::numeric_limits<float>::quiet_NaN(),
                                 std::numeric_limits<float>::infinity(),
                                 -std::numeric_limits<float>::infinity(),
                                 std::numeric_limits<float>::max(),
                                 -std::numeric_limits<float>::max(),
                                 std::numeric_limits<float>::denorm_min(),
                                 -0.0f,
                                 1e-30f};
        return odd[b % 8];
    }
    std::span<const std::uint8_t> rest() {
        const auto all = bytes_;
        bytes_ = {};
        return all;
    }

  private:
    std::span<const std::uint8_t> bytes_;
};

// Numbers of a seed, for contents of which a fuzzer need not choose each one.
class stream {
  public:
    explicit stream(std::uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}

    std::uint64_t bits() {
        std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        return z ^ (z >> 27);
    }
    // In [-4, 4) in steps of 1/32: ties are common.
    float value() { return (static_cast<float>(bits() >> 56) - 128) / 32; }

  private:
    std::uint64_t state_;
};

// `count` values of a seed, a few of them chosen by the input.
inline std::vector<float> values(input& in, index_t count) {
    stream s(in.number<std::uint16_t>());
    std::vector<float> all(static_cast<std::size_t>(count));
    for (float& x : all) { x = s.value(); }
    for (index_t odd = count > 0 ? in.between(0, 7) : 0; odd > 0; --odd) {
        const index_t at = in.between(0, count - 1);
        all[static_cast<std::size_t>(at)] = in.value();
    }
    return all;
}

// A request for a layer of these heads and tokens: often one that a policy takes.
inline kvtrim::eviction_request request(input& in, index_t kv_heads, index_t tokens, index_t window) {
    kvtrim::eviction_request r;
    constexpr kvtrim::budget_scope scopes[] = {kvtrim::budget_scope::head, kvtrim::budget_scope::layer,
                                               kvtrim::budget_scope::model};
    r.budget.scope = in.one_of(scopes);
    const index_t times = r.budget.scope == kvtrim::budget_scope::head ? 1 : std::max<index_t>(1, kv_heads);
    r.budget.tokens = in.hostile(in.between(0, 255) * (tokens + 1) / 256 * times + 1);
    r.protect.window_tokens = in.hostile(window);
    r.protect.sink_tokens = in.hostile(in.between(0, 3));
    r.protect.pinned_tokens = in.hostile(in.between(0, 3));
    r.protect.rollback_tokens = in.hostile(0);
    if (in.chance(64)) {
        r.attention.scale = in.value();
        r.attention.soft_cap = in.value();
        r.attention.sliding_window = in.hostile(in.between(0, 32));
    }
    return r;
}

template <class T>
bool same_bits(const T& a, const T& b) {
    return std::memcmp(&a, &b, sizeof a) == 0;
}

} // namespace fuzz

// The body of a target: what it does with one input.
void run(fuzz::input& in);
