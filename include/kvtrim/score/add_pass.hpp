// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// One score for each row from two passes over the same prompt (score/replay_scores.hpp): what a replay wants, and what the prompt's own
// queries want from afar. A replay asks for what it repeats, running text goes on from where the prompt's own queries stopped.
//
//   sum[g, t] += weight * tokens / observers(t) * own[g, t]         of squares; observers(t) = max(1, tokens - t - nearest)
//
//     s = kvtrim::add_pass(scores, own, 32, 2);                     // of each layer: all queries of a replay, all of the prompt
//     s = kvtrim::layer_replay().plan(std::span<const kvtrim::replay_scores>(all), request, plans, memory);
//
// With a weight of 2 both count about alike on a real model, where it was chosen. An own pass shows late rows to few queries: its
// sums are scaled to as many as a replay of the prompt has, one for each token.
// Source: kvtrim's own; docs/tried.md has what lost against it. Cost: O(rows).

#include <kvtrim/score/replay_scores.hpp>

namespace KVTRIM_NAMESPACE {

/// Adds what another pass made of the same rows: the larger maximum, or the sum of squares and `weight` times those of `other`.
/// own_nearest: if not negative, `other` has the whole prompt's own pass with this as its `nearest`, in tokens
/// (replay_scores::add_own), and neither cache was cut; -1: another replay, whose rows were seen alike. Returns what validate()
/// of either says, or invalid_parameter for another loss, other rows, or a weight that is negative or not finite, with nothing
/// changed.
[[nodiscard]] inline status add_pass(replay_scores& to, const replay_scores& other, index_t own_nearest = -1,
                                     float weight = 1) {
    for (const status s : {to.validity_, other.validity_}) {
        if (!s.ok()) { return s; }
    }
    if (other.loss_ != to.loss_ || other.offsets_ != to.offsets_) {
        return {errc::invalid_parameter, "add_pass: the passes must have the same loss and the same rows"};
    }
    if (!(weight >= 0 && weight <= std::numeric_limits<float>::max())) {
        return {errc::invalid_parameter, "add_pass: the weight must be finite and not negative"};
    }
    for (index_t g = 0; g < to.kv_heads(); ++g) {
        const index_t tokens = to.tokens(g), begin = to.offsets_[static_cast<std::size_t>(g)];
        for (index_t t = 0; t < tokens; ++t) {
            float& sum = to.scores_[static_cast<std::size_t>(begin + t)];
            const float more = other.scores_[static_cast<std::size_t>(begin + t)];
            if (to.loss_ != token_loss::output_square_sum) {
                sum = std::max(sum, more);
                continue;
            }
            const index_t observers =
                own_nearest < 0 ? tokens : std::max<index_t>(1, tokens - t - own_nearest);
            sum += weight * more * (static_cast<float>(tokens) / static_cast<float>(observers));
        }
    }
    return {};
}

} // namespace KVTRIM_NAMESPACE
