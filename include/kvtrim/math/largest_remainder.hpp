// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Whole numbers near given shares whose sum is exactly a total: the largest remainder method, with caps.
//
//   out[i] = floor(ideal[i]), then the missing units one by one to the largest fractional parts
//
// Ties go to the lower index; shares within 1e-9 of a whole number count as whole, fractions are compared to
// nine digits, so that rounding noise in a share does not decide. A row at its cap is passed over.
// Cost: O(rows log rows). Workspace: one index per row.

#include <kvtrim/base/workspace.hpp>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>

namespace kvtrim {

// Requires sizes that agree, ideal >= 0 with floors that sum to at most `total`, and caps that sum to at least it.
// Returns errc::workspace_too_small with out unchanged.
[[nodiscard]] inline status round_to_total(std::span<const double> ideal, std::span<const index_t> caps,
                                           index_t total, std::span<index_t> out, workspace& scratch) {
    if (ideal.size() != caps.size() || ideal.size() != out.size()) {
        return {errc::invalid_parameter, "round_to_total: sizes must agree", std::ssize(ideal)};
    }
    if (std::accumulate(caps.begin(), caps.end(), index_t{0}) < total) {
        return {errc::invalid_parameter, "round_to_total: the caps are below the total"};
    }
    const workspace::frame frame(scratch);
    const auto order = scratch.take<index_t>(static_cast<index_t>(ideal.size()));
    if (!scratch.fits()) { return scratch.too_small(); }
    const auto whole = [&](std::size_t i) { return std::floor(ideal[i] + 1e-9); };
    const auto fraction = [&](index_t i) {
        const auto row = static_cast<std::size_t>(i);
        return std::round((ideal[row] - whole(row)) * 1e9);
    };
    index_t missing = total;
    for (std::size_t i = 0; i < ideal.size(); ++i) {
        out[i] = std::min(caps[i], static_cast<index_t>(whole(i)));
        missing -= out[i];
        order[i] = static_cast<index_t>(i);
    }
    std::sort(order.begin(), order.end(), [&](index_t a, index_t b) {
        return fraction(a) > fraction(b) || (fraction(a) == fraction(b) && a < b);
    });
    while (missing > 0) {
        for (const index_t i : order) {
            const auto row = static_cast<std::size_t>(i);
            if (missing == 0) { break; }
            if (out[row] == caps[row]) { continue; }
            ++out[row];
            --missing;
        }
    }
    return {};
}

} // namespace kvtrim
