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

#include <kvtrim/core/workspace.hpp>

#include <algorithm>
#include <cmath>
#include <span>

namespace KVTRIM_NAMESPACE {

/// Rounds `ideal` to whole numbers out, at most `caps`, that sum to `total`; all three have one length. Where the floors of
/// `ideal` sum to more than `total`, out are these floors, at most the caps.
/// Returns invalid_parameter for sizes that do not agree, a share that is negative, NaN or beyond 2^62, a negative cap, caps
/// that sum to less than `total`; errc::workspace_too_small; with out unchanged.
[[nodiscard]] inline status round_to_total(std::span<const double> ideal, std::span<const index_t> caps,
                                           index_t total, std::span<index_t> out, workspace& scratch) {
    if (ideal.size() != caps.size() || ideal.size() != out.size()) {
        return {errc::invalid_parameter, "round_to_total: sizes must agree", std::ssize(ideal)};
    }
    const auto impossible = [](double share) { return !(share >= 0 && share <= 0x1p62); };
    if (std::any_of(ideal.begin(), ideal.end(), impossible)) {
        return {errc::invalid_parameter, "round_to_total: a share must not be negative or NaN"};
    }
    index_t room = 0; // counted up to the total, which sums of caps may exceed by far
    for (const index_t cap : caps) {
        if (cap < 0) { return {errc::invalid_parameter, "round_to_total: a cap must not be negative"}; }
        room += std::min(cap, total - std::min(room, total));
    }
    if (room < total) { return {errc::invalid_parameter, "round_to_total: the caps are below the total"}; }
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
        missing = std::max<index_t>(-1, missing - out[i]); // below 0 nothing is missing
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

} // namespace KVTRIM_NAMESPACE
