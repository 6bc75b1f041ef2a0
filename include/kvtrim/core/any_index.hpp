// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Whether any element of a list is a wrong one. It makes the checking of long tables, plans and saved states cheap: the list is
// read in runs of fixed length without a branch inside, of which compilers make vectors at -O2 too.
//
// Cost: one pass, which ends with the first run that has one.

#include <kvtrim/core/region.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

namespace KVTRIM_NAMESPACE {

/// Whether holds(i) is true of an index i below `count`.
template <class Holds>
[[nodiscard]] constexpr bool any_index(std::size_t count, Holds&& holds) {
    constexpr std::size_t group = 64;
    std::size_t i = 0;
    for (; i + group <= count; i += group) {
        std::uint32_t found = 0;
        for (std::size_t j = 0; j < group; ++j) { found |= holds(i + j) ? 1u : 0u; }
        if (found != 0) { return true; }
    }
    for (; i < count; ++i) {
        if (holds(i)) { return true; }
    }
    return false;
}

/// Whether holds(x) is true of an element x of a short list. (std::any_of unrolls its loop, four calls deep.)
template <class List, class Holds>
[[nodiscard]] constexpr bool any_element(const List& list, Holds&& holds) {
    for (const auto& x : list) {
        if (holds(x)) { return true; }
    }
    return false;
}

/// Whether an entry of a table lies outside [0, size); any does where size is not positive.
[[nodiscard]] constexpr bool any_outside(std::span<const std::int32_t> table, std::int64_t size) {
    // At most 2^31, which negative entries exceed.
    const auto most = static_cast<std::uint32_t>(std::clamp<std::int64_t>(size, 0, std::int64_t{1} << 31));
    return any_index(table.size(),
                     [&](std::size_t i) { return static_cast<std::uint32_t>(table[i]) >= most; });
}

} // namespace KVTRIM_NAMESPACE
