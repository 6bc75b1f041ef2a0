// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The scores of a pass over the prompt as a scorer: the inputs of its policy are the state itself (score/replay_scores.hpp).
//
//   importance[g, t] = score[g, t], of an own pass's sums divided by the root of the number of queries they came from

#include <kvtrim/score/fill_scores.hpp>
#include <kvtrim/score/replay_scores.hpp>

#include <cmath>

namespace KVTRIM_NAMESPACE {

/// The scorer over a replay_scores: importance is the state's own score of each candidate.
struct replayed {
    /// Not negative: the scores are of the own pass of a prompt that was not cut, with this as its `nearest`, in tokens
    /// (replay_scores::add_own). A row early in the prompt was seen by more queries than a late one; sums of squares are
    /// therefore divided by how many saw it. -1: of a replay, where all rows were seen alike.
    index_t own_nearest = -1;

    static constexpr bool writes_attention = false; ///< whether score() also writes attention

    /// Writes the importance of every candidate. Returns what validate_scoring() says, with nothing written.
    template <executor Executor>
    [[nodiscard]] status score(const replay_scores& in, const eviction_request& request,
                               const token_scores& out, workspace&, Executor&) const {
        if (const status s = validate_scoring(*this, in, request, out); !s.ok()) { return s; }
        const bool is_sum = own_nearest >= 0 && in.loss() == token_loss::output_square_sum;
        detail::fill_scores(in, request, out, [&](index_t g, index_t t) {
            if (!is_sum) { return in.score(g, t); }
            const index_t observers = std::max<index_t>(1, in.tokens(g) - t - own_nearest);
            return in.score(g, t) / std::sqrt(static_cast<float>(observers));
        });
        return {};
    }
};

} // namespace KVTRIM_NAMESPACE
