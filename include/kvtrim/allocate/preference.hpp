// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// How many tokens each layer keeps, from one number per layer.
//
//   budgets[l] = share of the total in proportion to preference[l], at most the layer's cap
//
// The budgets sum exactly to the total; what a layer cannot use goes to the others. With floor_ratio f every layer has f of an
// even share first (or all of a shorter layer), and the rule deals out the rest. Where caps are the candidates of a KV head and
// the total leaves the windows out, per_head(window + budgets[l]) is the layer's own budget. The preference that CAKE measures:
// score/layer_preference.hpp.
//
// Source: CAKE, arXiv:2503.12491; FFY0/DefensiveKV@9251b95 cake_global_press.py.
// Departures: the reference loses units above the cap. preference_rule has its form, to reproduce published runs.
// Cost: O(layers log layers).

#include <kvtrim/allocate/round_to_total.hpp>
#include <kvtrim/cache/check_outputs.hpp>
#include <kvtrim/core/saturated.hpp>

#include <cmath>
#include <numeric>

namespace KVTRIM_NAMESPACE {

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
