// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// How many tokens each layer keeps, from the number of layers alone (pyramid) or from one number per layer (preference).
//
//   pyramid      b = kept - window, high = min(2 b - b / beta, tokens - window), low = 2 b - high
//                budgets[l] = window + high - l * (high - low) / (layers - 1)       early layers keep more
//   preference   budgets[l] = window + share of the total in proportion to preference[l], at most the layer's length
//
// Both sum exactly to layers * kept; what a layer cannot use goes to the others. A prompt within the budget is kept whole,
// also one shorter than the window: every layer gets all of its tokens. With floor_ratio f every layer has f of an
// even share first (or all of a shorter layer), and the rule deals out the rest. A budget is per KV head and counts the
// window, as eviction_request does: use it as per_head(budgets[l]) in the layer's own request.
//
// Source: PyramidKV, arXiv:2406.02069; FFY0/AdaKV@efe4e2e snapkv_utils.py, Zefan-Cai/KVCache-Factory@c97f9d7
// pyramidkv_utils.py, kvpress@8bb29b9 pyramidkv_press.py. CAKE, arXiv:2503.12491; FFY0/DefensiveKV@9251b95
// cake_global_press.py.
// Departures: the references floor the step (totals up to twice too large), keep the first prompt's budgets for all
// later ones, divide by zero with one layer, turn the pyramid off in ordinary settings (kvpress), or lose units above
// the cap (CAKE). pyramid_schedule and preference_rule have their forms, to reproduce published runs.
// Cost: O(layers log layers).

#include <kvtrim/allocate/round_to_total.hpp>
#include <kvtrim/cache/check_outputs.hpp>
#include <kvtrim/core/eviction_request.hpp>

#include <numeric>

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

/// The forms of CAKE's budgets.
enum class preference_rule : std::uint8_t {
    exact,   ///< proportional shares by water-filling under the caps, largest remainder
    authors, ///< truncated shares, one pass that hands out what exceeds the cap, equally
};

/// CAKE: budgets in proportion to one number per layer.
struct preference {
    preference_rule rule = preference_rule::exact; ///< authors: to reproduce published runs
    double floor_ratio = 0; ///< share of the total that is dealt out evenly, in [0, 1]; exact rule only

    /// Returns ratio_out_of_range unless floor_ratio lies in [0, 1].
    [[nodiscard]] status validate() const {
        if (floor_ratio >= 0 && floor_ratio <= 1) { return {}; }
        return {errc::ratio_out_of_range, "preference: floor_ratio must lie in [0, 1]"};
    }

    /// Bytes of workspace for allocate().
    [[nodiscard]] static index_t workspace_bytes(index_t layers) {
        workspace counting = workspace::counting();
        static_cast<void>(counting.take<double>(layers));
        static_cast<void>(counting.take<index_t>(layers)); // of round_to_total
        return counting.needed_bytes();
    }

    /// Deals `total` tokens out over layers that can take caps [layers] each; a total above the caps is all of them. A
    /// preference that is not a positive finite number counts as 0; if all are 0 the layers are equal.
    /// Returns invalid_parameter (sizes that differ, negative numbers), index_overflow (caps of more than 2^53 tokens,
    /// needed: tokens), ratio_out_of_range, views_overlap or workspace_too_small, with budgets unchanged.
    [[nodiscard]] status allocate(std::span<const double> preferences, std::span<const index_t> caps,
                                  index_t total, std::span<index_t> budgets, workspace& scratch) const {
        if (preferences.size() != budgets.size() || caps.size() != budgets.size()) {
            return {errc::invalid_parameter, "preference: sizes must agree", std::ssize(budgets)};
        }
        index_t room = 0;
        for (const index_t cap : caps) {
            if (cap < 0) { return {errc::invalid_parameter, "preference: a cap must not be negative"}; }
            room = saturated_sum(room, cap);
        }
        if (total < 0) { return {errc::invalid_parameter, "preference: the total must not be negative"}; }
        if (room > index_t{1} << 53) {
            return {errc::index_overflow, "preference: at most 2^53 tokens are dealt out exactly", room};
        }
        total = std::min(total, room);
        if (const status s = validate(); !s.ok()) { return s; }
        if (const status s = check_outputs(std::array{bytes_of(budgets)}, preferences, caps); !s.ok()) {
            return s;
        }
        const workspace::frame frame(scratch);
        const auto ideal = scratch.take<double>(std::ssize(budgets));
        if (!scratch.fits()) { return scratch.too_small(); }
        if (rule == preference_rule::authors) {
            as_authors(preferences, caps, total, budgets);
            return {};
        }
        fill(preferences, caps, total, ideal);
        return round_to_total(ideal, caps, total, budgets, scratch);
    }

