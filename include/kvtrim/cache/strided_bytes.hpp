// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The bytes that the rows of a view occupy, and whether two views share any. That is decided exactly, not by address ranges,
// because keys and values may be interleaved in one buffer ([token][keys | values], pages of keys and values by turns).
//
//   element (i, j, k, l) is `bytes` bytes from first + i * strides[0] + j * strides[1] + k * strides[2] + l * strides[3]
//
// Two views share a byte if integers x within their extents solve  lo <= sum_i strides_i * x_i <= hi.  A stride that is no
// longer than the interval only widens it, which removes contiguous dimensions; equal strides of both views are one unknown;
// for the rest, from the largest stride down, only the few x within reach of what remains are tried.
// Cost: O(1) where both views have the same strides, as in all layouts of engines. Others are searched, for most_tries at
// most, and count as overlapping if that decides nothing: the caller then refuses, and no row is overwritten.

#include <kvtrim/core/any_index.hpp>
#include <kvtrim/core/status.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>

namespace KVTRIM_NAMESPACE {

/// The bytes of a view's elements, in up to four dimensions.
struct strided_bytes {
    const void* first = nullptr;                   ///< element (0, 0, 0, 0)
    std::array<index_t, 4> extents = {1, 1, 1, 1}; ///< of a cache: {1, heads, tokens, elements of a row}
    std::array<index_t, 4> strides = {};           ///< in bytes, any sign
    index_t bytes = 0;                             ///< of an element
    const void* table = nullptr;                   ///< the table that finds the rows; null: the strides do

    /// Whether there are no bytes.
    [[nodiscard]] constexpr bool empty() const {
        return bytes <= 0 || any_element(extents, [](index_t e) { return e <= 0; });
    }
    /// Returns invalid_parameter for strides that lead beyond what can be addressed.
    [[nodiscard]] status validate() const;
};

/// A stride or a length of `count` elements in bytes; what index_t cannot hold becomes the largest one, which validate()
/// refuses.
[[nodiscard]] KVTRIM_NOINLINE constexpr index_t to_bytes(index_t count, index_t element_bytes) {
    constexpr index_t most = std::numeric_limits<index_t>::max();
    const bool fits =
        element_bytes == 0 || (count <= most / element_bytes && count >= -(most / element_bytes));
    return fits ? count * element_bytes : most;
}

/// The bytes of a list that lies in one piece.
template <class T>
[[nodiscard]] constexpr strided_bytes bytes_of(std::span<T> list) {
    return {.first = list.data(), .bytes = static_cast<index_t>(list.size_bytes())};
}

namespace detail {

inline constexpr index_t most_tries = index_t{1} << 18;

// Bytes [begin, end) from a view's first byte to its last. Not `possible`: beyond what can be addressed.
struct byte_range {
    std::uintptr_t begin = 0;
    std::uintptr_t end = 0;
    bool possible = true;
};

[[nodiscard]] KVTRIM_NOINLINE inline byte_range range_of(const strided_bytes& v) {
    if (v.empty()) { return {}; }
    constexpr index_t most = std::numeric_limits<index_t>::max() / 16; // sums over two views do not overflow
    if (v.bytes > most) { return {.possible = false}; }
    index_t before = 0;
    index_t after = v.bytes;
    for (std::size_t i = 0; i < 4; ++i) {
        if (v.extents[i] == 1) { continue; }
        const index_t room = (most - std::max(before, after)) / (v.extents[i] - 1);
        if (v.strides[i] > room || v.strides[i] < -room) { return {.possible = false}; }
        (v.strides[i] < 0 ? before : after) += std::max(v.strides[i], -v.strides[i]) * (v.extents[i] - 1);
    }
    const auto first = reinterpret_cast<std::uintptr_t>(v.first);
    if (static_cast<std::uintptr_t>(before) > first ||
        static_cast<std::uintptr_t>(after) > std::numeric_limits<std::uintptr_t>::max() - first) {
        return {.possible = false};
    }
    return {first - static_cast<std::uintptr_t>(before), first + static_cast<std::uintptr_t>(after)};
}

// x in low ... high, times a step.
struct bounded_term {
    index_t step;
    index_t low;
    index_t high;
};

// Whether a sum of terms can lie in an interval.
class bounded_sum {
  public:
    // The sum must lie in [lo, hi].
    bounded_sum(index_t lo, index_t hi) : lo_(lo), hi_(hi) {}

