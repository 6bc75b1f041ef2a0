// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// LagKV as its formulas say.

#include "oracle/reference.hpp"

#include <cmath>

namespace oracle {

// Unbiased deviation over the channels of each row of a partition, in units of the next partition's extremes.
inline row lag_deviations(const matrix& rows, std::size_t first, std::size_t lag) {
    row result;
    for (std::size_t t = first; t < first + lag; ++t) {
        row z;
        for (std::size_t c = 0; c < rows[t].size(); ++c) {
            double low = rows[first + lag][c];
            double high = low;
            for (std::size_t n = first + lag; n < first + 2 * lag; ++n) {
                low = std::min(low, rows[n][c]);
                high = std::max(high, rows[n][c]);
            }
            z.push_back(high > low ? (rows[t][c] - low) / (high - low) : 0.0);
        }
        const double mean = z.empty() ? 0.0 : sum(z) / static_cast<double>(z.size());
        double squares = 0;
        for (const double x : z) { squares += (x - mean) * (x - mean); }
        result.push_back(z.size() < 2 ? 0.0 : std::sqrt(squares / static_cast<double>(z.size() - 1)));
    }
    return result;
}

// Scores of the rows from `begin` to `end`; what always stays counts 1 and its rank by age among its like.
inline row lag_scores(const matrix& keys, const matrix& values, std::size_t begin, std::size_t end,
                      std::size_t lag, bool cross_scoring) {
    row scores;
    std::size_t t = begin;
    for (; t + 2 * lag <= end; t += lag) {
        const row k = softmax(lag_deviations(keys, t, lag));
        const row v = softmax(lag_deviations(values, t, lag));
        row mean;
        for (std::size_t i = 0; i < lag; ++i) { mean.push_back((k[i] + v[i]) / 2); }
        for (std::size_t i = 0; i < lag; ++i) {
            std::size_t below = 0;
            for (std::size_t j = 0; j < lag; ++j) {
                if (mean[j] < mean[i] || (mean[j] == mean[i] && j > i)) { ++below; }
            }
            scores.push_back(cross_scoring ? mean[i] : static_cast<double>(below) / static_cast<double>(lag));
        }
    }
    const std::size_t recent = end - t;
    for (std::size_t i = 1; i <= recent; ++i) {
        scores.push_back(1 + static_cast<double>(i) / static_cast<double>(recent));
    }
    return scores;
}

} // namespace oracle
