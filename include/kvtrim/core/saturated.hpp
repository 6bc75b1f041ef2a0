// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Sums and products of counts that stop at the largest and the smallest index_t instead of overflowing: a number of a
// request, a table or an option may be any, and a budget of all tokens is written as the largest one.

#include <kvtrim/core/status.hpp>

#include <limits>

namespace KVTRIM_NAMESPACE {

/// a + b where index_t holds it, else the largest or the smallest index_t.
[[nodiscard]] constexpr index_t saturated_sum(index_t a, index_t b) {
    constexpr index_t most = std::numeric_limits<index_t>::max();
    constexpr index_t least = std::numeric_limits<index_t>::min();
    if (b > 0 && a > most - b) { return most; }
    if (b < 0 && a < least - b) { return least; }
    return a + b;
}

/// a * b where index_t holds it, else the largest or the smallest index_t.
[[nodiscard]] constexpr index_t saturated_product(index_t a, index_t b) {
    constexpr index_t most = std::numeric_limits<index_t>::max();
    constexpr index_t least = std::numeric_limits<index_t>::min();
    if (a == 0 || b == 0) { return 0; }
    if ((a < 0) == (b < 0)) { return (a > 0 ? a > most / b : a < most / b) ? most : a * b; }
    return (a > 0 ? b < least / a : a < least / b) ? least : a * b;
}

} // namespace KVTRIM_NAMESPACE