    KVTRIM_NOINLINE void add(bounded_term t) {
        const bool varies = t.step != 0 && t.low != t.high;
        if (varies && t.step < 0) { t = {-t.step, -t.high, -t.low}; }
        const index_t least = t.low == 0 ? 0 : t.step * t.low;
        lo_ -= least;
        hi_ -= least;
        if (!varies) { return; }
        std::size_t at = count_++; // in the order of the steps
        for (; at > 0 && terms_[at - 1].step > t.step; --at) { terms_[at] = terms_[at - 1]; }
        terms_[at] = {t.step, 0, t.high - t.low};
    }

    [[nodiscard]] KVTRIM_NOINLINE bool has_solution() {
        std::size_t used = 0;
        for (std::size_t i = 0; i < count_; ++i) {
            const bounded_term t = terms_[i];
            if (t.step <= hi_ - lo_ + 1) { // the interval moved by steps leaves no gap: it only widens
                lo_ -= t.step * t.high;
            } else if (used > 0 && terms_[used - 1].step == t.step) {
                terms_[used - 1].high += t.high;
            } else {
                terms_[used++] = t;
            }
        }
        index_t reach = 0;
        index_t divisor = 0;
        for (std::size_t i = 0; i < used; ++i) {
            reach_[i] = reach;
            reach += terms_[i].step * terms_[i].high;
            divisor_[i] = divisor = std::gcd(divisor, terms_[i].step);
        }
        return search(used);
    }

  private:
    static constexpr index_t floor_div(index_t a, index_t b) { return a / b - (a % b < 0 ? 1 : 0); }

    // With the first `count` terms, from the largest step down. Depth first. An explicit stack instead of recursion: compilers
    // inline the recursion and the code grows.
    [[nodiscard]] bool search(std::size_t count) {
        struct level {
            index_t lo, hi;    // of the terms with smaller steps and this one
            index_t next, end; // x of this one that remain
        };
        std::array<level, 9> levels;
        const auto open = [&](std::size_t n, index_t lo, index_t hi) {
            levels[n] = {lo, hi, 0, 0};
            if (n == 0) { return lo <= 0 && hi >= 0; }
            const bounded_term& t = terms_[n - 1];
            if (floor_div(hi, divisor_[n - 1]) * divisor_[n - 1] < lo) { return false; }
            levels[n].next = std::max<index_t>(0, -floor_div(reach_[n - 1] - lo, t.step));
            levels[n].end = std::min(t.high, floor_div(hi, t.step)) + 1;
            return false;
        };
        std::size_t n = count;
        bool found = open(n, lo_, hi_);
        for (index_t tries = 1; !found && n <= count; ++tries) {
            level& at = levels[n];
            if (at.next >= at.end) {
                ++n;
                continue;
            }
            if (tries > most_tries) { return true; }
            const index_t moved = at.next++ * terms_[n - 1].step;
            --n;
            found = open(n, at.lo - moved, at.hi - moved);
        }
        return found;
    }

