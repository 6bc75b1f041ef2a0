// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A loop over elements in blocks of one size that the compiler knows: at -O2 GCC turns a loop into vectors only where the
// number of its turns is known to be a multiple of them, and loses up to a factor of two where it is not.

#include <kvtrim/core/status.hpp>

#include <type_traits>

namespace kvtrim {

/// Calls f(first, count) for elements [first, first + count) of `elements`, ascending: count is a
/// std::integral_constant, 64, for all blocks but the last, where it is the index_t that is left.
template <class Fn>
void in_blocks(index_t elements, Fn&& f) {
    constexpr std::integral_constant<index_t, 64> block;
    index_t first = 0;
    for (; first + block <= elements; first += block) { f(first, block); }
    if (first < elements) { f(first, elements - first); }
}

} // namespace kvtrim
