// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The sum and the mean of the finite among a row of scores: one score that is not a number spoils no other.
//
// Numerics: double, in four sums so that the additions do not wait for each other; their order depends on the length alone.
// Cost: one pass.

#include <kvtrim/core/region.hpp>
#include <kvtrim/core/status.hpp>

#include <cmath>
#include <span>

namespace KVTRIM_NAMESPACE {

/// What the finite scores of a row add up to.
struct finite_sum {
    double sum = 0;    ///< of their terms
    index_t count = 0; ///< of them

    /// 0 without any.
    [[nodiscard]] double mean() const { return count == 0 ? 0.0 : sum / static_cast<double>(count); }
};

/// Sums term(score) over the finite scores of a row.
template <class Term>
[[nodiscard]] finite_sum sum_of_finite(std::span<const float> row, Term&& term) {
    constexpr std::size_t chains = 4;
    double sums[chains] = {};
    index_t left_out = 0;
    const auto add = [&](double& sum, float score) {
        if (std::isfinite(score)) {
            sum += term(static_cast<double>(score));
        } else {
            ++left_out;
        }
    };
    std::size_t i = 0;
    for (; i + chains <= row.size(); i += chains) {
        KVTRIM_UNROLL
        for (std::size_t chain = 0; chain < chains; ++chain) { add(sums[chain], row[i + chain]); }
    }
    for (; i < row.size(); ++i) { add(sums[0], row[i]); }
    return {(sums[0] + sums[1]) + (sums[2] + sums[3]), std::ssize(row) - left_out};
}

/// Sums the finite scores of a row.
[[nodiscard]] inline finite_sum sum_of_finite(std::span<const float> row) {
    return sum_of_finite(row, [](double score) { return score; });
}

} // namespace KVTRIM_NAMESPACE
