// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Scores that the engine already has, for example those of its own attention kernel.
//
//   importance[g, t] = scores(g, t)        any tensor_view [kv_heads, tokens]

#include <kvtrim/cache/tensor_view.hpp>
#include <kvtrim/core/executor.hpp>
#include <kvtrim/core/workspace.hpp>
#include <kvtrim/score/fill_scores.hpp>

namespace KVTRIM_NAMESPACE {

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