  private:
    [[nodiscard]] static double weight(double preference) {
        return preference > 0 && std::isfinite(preference) ? preference : 0;
    }

    // Layers whose share exceeds their cap are fixed at it; the others share the rest, until none exceeds.
    void fill(std::span<const double> preferences, std::span<const index_t> caps, index_t total,
              std::span<double> ideal) const {
        constexpr double open = -1;
        std::fill(ideal.begin(), ideal.end(), open);
        const double even = floor_ratio * static_cast<double>(total) / static_cast<double>(ideal.size());
        const auto cap = [&](std::size_t l) { return static_cast<double>(caps[l]); };
        const auto floor = [&](std::size_t l) { return std::min(even, cap(l)); };
        // Sums of weights that are at most 1 are finite.
        double largest = 0;
        for (const double p : preferences) { largest = std::max(largest, weight(p)); }
        const auto relative = [&](std::size_t l) {
            return largest > 0 ? weight(preferences[l]) / largest : 0;
        };
        auto remaining = static_cast<double>(total);
        for (std::size_t l = 0; l < ideal.size(); ++l) { remaining -= floor(l); }
        for (bool settled = false; !settled;) {
            settled = true;
            double weights = 0;
            double open_layers = 0;
            for (std::size_t l = 0; l < ideal.size(); ++l) {
                weights += ideal[l] == open ? relative(l) : 0;
                open_layers += ideal[l] == open ? 1 : 0;
            }
            const auto share = [&](std::size_t l) {
                return floor(l) + remaining * (weights > 0 ? relative(l) / weights : 1 / open_layers);
            };
            double fixed = 0; // beyond the floors
            for (std::size_t l = 0; l < ideal.size(); ++l) {
                if (ideal[l] != open || share(l) <= cap(l)) { continue; }
                ideal[l] = cap(l);
                fixed += cap(l) - floor(l);
                settled = false;
            }
            if (settled) {
                for (std::size_t l = 0; l < ideal.size(); ++l) {
                    if (ideal[l] == open) { ideal[l] = share(l); }
                }
            }
            remaining -= fixed;
        }
    }

    static void as_authors(std::span<const double> preferences, std::span<const index_t> caps, index_t total,
                           std::span<index_t> budgets) {
        double sum = 0;
        for (const double p : preferences) { sum += weight(p); }
        const auto share = [&](std::size_t l) {
            return sum > 0 ? weight(preferences[l]) / sum : 1 / static_cast<double>(budgets.size());
        };
        index_t excess = 0;
        index_t below = 0;
        for (std::size_t l = 0; l < budgets.size(); ++l) {
            budgets[l] = static_cast<index_t>(share(l) * static_cast<double>(total));
            excess += std::max<index_t>(0, budgets[l] - caps[l]);
            budgets[l] = std::min(budgets[l], caps[l]);
            below += budgets[l] < caps[l] ? 1 : 0;
        }
        spread(budgets, excess, below, [&](std::size_t l) { return budgets[l] < caps[l]; });
        index_t missing = total - std::accumulate(budgets.begin(), budgets.end(), index_t{0});
        const bool takes = missing < 0;
        const auto able = [&](std::size_t l) { return takes ? budgets[l] > 1 : budgets[l] < caps[l]; };
        index_t count = 0;
        for (std::size_t l = 0; l < budgets.size(); ++l) { count += able(l) ? 1 : 0; }
        spread(budgets, missing, count, able);
        for (std::size_t l = 0; l < budgets.size(); ++l) { budgets[l] = std::min(budgets[l], caps[l]); }
    }

    // Hands `units` out to the layers that able() names: the quotient to each, the remainder one by one to the first.
    template <class Able>
    static void spread(std::span<index_t> budgets, index_t units, index_t layers, Able&& able) {
        if (layers == 0) { return; }
        const index_t sign = units < 0 ? -1 : 1;
        const index_t each = units / layers;
        index_t remainder = std::abs(units % layers);
        for (std::size_t l = 0; l < budgets.size(); ++l) {
            if (!able(l)) { continue; }
            budgets[l] += each + (remainder > 0 ? sign : 0);
            remainder -= remainder > 0 ? 1 : 0;
        }
    }
};

} // namespace KVTRIM_NAMESPACE
