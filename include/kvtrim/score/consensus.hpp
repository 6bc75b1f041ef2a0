// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Any scorer, with the scores of the other KV heads of the layer added to those of each head.
//
//   s'[g, t]          = s[g, t] / sum over t of s[g, t]
//   importance[g, t]  = s'[g, t] + lambda * sum over the KV heads h of s'[h, t]
//
// With one token set for all heads (rerank/shared.hpp) the sum alone decides. The score must not be negative, as
// attention is not. A head whose scores are all 0, or not finite, adds nothing to the sum. A score that is not finite stays
// what it is. Attention, where the scorer writes it, is left as it is.
//
// Source: kvtrim's own, shown on a small model only (docs/demo-results.md). Heads must have equal lengths.
// Cost: three passes over the scores. Workspace: a double and a float per column.

#include <kvtrim/cache/layer.hpp>
#include <kvtrim/core/eviction_request.hpp>
#include <kvtrim/core/executor.hpp>
#include <kvtrim/core/workspace.hpp>
#include <kvtrim/kernels/row_kernels.hpp>
#include <kvtrim/plan/token_scores.hpp>
#include <kvtrim/score/finite_sum.hpp>

#include <cmath>

namespace KVTRIM_NAMESPACE {

/// Adds to each head's normalised scores, weighted by lambda, the sum of those of all KV heads of the layer.
template <class Scorer>
struct consensus {
    [[no_unique_address]] Scorer scorer = {}; ///< the inner scorer
    float lambda = 1.0f; ///< weight of the layer's sum; 0: each head alone, but normalised

    /// whether score() also writes attention
    static constexpr bool writes_attention = Scorer::writes_attention;

    /// Returns invalid_parameter, rows_differ or what the scorer says.
    template <class Inputs>
    [[nodiscard]] status validate(const Inputs& in, const eviction_request& request) const {
        if (!(lambda >= 0.0f) || !std::isfinite(lambda)) {
            return {errc::invalid_parameter, "consensus: lambda must be finite and not negative"};
        }
        for (index_t g = 0; g < in.kv_heads(); ++g) {
            if (in.tokens(g) != in.longest_row()) {
                return {errc::rows_differ, "consensus needs heads of equal length"};
            }
        }
        if constexpr (requires { scorer.validate(in, request); }) { return scorer.validate(in, request); }
        return {};
    }

    /// Bytes of workspace for score(), at the full width of this executor.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] index_t workspace_bytes(const Inputs& in, const eviction_request& request,
                                          const Executor& ex = {}) const {
        workspace counting = workspace::counting();
        static_cast<void>(counting.take<double>(in.longest_row()));
        static_cast<void>(counting.take<float>(in.longest_row()));
        static_cast<void>(counting.take<std::byte>(scoring_bytes(scorer, in, request, ex)));
        return counting.needed_bytes();
    }

    /// Writes the importance of every candidate.
    /// Returns what validate_scoring() says or errc::workspace_too_small, with nothing written.
    template <class Inputs, executor Executor>
    [[nodiscard]] status score(const Inputs& in, const eviction_request& request, const token_scores& out,
                               workspace& scratch, Executor& ex) const {
        if (const status s = validate_scoring(*this, in, request, out, scratch); !s.ok()) { return s; }
        const workspace::frame frame(scratch);
        const auto sums = scratch.take<double>(in.longest_row());
        const auto added = scratch.take<float>(in.longest_row());
        if (const status s = scorer.score(in, request, out, scratch, ex); !s.ok()) { return s; }
        std::fill(sums.begin(), sums.end(), 0.0);
        for (index_t g = 0; g < out.rows(); ++g) {
            const auto row = out.importance_rows().row(g);
            normalise(row);
            for (std::size_t c = 0; c < row.size(); ++c) {
                sums[c] += std::isfinite(row[c]) ? static_cast<double>(row[c]) : 0.0;
            }
        }
        for (std::size_t c = 0; c < sums.size(); ++c) { added[c] = lambda * static_cast<float>(sums[c]); }
        for (index_t g = 0; g < out.rows(); ++g) {
            const auto row = out.importance_rows().row(g);
            kernels::active_row_kernels().add_row(added.data(), std::ssize(row), row.data());
        }
        return {};
    }

  private:
    static void normalise(std::span<float> row) {
        const double sum = sum_of_finite(row).sum;
        if (!(sum > 0)) { return; }
        for (float& x : row) { x = std::isfinite(x) ? static_cast<float>(static_cast<double>(x) / sum) : x; }
    }
};

template <class Scorer>
consensus(Scorer) -> consensus<Scorer>;
template <class Scorer>
consensus(Scorer, float) -> consensus<Scorer>;

} // namespace KVTRIM_NAMESPACE
