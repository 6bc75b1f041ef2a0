// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Sums and products of counts that stop at the largest and the smallest index_t instead of wrapping: what a request, a table or
// an option says can be any number, and "everything" is written as the largest one.
//
//   saturated_sum(a, b), saturated_product(a, b)   exact where index_t holds the result

#include <kvtrim/core/status.hpp>

#include <limits>

namespace kvtrim {

[[nodiscard]] constexpr index_t saturated_sum(index_t a, index_t b) {
    constexpr index_t most = std::numeric_limits<index_t>::max();
    constexpr index_t least = std::numeric_limits<index_t>::min();
    if (b > 0 && a > most - b) { return most; }
    if (b < 0 && a < least - b) { return least; }
    return a + b;
}

[[nodiscard]] constexpr index_t saturated_product(index_t a, index_t b) {
    constexpr index_t most = std::numeric_limits<index_t>::max();
    constexpr index_t least = std::numeric_limits<index_t>::min();
    if (a == 0 || b == 0) { return 0; }
    if ((a < 0) == (b < 0)) { return (a > 0 ? a > most / b : a < most / b) ? most : a * b; }
    return (a > 0 ? b < least / a : a < least / b) ? least : a * b;
}

} // namespace kvtrim
