// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// CAKE's preference of a layer: how much of the cache it should get, from how its window's attention is spread.
//
//   H = - sum of A log(A + 1e-10) over query heads, window queries and candidates
//   V = sum over query heads and candidates of the unbiased variance of A over the window queries
//   preference = H^(1 / tau1) * V^(1 / tau2)
//
// A is the softmax over all visible tokens, its candidate part not renormalised. Budgets follow from the preferences of
// all layers: allocate/preference.hpp.
//
// Source: CAKE, arXiv:2503.12491, Sec. 4; FFY0/DefensiveKV@9251b95 cake_scorer_press.py (tau1 1.6, tau2 0.6).
// Departures: per sequence, not summed over a batch. Cost: one window scoring. Numerics: sums over tokens in double.

#include <kvtrim/aggregate/dispersion_attention.hpp>
#include <kvtrim/plan/plan_best.hpp>
#include <kvtrim/score/window_attention.hpp>

#include <cmath>

namespace KVTRIM_NAMESPACE {

/// Measures how much of the cache a layer should get, from the attention of its window queries.
struct layer_preference {
    double tau1 = 1.6; ///< of the entropy; reference 1.6
    double tau2 = 0.6; ///< of the variance; reference 0.6

    /// Returns invalid_parameter or what window_attention says of the inputs.
    template <class Inputs>
    [[nodiscard]] status validate(const Inputs& in, const eviction_request& request) const {
        if (!(tau1 > 0) || !(tau2 > 0)) {
            return {errc::invalid_parameter, "layer_preference: tau1 and tau2 must be positive"};
        }
        if (const status s = valid_protection(request.protect); !s.ok()) { return s; }
        return scorer.validate(in, request);
    }

    /// Bytes of workspace for measure(); 0 for inputs it refuses.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] index_t workspace_bytes(const Inputs& in, const eviction_request& request,
                                          const Executor& ex = {}) const {
        if (!validate(in, request).ok()) { return 0; }
        workspace counting = workspace::counting();
        static_cast<void>(counting.take<index_t>(in.kv_heads() + 1));
        static_cast<void>(counting.take<float>(2 * count_lengths(in, request.protect).candidates()));
        static_cast<void>(counting.take<std::byte>(scoring_bytes(scorer, in, request, ex)));
        return counting.needed_bytes();
    }

    /// Writes the layer's preference: 0 where the prompt is shorter than its window, which a budget keeps whole or a policy
    /// refuses. Returns any other status of validate(), or workspace_too_small, with it unchanged.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] status measure(const Inputs& in, const eviction_request& request, double& preference,
                                 workspace& scratch, Executor&& ex = {}) const {
        if (const status s = validate(in, request); s.code() == errc::window_exceeds_tokens) {
            preference = 0;
            return {};
        } else if (!s.ok()) {
            return s;
        }
        const index_t bytes = workspace_bytes(in, request);
        if (!scratch.holds(bytes)) { return scratch.too_small(bytes); }
        const workspace::frame frame(scratch);
        const index_t columns = count_lengths(in, request.protect).candidates();
        const auto offsets = scratch.take<index_t>(in.kv_heads() + 1);
        const auto entropy = scratch.take<float>(columns);
        const auto variance = scratch.take<float>(columns);
        offsets[0] = 0;
        fill_candidate_offsets(in, request.protect, offsets);
        const token_scores scores{offsets, entropy, variance, {}};
        if (const status s = scorer.score(in, request, scores, scratch, ex); !s.ok()) { return s; }
        preference = std::pow(sum_of(entropy), 1 / tau1) * std::pow(sum_of(variance), 1 / tau2);
        return {};
    }

    /// The same with a workspace that grows on first use and then stays.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] status measure(const Inputs& in, const eviction_request& request, double& preference,
                                 growing_workspace& memory, Executor&& ex = {}) const {
        workspace scratch = memory.of_bytes(workspace_bytes(in, request, ex));
        return measure(in, request, preference, scratch, ex);
    }

  private:
    static constexpr window_attention<dispersion_attention> scorer{};

    [[nodiscard]] static double sum_of(std::span<const float> values) {
        double sum = 0;
        for (const float x : values) { sum += static_cast<double>(x); }
        return sum;
    }
};

} // namespace KVTRIM_NAMESPACE
