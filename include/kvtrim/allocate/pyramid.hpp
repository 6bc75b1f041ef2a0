// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// How many tokens each layer keeps, from the number of layers alone.
//
//   b = kept - window, high = min(2 b - b / beta, tokens - window), low = 2 b - high
//   budgets[l] = window + high - l * (high - low) / (layers - 1)       early layers keep more
//
// The budgets sum exactly to layers * kept; what a layer cannot use goes to the others. A prompt within the budget is kept
// whole, also one shorter than the window: every layer gets all of its tokens. With floor_ratio f every layer has f of an even
// share first, and the rule deals out the rest. A budget is per KV head and counts the window, as eviction_request does: use it
// as per_head(budgets[l]) in the layer's own request. Budgets from one number per layer: allocate/preference.hpp.
//
// Source: PyramidKV, arXiv:2406.02069; FFY0/AdaKV@efe4e2e snapkv_utils.py, Zefan-Cai/KVCache-Factory@c97f9d7
// pyramidkv_utils.py, kvpress@8bb29b9 pyramidkv_press.py.
// Departures: the references floor the step (totals up to twice too large), keep the first prompt's budgets for all later ones,
// divide by zero with one layer, or turn the pyramid off in ordinary settings (kvpress). pyramid_schedule has their forms, to
// reproduce published runs.
// Cost: O(layers log layers).

#include <kvtrim/allocate/round_to_total.hpp>

#include <cmath>

namespace KVTRIM_NAMESPACE {

/// The published forms of the pyramid.
enum class pyramid_schedule : std::uint8_t {
    exact,           ///< sums to layers * kept
    adakv,           ///< floored integer step
    kvcache_factory, ///< the same, but everything below the capacity and flat budgets for short prompts
    kvpress,         ///< in doubles, with rounding to even; flat where low falls below the window
};

/// PyramidKV: budgets that fall linearly from the first layer to the last.
struct pyramid {
    double beta = 20; ///< steepness, at least 1; the last layer keeps about b / beta of the competing tokens
    pyramid_schedule schedule = pyramid_schedule::exact; ///< others: to reproduce published runs
    /// Share of the competing tokens that is dealt out evenly, in [0, 1]; exact schedule only.
    double floor_ratio = 0;

    /// Returns invalid_parameter unless beta is finite and at least 1, ratio_out_of_range unless floor_ratio lies in [0, 1].
    [[nodiscard]] status validate() const {
        if (!(beta >= 1 && std::isfinite(beta))) {
            return {errc::invalid_parameter, "pyramid: beta must be finite and at least 1"};
        }
        if (!(floor_ratio >= 0 && floor_ratio <= 1)) {
            return {errc::ratio_out_of_range, "pyramid: floor_ratio must lie in [0, 1]"};
        }
        return {};
    }

    /// Bytes of workspace for allocate().
    [[nodiscard]] static index_t workspace_bytes(index_t layers) {
        workspace counting = workspace::counting();
        static_cast<void>(counting.take<double>(layers));
        static_cast<void>(counting.take<index_t>(layers));
        static_cast<void>(counting.take<index_t>(layers)); // of round_to_total
        return counting.needed_bytes();
    }

    /// kept: tokens per KV head and layer on average, window included (whole but for kvpress' schedule, which computes
    /// with tokens * (1 - ratio) and may fall below the window). A window longer than the prompt counts as the whole prompt.
    /// Fills budgets [layers].
    /// Returns invalid_parameter, ratio_out_of_range, index_overflow (needed: tokens), budget_zero, budget_below_protection
    /// (needed: tokens) or workspace_too_small, with budgets unchanged.
    [[nodiscard]] status allocate(index_t tokens, index_t window, double kept, std::span<index_t> budgets,
                                  workspace& scratch) const {
        if (const status s = validate(); !s.ok()) { return s; }
        if (tokens < 0 || window < 0) {
            return {errc::invalid_parameter, "pyramid: tokens and window must not be negative"};
        }
        if (tokens > std::numeric_limits<std::int32_t>::max()) {
            return {errc::index_overflow, "a plan addresses at most 2^31 - 1 tokens per head", tokens};
        }
        if (!(kept >= 1)) { return {errc::budget_zero, "pyramid: the budget must be at least one token"}; }
        const bool is_short = window > tokens; // no candidates, so that there is nothing to deal out
        window = std::min(window, tokens);
        if (kept < static_cast<double>(window) && (is_short || schedule != pyramid_schedule::kvpress)) {
            return {errc::budget_below_protection, "pyramid: the window alone exceeds the budget", window};
        }
        if (is_short) {
            std::fill(budgets.begin(), budgets.end(), tokens);
            return {};
        }
        if (budgets.empty()) { return {}; }
        kept = std::min(kept, static_cast<double>(tokens) * 4 + 4);
        if (schedule == pyramid_schedule::kvpress) { return as_kvpress(tokens, window, kept, budgets); }
        const auto capacity = static_cast<index_t>(kept);
        if (schedule == pyramid_schedule::exact) {
            return exactly(tokens, window, capacity, budgets, scratch);
        }
        return stepped(tokens, window, capacity, budgets);
    }

