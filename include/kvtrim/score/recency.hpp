// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The newest tokens stay; no tensor is read.
//
//   importance[g, t] = t - tokens(g)
//
// Source: with protected sinks, StreamingLLM, arXiv:2309.17453.
// Departures: its shift of positions is not done here: survivors keep their positions (see keep_plan::gather_positions).

#include <kvtrim/core/executor.hpp>
#include <kvtrim/core/workspace.hpp>
#include <kvtrim/score/fill_scores.hpp>

namespace KVTRIM_NAMESPACE {

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

} // namespace KVTRIM_NAMESPACE