    index_t lo_;
    index_t hi_;
    std::size_t count_ = 0;
    std::array<bounded_term, 8> terms_;
    std::array<index_t, 8> reach_;   // of the terms with smaller steps
    std::array<index_t, 8> divisor_; // of the steps up to each
};

} // namespace detail

KVTRIM_NOINLINE inline status strided_bytes::validate() const {
    if (detail::range_of(*this).possible) { return {}; }
    return {errc::invalid_parameter, "strides of a view lead beyond what memory can be addressed"};
}

/// Whether two views, both valid, share a byte.
[[nodiscard]] KVTRIM_NOINLINE inline bool overlap(const strided_bytes& a, const strided_bytes& b) {
    const detail::byte_range in_a = detail::range_of(a);
    const detail::byte_range in_b = detail::range_of(b);
    if (in_a.end <= in_b.begin || in_b.end <= in_a.begin) { return false; } // also if one is empty
    const auto distance = static_cast<index_t>(reinterpret_cast<std::uintptr_t>(b.first) -
                                               reinterpret_cast<std::uintptr_t>(a.first));
    detail::bounded_sum sum(distance - (a.bytes - 1), distance + (b.bytes - 1));
    for (std::size_t i = 0; i < 4; ++i) { // of one element in a row the stride may be any number
        if (a.extents[i] > 1) { sum.add({a.strides[i], 0, a.extents[i] - 1}); }
        if (b.extents[i] > 1) { sum.add({-b.strides[i], 0, b.extents[i] - 1}); }
    }
    return sum.has_solution();
}

/// Whether two elements of a valid view share a byte: a stride of 0, heads nearer to each other than a row is long.
[[nodiscard]] KVTRIM_NOINLINE inline bool overlaps_itself(const strided_bytes& v) {
    if (v.empty()) { return false; }
    for (std::size_t first = 0; first < 4; ++first) { // the first index in which two elements differ
        if (v.extents[first] == 1) { continue; }
        detail::bounded_sum sum(-(v.bytes - 1), v.bytes - 1);
        sum.add({v.strides[first], 1, v.extents[first] - 1});
        for (std::size_t i = first + 1; i < 4; ++i) {
            sum.add({v.strides[i], -(v.extents[i] - 1), v.extents[i] - 1});
        }
        if (sum.has_solution()) { return true; }
    }
    return false;
}

/// Whether each row of `inner` lies within the row of `outer` with the same indices, so that it moves with that row. Both
/// valid.
[[nodiscard]] inline bool rows_contain(const strided_bytes& outer, const strided_bytes& inner) {
    if (outer.table != inner.table) { return false; }
    const detail::byte_range around_outer = detail::range_of(outer);
    const detail::byte_range around_inner = detail::range_of(inner);
    const bool possible = around_outer.begin <= around_inner.begin && around_inner.end <= around_outer.end;
    if (!possible || inner.empty()) { return false; }
    for (std::size_t i = 0; i < 3; ++i) {
        if (outer.extents[i] != inner.extents[i]) { return false; }
        if (outer.extents[i] > 1 && outer.strides[i] != inner.strides[i]) { return false; }
    }
    // A row of outer in ascending addresses: `elements` of `bytes` each, `step` apart; elements without gaps count as one.
    index_t elements = outer.extents[3];
    index_t step = elements > 1 ? outer.strides[3] : outer.bytes;
    index_t bytes = outer.bytes;
    auto offset = static_cast<index_t>(reinterpret_cast<std::uintptr_t>(inner.first) -
                                       reinterpret_cast<std::uintptr_t>(outer.first));
    if (step < 0) {
        offset -= step * (elements - 1);
        step = -step;
    }
    if (step == bytes) {
        bytes *= elements;
        step = bytes;
        elements = 1;
    }
    const bool one_element = elements == 1;
    if (step == 0) { return false; } // a row that overlaps itself
    if (!one_element && inner.extents[3] > 1 && inner.strides[3] % step != 0) { return false; }
    const auto inside = [&](index_t at) { // an element of inner in one of outer
        return at >= 0 && at / step < elements && at % step + inner.bytes <= bytes;
    };
    const index_t last = inner.extents[3] > 1 ? inner.strides[3] * (inner.extents[3] - 1) : 0;
    return inside(offset) && inside(offset + last);
}

} // namespace KVTRIM_NAMESPACE