  private:
    [[nodiscard]] status exactly(index_t tokens, index_t window, index_t capacity, std::span<index_t> budgets,
                                 workspace& scratch) const {
        const workspace::frame frame(scratch);
        const auto ideal = scratch.take<double>(std::ssize(budgets));
        const auto caps = scratch.take<index_t>(std::ssize(budgets));
        if (!scratch.fits()) { return scratch.too_small(); }
        const index_t most = tokens - window;
        const index_t base = std::min(capacity - window, most);
        const double floor = floor_ratio * static_cast<double>(base);
        const double b = static_cast<double>(base) - floor;
        const double high = std::min(2 * b - b / beta, static_cast<double>(most) - floor);
        const double low = 2 * b - high;
        const double steps = static_cast<double>(budgets.size()) - 1;
        for (std::size_t l = 0; l < budgets.size(); ++l) {
            ideal[l] = floor + (steps == 0 ? b : high - static_cast<double>(l) * (high - low) / steps);
            caps[l] = most;
        }
        const status s = round_to_total(ideal, caps, base * std::ssize(budgets), budgets, scratch);
        if (!s.ok()) { return s; }
        for (index_t& budget : budgets) { budget += window; }
        return {};
    }

    [[nodiscard]] status stepped(index_t tokens, index_t window, index_t capacity,
                                 std::span<index_t> budgets) const {
        const index_t base = capacity - window;
        const bool factory = schedule == pyramid_schedule::kvcache_factory;
        if (factory && tokens < capacity) {
            std::fill(budgets.begin(), budgets.end(), tokens);
            return {};
        }
        index_t low = base / static_cast<index_t>(std::min(beta, 0x1p40)); // beyond any base
        index_t high = 2 * base - low;
        if (high >= tokens - window) {
            high = tokens - window;
            low = 2 * base - high;
        }
        const bool flat = budgets.size() == 1 || (factory && tokens < 2 * base);
        const auto steps = static_cast<double>(budgets.size()) - 1;
        const index_t step =
            flat ? 0 : static_cast<index_t>(std::floor(static_cast<double>(high - low) / steps));
        for (std::size_t l = 0; l < budgets.size(); ++l) {
            budgets[l] = window + (flat ? base : high - static_cast<index_t>(l) * step);
        }
        return {};
    }

    [[nodiscard]] status as_kvpress(index_t tokens, index_t window, double kept,
                                    std::span<index_t> budgets) const {
        const auto n = static_cast<double>(tokens);
        const auto w = static_cast<double>(window);
        const double t = (w + kept) - w;
        double low = t / beta;
        double high = 2 * t - low;
        if (high >= n - w) {
            high = n - w;
            low = 2 * t - high;
        }
        const bool flat = budgets.size() == 1 || !(n >= high && high >= low && low >= w);
        const double steps = static_cast<double>(budgets.size()) - 1;
        for (std::size_t l = 0; l < budgets.size(); ++l) {
            const double budget = flat ? kept : high - static_cast<double>(l) * (high - low) / steps;
            budgets[l] = static_cast<index_t>(std::nearbyint(budget));
        }
        return {};
    }
};

} // namespace KVTRIM_NAMESPACE
