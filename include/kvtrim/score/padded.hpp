// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Reproduces kvpress' window padding: the window competes with the score "maximum over all heads + 1" instead of
// being protected.
//
//   importance[g, t] = inner[g, t] for t before the window, else max over all heads and tokens of inner + 1
//
// For published kvpress runs only. Protection by a score counts window tokens towards a safeguard and pass
// one, makes all of them tie, and can lose them once a norm is multiplied in; a request's protection has none of
// this. Use it with an unprotected request (all tokens are then candidates).
//
// Source: kvpress@8bb29b9 snapkv_press.py, tova_press.py.

#include <kvtrim/cache/layer.hpp>
#include <kvtrim/core/eviction_request.hpp>
#include <kvtrim/core/for_each_item.hpp>
#include <kvtrim/plan/token_scores.hpp>

#include <algorithm>

namespace KVTRIM_NAMESPACE {

/// Scores the window with the maximum of the inner scores + 1. To reproduce published kvpress runs.
template <class Scorer>
struct padded {
    [[no_unique_address]] Scorer scorer = {}; ///< the inner scorer
    index_t window_tokens = 0;                ///< newest tokens that get the padding

    static constexpr bool writes_attention = false; ///< whether score() also writes attention
    static_assert(!Scorer::writes_attention, "kvtrim: padded wraps a scorer with one score per token");

    /// Returns invalid_parameter for a request with protected tokens or a negative window_tokens, or what the inner scorer
    /// says.
    template <class Inputs>
    [[nodiscard]] status validate(const Inputs& in, const eviction_request& request) const {
        if (window_tokens < 0 || request.protect.prefix() != 0 || request.protect.suffix() != 0) {
            return {errc::invalid_parameter, "padded: needs a request without protected tokens"};
        }
        if constexpr (requires { scorer.validate(in, request); }) {
            return scorer.validate(in, inner_request(request));
        }
        return {};
    }

    /// Bytes of workspace for score(), at the full width of this executor.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] index_t workspace_bytes(const Inputs& in, const eviction_request& request,
                                          const Executor& ex = {}) const {
        workspace counting = workspace::counting();
        static_cast<void>(counting.take<index_t>(in.kv_heads() + 1));
        static_cast<void>(counting.take<float>(in.kv_heads() * in.longest_row()));
        static_cast<void>(counting.take<std::byte>(scoring_bytes(scorer, in, inner_request(request), ex)));
        return counting.needed_bytes();
    }

    /// Writes the importance of every candidate.
    /// Returns what validate_scoring() says or errc::workspace_too_small, with nothing written.
    template <class Inputs, executor Executor>
    [[nodiscard]] status score(const Inputs& in, const eviction_request& request, const token_scores& out,
                               workspace& scratch, Executor& ex) const {
        if (const status s = validate_scoring(*this, in, request, out, scratch); !s.ok()) { return s; }
        const workspace::frame frame(scratch);
        const auto offsets = scratch.take<index_t>(in.kv_heads() + 1);
        const auto memory = scratch.take<float>(in.kv_heads() * in.longest_row());
        offsets[0] = 0;
        for (index_t g = 0; g < in.kv_heads(); ++g) {
            const auto i = static_cast<std::size_t>(g);
            offsets[i + 1] = offsets[i] + candidates(inner_request(request).protect, in.tokens(g)).size();
        }
        const auto used = memory.first(static_cast<std::size_t>(offsets.back()));
        const token_scores inner{offsets, used};
        if (const status s = scorer.score(in, inner_request(request), inner, scratch, ex); !s.ok()) {
            return s;
        }
        const float padding = used.empty() ? 1.0f : *std::max_element(used.begin(), used.end()) + 1.0f;
        for (index_t g = 0; g < in.kv_heads(); ++g) {
            const auto row = out.importance_rows().row(g);
            const auto from = inner.importance_rows().row(g);
            std::copy(from.begin(), from.end(), row.begin());
            std::fill(row.begin() + static_cast<std::ptrdiff_t>(from.size()), row.end(), padding);
        }
        return {};
    }

  private:
    [[nodiscard]] eviction_request inner_request(eviction_request request) const {
        request.protect.window_tokens = window_tokens;
        return request;
    }
};

} // namespace KVTRIM_NAMESPACE
