// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Score rows that make selection hard: many exact ties, NaN, infinities, negative values, rows of any length, rows
// far above the others. Every value is exact in float, so that the oracle and the library see the same numbers.

#include "support/random_layer.hpp"

#include <cmath>

namespace support {

enum class score_kind { distinct, tied, odd };

inline oracle::row random_row(random& r, index_t length, score_kind kind) {
    constexpr double nan = std::numeric_limits<double>::quiet_NaN();
    constexpr double infinity = std::numeric_limits<double>::infinity();
    const double level = std::exp2(static_cast<double>(r.between(-8, 3)));
    oracle::row scores;
    for (index_t c = 0; c < length; ++c) {
        if (kind == score_kind::distinct) {
            scores.push_back(static_cast<double>(static_cast<float>(level * r.uniform())));
        } else if (kind == score_kind::odd && r.chance(0.3)) {
            scores.push_back(r.one_of({nan, -nan, infinity, -infinity, -0.0, 0.0, -1.0}));
        } else {
            scores.push_back(level * static_cast<double>(r.between(0, 6)));
        }
    }
    return scores;
}

inline oracle::matrix random_scores(random& r, score_kind kind) {
    oracle::matrix rows;
    const bool equal_lengths = r.chance(0.5);
    const index_t length = r.between(1, 60);
    const index_t count = r.between(1, 9);
    for (index_t i = 0; i < count; ++i) {
        rows.push_back(random_row(r, equal_lengths ? length : r.between(0, 60), kind));
    }
    return rows;
}

inline std::size_t total_length(const oracle::matrix& rows) {
    std::size_t total = 0;
    for (const auto& row : rows) { total += row.size(); }
    return total;
}

} // namespace support
