// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Scorers that read no tensor: the newest tokens, random tokens, and scores that the engine already has.
//
//   recency:       importance[g, t] = t                       with protected sinks: StreamingLLM, 2309.17453
//   random_score:  importance[g, t] = hash(seed, g, t)        a baseline for other methods
//   given_scores:  importance[g, t] = scores(g, t)            any tensor_view [kv_heads, tokens], or a paged
//                                                             attention kernel's own scores (rows equal)
//
// Departures: StreamingLLM's position shift is not done here: survivors keep their positions (see
// keep_plan::gather_positions). random_score does not depend on threads, order or other heads.

#include <kvtrim/cache/layer.hpp>
#include <kvtrim/core/eviction_request.hpp>
#include <kvtrim/core/executor.hpp>
#include <kvtrim/core/workspace.hpp>
#include <kvtrim/plan/token_scores.hpp>

#include <algorithm>
#include <type_traits>

namespace KVTRIM_NAMESPACE {

namespace detail {

// Fills importance with fn(kv_head, cache row) for every candidate.
template <class Inputs, class Fn>
void fill_scores(const Inputs& in, const eviction_request& request, const token_scores& out, Fn&& fn) {
    for (index_t g = 0; g < in.kv_heads(); ++g) {
        const token_range range = candidates(request.protect, in.tokens(g));
        const auto row = out.importance_rows().row(g);
        for (index_t t = range.begin; t < range.end; ++t) {
            row[static_cast<std::size_t>(t - range.begin)] = fn(g, t);
        }
    }
}

// The same with scores that lie in memory: row_of(kv_head) is the head's row, of which the candidates are copied.
template <class Inputs, class RowOf>
void copy_scores(const Inputs& in, const eviction_request& request, const token_scores& out, RowOf&& row_of) {
    for (index_t g = 0; g < in.kv_heads(); ++g) {
        const token_range range = candidates(request.protect, in.tokens(g));
        std::copy_n(row_of(g) + range.begin, range.size(), out.importance_rows().row(g).begin());
    }
}

// Whether a request fits scores that are sums of attention. Few queries have seen the newest tokens, so their sums are the
// lowest: without a protected window they would be evicted first, and the prompt would never be. Returns invalid_parameter
// (needed: window_tokens; H2O's are half of the budget) unless the window holds `least` tokens or everything is kept.
template <class Inputs>
[[nodiscard]] status validate_sum_window(const Inputs& in, const eviction_request& request,
                                         index_t least = 1) {
    index_t tokens = 0;
    for (index_t g = 0; g < in.kv_heads(); ++g) { tokens += in.tokens(g); }
    const index_t total = request.budget.total(in.kv_heads());
    if (request.protect.window_tokens >= least || tokens == 0 || total >= tokens) { return {}; }
    return {errc::invalid_parameter,
            "sums of attention put the newest tokens last: protect them with request.protect.window_tokens, "
            "half of the budget in H2O",
            std::max(least, total / in.kv_heads() / 2)};
}

} // namespace detail

/// The newest tokens stay.
struct recency {
    static constexpr bool writes_attention = false; ///< whether score() also writes attention

    /// Writes the importance of every candidate. Returns what validate_scoring() says, with nothing written.
    template <class Inputs, executor Executor>
    [[nodiscard]] status score(const Inputs& in, const eviction_request& request, const token_scores& out,
                               workspace&, Executor&) const {
        if (const status s = validate_scoring(*this, in, request, out); !s.ok()) { return s; }
        // Counted from the newest token: exact in float for the 2^24 newest, the only ones that can win.
        detail::fill_scores(in, request, out,
                            [&](index_t g, index_t t) { return -static_cast<float>(in.tokens(g) - t); });
        return {};
    }
};

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

/// Scores that the engine already has.
template <tensor_view<2> View>
struct given_scores {
    View scores; ///< [kv_heads, tokens]; protected columns are not read

    static constexpr bool writes_attention = false; ///< whether score() also writes attention

    /// Returns invalid_parameter for scores of another cache, or what validate() says of the view.
    template <class Inputs>
    [[nodiscard]] status validate(const Inputs& in, const eviction_request&) const {
        if (const status s = kvtrim::validate(scores); !s.ok()) { return s; }
        if (extent(scores, 0) != in.kv_heads() || extent(scores, 1) < in.longest_row()) {
            return {errc::invalid_parameter, "given_scores: scores must be [kv_heads, tokens] of the cache",
                    in.longest_row()};
        }
        return {};
    }

    /// Writes the importance of every candidate. Returns what validate_scoring() says, with nothing written.
    template <class Inputs, executor Executor>
    [[nodiscard]] status score(const Inputs& in, const eviction_request& request, const token_scores& out,
                               workspace&, Executor&) const {
        if (const status s = validate_scoring(*this, in, request, out); !s.ok()) { return s; }
        if (detail::floats_in_place(scores, 0) != nullptr) {
            detail::copy_scores(in, request, out,
                                [&](index_t g) { return detail::floats_in_place(scores, g); });
            return {};
        }
        detail::fill_scores(in, request, out,
                            [&](index_t g, index_t t) { return to_float(at(scores, g, t)); });
        return {};
    }
};

template <class View>
given_scores(View) -> given_scores<View>;

} // namespace KVTRIM_NAMESPACE
