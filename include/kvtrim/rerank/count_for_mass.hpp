// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// How many of a row's highest scores it takes to sum to a given mass, in linear time.
//
// Method: the digits of the scores' ordered bits, highest first: each pass sums the scores by their next digit and finds the
// digit at which the mass is reached. Among equal scores the number is a division. Scores that are negative or NaN count as zero.
// Numerics: sums in double; the answer may differ from a sequential sum only where that lies within rounding of the mass.
// Cost: three reads of the row; 32 KiB of histogram on the stack.

#include <kvtrim/plan/find_top_k.hpp>

#include <cmath>

namespace KVTRIM_NAMESPACE {

/// The smallest count whose `count` highest scores sum to at least `mass`; 0 for mass <= 0 or NaN, the row's length
/// if the whole row holds less. One infinite score holds any mass, an infinite one included.
[[nodiscard]] inline index_t count_for_mass(std::span<const float> row, double mass) {
    if (!(mass > 0)) { return 0; }
    struct bucket {
        double sum;
        index_t count;
    };
    constexpr std::array<int, 3> shifts{21, 10, 0};
    constexpr std::array<std::uint32_t, 3> digit_masks{0x7ffu, 0x7ffu, 0x3ffu};
    std::array<bucket, 2048> buckets;
    std::uint32_t prefix = 0;
    std::uint32_t prefix_mask = 0;
    index_t above = 0;
    for (std::size_t pass = 0; pass < 3; ++pass) {
        buckets.fill({});
        for (const float score : row) {
            const std::uint32_t bits = ordered_bits(score);
            if ((bits & prefix_mask) != prefix) { continue; }
            bucket& b = buckets[(bits >> shifts[pass]) & digit_masks[pass]];
            b.sum += score > 0 ? static_cast<double>(score) : 0.0;
            ++b.count;
        }
        std::uint32_t digit = digit_masks[pass];
        while (buckets[digit].sum < mass) {
            if (digit == 0) { return static_cast<index_t>(row.size()); }
            mass -= buckets[digit].sum;
            above += buckets[digit--].count;
        }
        if (pass == 2) { // all scores of this bucket are equal
            const double score = buckets[digit].sum / static_cast<double>(buckets[digit].count);
            if (std::isinf(score)) { return above + 1; }
            const auto needed = static_cast<index_t>(std::ceil(mass / score));
            return above + std::clamp<index_t>(needed, 1, buckets[digit].count);
        }
        prefix |= digit << shifts[pass];
        prefix_mask |= digit_masks[pass] << shifts[pass];
    }
    return above; // not reached: one of the passes above returns
}

} // namespace KVTRIM_NAMESPACE
