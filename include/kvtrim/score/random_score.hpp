// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Random tokens stay: a baseline for other methods, which reads no tensor.
//
//   importance[g, t] = hash(seed, g, t)
//
// A score does not depend on threads, order or other heads.

#include <kvtrim/core/executor.hpp>
#include <kvtrim/core/workspace.hpp>
#include <kvtrim/score/fill_scores.hpp>

#include <cstdint>

namespace KVTRIM_NAMESPACE {

/// A pseudo-random number in [0, 1) for each token, a function of seed, KV head and token alone.
struct random_score {
    std::uint64_t seed = 0; ///< equal seeds give equal scores

    static constexpr bool writes_attention = false; ///< whether score() also writes attention

    /// Writes the importance of every candidate. Returns what validate_scoring() says, with nothing written.
    template <class Inputs, executor Executor>
    [[nodiscard]] status score(const Inputs& in, const eviction_request& request, const token_scores& out,
                               workspace&, Executor&) const {
        if (const status s = validate_scoring(*this, in, request, out); !s.ok()) { return s; }
        detail::fill_scores(in, request, out, [&](index_t g, index_t t) {
            const auto mixed =
                mix(seed ^ mix((static_cast<std::uint64_t>(g) << 40) + static_cast<std::uint64_t>(t)));
            return static_cast<float>(mixed >> 40) * 0x1p-24f; // [0, 1)
        });
        return {};
    }

  private:
    // SplitMix64's output function (Steele, Lea, Flood 2014).
    static constexpr std::uint64_t mix(std::uint64_t z) {
        z += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
};

} // namespace KVTRIM_NAMESPACE
