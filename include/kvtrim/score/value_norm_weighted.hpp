// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Any scorer times the L2 norm of the token's value: a token with a small value adds little to the output whatever its
// attention.
//
//   importance[g, t] = (s[g, t] + epsilon) * || v[g, t] ||_2
//
// Needs no W_O. Where W_O is available, score/projected_norm_weighted.hpp takes the norm after it, which is what the output
// gets.
// Source: kvpress@8bb29b9 expected_attention_press.py (use_vnorm).
// A value that is not finite gives what the formula gives: +infinity, or NaN, which ranks last.
// Cost: values read once. Workspace: a tile of values per KV head, and the inner scorer's.

#include <kvtrim/score/key_norm_score.hpp>

#include <cmath>

namespace KVTRIM_NAMESPACE {

/// The inner scores times the L2 norms of the values. Needs values.
template <class Scorer>
struct value_norm_weighted {
    [[no_unique_address]] Scorer scorer = {}; ///< the inner scorer
    float epsilon = 0;                        ///< added to a score before it is weighted, at least 0

    /// whether score() also writes attention
    static constexpr bool writes_attention = Scorer::writes_attention;

    /// Returns invalid_parameter for an epsilon that is negative or not finite, or what the inner scorer says.
    template <class Inputs>
    [[nodiscard]] status validate(const Inputs& in, const eviction_request& request) const {
        static_assert(
            Inputs::has_values,
            "kvtrim: value_norm_weighted needs values: pass layer(keys, values); see cache/layer.hpp");
        if (!(epsilon >= 0.0f) || !std::isfinite(epsilon)) {
            return {errc::invalid_parameter, "value_norm_weighted: epsilon must be finite and not negative"};
        }
        if constexpr (requires { scorer.validate(in, request); }) { return scorer.validate(in, request); }
        return {};
    }

    /// Bytes of workspace for score(), at the full width of this executor.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] index_t workspace_bytes(const Inputs& in, const eviction_request& request,
                                          const Executor& ex = {}) const {
        const index_t bytes =
            for_each_item_bytes(ex, in.kv_heads(), detail::row_scratch::bytes(extent(in.values, 2)));
        return std::max(bytes, scoring_bytes(scorer, in, request, ex));
    }

    /// Writes the importance of every candidate.
    /// Returns what validate_scoring() says or errc::workspace_too_small, with nothing written.
    template <class Inputs, executor Executor>
    [[nodiscard]] status score(const Inputs& in, const eviction_request& request, const token_scores& out,
                               workspace& scratch, Executor& ex) const {
        if (const status s = validate_scoring(*this, in, request, out, scratch); !s.ok()) { return s; }
        if (const status s = scorer.score(in, request, out, scratch, ex); !s.ok()) { return s; }
        const index_t length = extent(in.values, 2);
        return for_each_item(
            in.kv_heads(), detail::row_scratch::bytes(length), scratch, ex, [&](index_t g, workspace& own) {
                const detail::row_scratch memory(length, own);
                const token_range range = candidates(request.protect, in.tokens(g));
                float* score = out.importance_rows().row(g).data();
                detail::for_each_tile(in.values, g, range, memory.tile,
                                      [&](const float_rows&, index_t, index_t count, const float* squares) {
                                          for (index_t i = 0; i < count; ++i, ++score) {
                                              *score = (*score + epsilon) * std::sqrt(squares[i]);
                                          }
                                      });
            });
    }
};

} // namespace KVTRIM_NAMESPACE
