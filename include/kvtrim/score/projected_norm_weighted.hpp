// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Any scorer times the projected value norm, which bounds how far the token's eviction can change the layer's output.
//
//   importance[g, t] = (s[g, t] + epsilon * e) * w[g, t]      w: projected value norm, in the scope's units
//   attention[g, t]  = the inner scorer's attention where it writes one, else s[g, t]
//   e = 1, or the row's mean of s where epsilon is relative
//
// norm_scope: raw (CriticalKV), per_head: divided by its sum over the head's candidates (DefensiveKV as
// intended: heads become comparable), per_token: divided by its sum over the KV heads at the same column
// (DefensiveKV's repository; removes the token's own magnitude, and with one KV head everything; offered to
// reproduce it, equal rows only). A norm that is not finite stays out of these sums and is not divided: its token
// scores what scope raw gives it (infinite value: +infinity; NaN value, or 0 * infinity: NaN, which ranks last), the
// others what they would score among themselves. A score s that is not finite stays out of e likewise.
//
// Source: CriticalKV, arXiv:2502.03805, Alg. 1 (epsilon 1e-4); DefensiveKV, arXiv:2510.13334, Sec. 4.
// Departures: protected tokens are not scored, so no sentinel is multiplied by a norm (kvpress loses forced
// tokens with zero values and overflows above 1). An all-zero scope leaves w = 0 instead of 0/0.
// Cost: see score/projected_value_norms.hpp. Workspace: one float per candidate and the norms' tiles.

#include <kvtrim/kernels/row_kernels.hpp>
#include <kvtrim/score/finite_sum.hpp>
#include <kvtrim/score/projected_value_norms.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace KVTRIM_NAMESPACE {

/// What a projected value norm is divided by: nothing, its sum over the head's candidates, or its sum over the KV heads.
enum class norm_scope : std::uint8_t { raw, per_head, per_token };

/// The inner scores times projected value norms. Needs values and W_O or a prepared form of it.
template <class Scorer>
struct projected_norm_weighted {
    [[no_unique_address]] Scorer scorer = {}; ///< the inner scorer
    float epsilon = 1e-4f;                    ///< CriticalKV epsilon; DefensiveKV: 0
    bool epsilon_relative = false;            ///< in units of the row's mean score instead of absolute
    norm_scope scope = norm_scope::raw;       ///< raw: CriticalKV; DefensiveKV: per_head

    static constexpr bool writes_attention = true; ///< whether score() also writes attention

    /// Returns invalid_parameter for an epsilon that is negative or not finite, rows_differ for scope per_token over heads of
    /// different lengths, or what the inner scorer or validate_projection() says.
    template <class Inputs>
    [[nodiscard]] status validate(const Inputs& in, const eviction_request& request) const {
        if (!(epsilon >= 0.0f) || !std::isfinite(epsilon)) {
            return {errc::invalid_parameter,
                    "projected_norm_weighted: epsilon must be finite and not negative"};
        }
        if constexpr (requires { scorer.validate(in, request); }) {
            if (const status s = scorer.validate(in, request); !s.ok()) { return s; }
        }
        if (scope == norm_scope::per_token) {
            for (index_t g = 0; g < in.kv_heads(); ++g) {
                if (in.tokens(g) != in.longest_row()) {
                    return {errc::rows_differ, "norm_scope::per_token needs heads of equal length"};
                }
            }
        }
        return validate_projection(in);
    }

    /// Bytes of workspace for score(), at the full width of this executor.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] index_t workspace_bytes(const Inputs& in, const eviction_request& request,
                                          const Executor& ex = {}) const {
        workspace counting = workspace::counting();
        static_cast<void>(counting.take<float>(in.kv_heads() * in.longest_row()));
        static_cast<void>(counting.take<std::byte>(
            std::max(projected_value_norms_bytes(in, ex), scoring_bytes(scorer, in, request, ex))));
        return counting.needed_bytes();
    }

    /// Writes importance and attention of every candidate.
    /// Returns what validate_scoring() says or errc::workspace_too_small, with nothing written.
    template <class Inputs, executor Executor>
    [[nodiscard]] status score(const Inputs& in, const eviction_request& request, const token_scores& out,
                               workspace& scratch, Executor& ex) const {
        if (const status s = validate_scoring(*this, in, request, out, scratch); !s.ok()) { return s; }
        const workspace::frame frame(scratch);
        const score_rows norms{out.offsets, scratch.take<float>(out.offsets.back())};
        if (const status s = projected_value_norms(in, request.protect, norms, scratch, ex); !s.ok()) {
            return s;
        }
        if (const status s = scorer.score(in, request, out, scratch, ex); !s.ok()) { return s; }
        if constexpr (!Scorer::writes_attention) {
            std::copy(out.importance.begin(), out.importance.end(), out.attention.begin());
        }
        scale_norms(norms);
        for (index_t g = 0; g < out.rows(); ++g) {
            const auto row = out.importance_rows().row(g);
            const float added =
                epsilon * (epsilon_relative ? static_cast<float>(sum_of_finite(row).mean()) : 1.0f);
            kernels::active_row_kernels().weigh_row(row.data(), std::ssize(row), added, norms.row(g).data());
        }
        return {};
    }

  private:
    void scale_norms(const score_rows& norms) const {
        const auto divide = [](float x, double sum) {
            if (!std::isfinite(x)) { return x; }
            return sum > 0 ? static_cast<float>(static_cast<double>(x) / sum) : 0.0f;
        };
        if (scope == norm_scope::per_head) {
            for (index_t g = 0; g < norms.rows(); ++g) {
                const double sum = sum_of_finite(norms.row(g)).sum;
                for (float& x : norms.row(g)) { x = divide(x, sum); }
            }
        } else if (scope == norm_scope::per_token) {
            for (std::size_t c = 0; c < norms.row(0).size(); ++c) {
                double sum = 0;
                for (index_t g = 0; g < norms.rows(); ++g) {
                    const float x = norms.row(g)[c];
                    sum += std::isfinite(x) ? static_cast<double>(x) : 0.0;
                }
                for (index_t g = 0; g < norms.rows(); ++g) { norms.row(g)[c] = divide(norms.row(g)[c], sum); }
            }
        }
    }
};

} // namespace KVTRIM_NAMESPACE
