// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The k highest of one row or of many rows, exactly, in linear time and with a deterministic tie rule.
//
// Order: higher score first, then the lower flat index (row by row); -0 equals +0; NaN ranks below -infinity.
// Method: floats become integers of the same order; three passes of a radix histogram (11 + 11 + 10 bits) find
// the k-th of them. The result is a cut, not a list: every row can be walked in ascending order against it.
// Cost: three reads of the scores, no copy; 8 KiB of histogram on the stack.

#include <kvtrim/base/token_scores.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>

namespace kvtrim {

// An integer with the order of the scores; 0 for NaN.
[[nodiscard]] constexpr std::uint32_t ordered_bits(float score) {
    const auto bits = std::bit_cast<std::uint32_t>(score);
    if ((bits & 0x7fffffffu) > 0x7f800000u) { return 0; }
    if ((bits & 0x7fffffffu) == 0) { return 0x80000000u; }
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// The border of a selection: scores above `bits` are in; of those equal, the first `ties` by flat index.
struct top_k_cut {
    std::uint32_t bits = 0;
    index_t ties = 0;
};

// The cut behind the k highest scores of the rows r for which use_row(r). Requires 0 <= k <= their length.
template <class UseRow>
[[nodiscard]] top_k_cut find_top_k(const score_rows& scores, index_t k, UseRow&& use_row) {
    index_t length = 0;
    for (index_t r = 0; r < scores.rows(); ++r) { length += use_row(r) ? scores.length(r) : 0; }
    KVTRIM_EXPECTS(0 <= k && k <= length, "find_top_k: k must be between 0 and the number of scores");
    if (k == 0) { return {0xffffffffu, 0}; } // no float has these bits
    constexpr std::array<int, 3> shifts{21, 10, 0};
    constexpr std::array<std::uint32_t, 3> digit_masks{0x7ffu, 0x7ffu, 0x3ffu};
    std::array<index_t, 2048> histogram;
    std::uint32_t prefix = 0;
    std::uint32_t prefix_mask = 0;
    for (std::size_t pass = 0; pass < 3; ++pass) {
        histogram.fill(0);
        for (index_t r = 0; r < scores.rows(); ++r) {
            if (!use_row(r)) { continue; }
            for (const float score : scores.row(r)) {
                const std::uint32_t bits = ordered_bits(score);
                if ((bits & prefix_mask) == prefix) {
                    ++histogram[(bits >> shifts[pass]) & digit_masks[pass]];
                }
            }
        }
        std::uint32_t digit = digit_masks[pass];
        while (histogram[digit] < k) { k -= histogram[digit--]; }
        prefix |= digit << shifts[pass];
        prefix_mask |= digit_masks[pass] << shifts[pass];
    }
    return {prefix, k};
}

[[nodiscard]] inline top_k_cut find_top_k(const score_rows& scores, index_t k) {
    return find_top_k(scores, k, [](index_t) { return true; });
}

// The cut behind the k highest scores of one row.
[[nodiscard]] inline top_k_cut find_top_k(std::span<float> row, index_t k) {
    const std::array<index_t, 2> offsets{0, static_cast<index_t>(row.size())};
    return find_top_k(score_rows{offsets, row}, k);
}

// Calls fn(c) for each selected column c of a row, ascending. Uses up cut.ties, so that a cut over many
// rows is passed from row to row.
template <class Fn>
void for_each_above(std::span<const float> row, top_k_cut& cut, Fn&& fn) {
    for (std::size_t c = 0; c < row.size(); ++c) {
        const std::uint32_t bits = ordered_bits(row[c]);
        if (bits < cut.bits || (bits == cut.bits && cut.ties == 0)) { continue; }
        cut.ties -= bits == cut.bits ? 1 : 0;
        fn(static_cast<index_t>(c));
    }
}

// How many columns of a row a cut selects; uses up cut.ties.
[[nodiscard]] inline index_t count_above(std::span<const float> row, top_k_cut& cut) {
    index_t above = 0;
    index_t equal = 0;
    for (const float score : row) {
        const std::uint32_t bits = ordered_bits(score);
        above += bits > cut.bits ? 1 : 0;
        equal += bits == cut.bits ? 1 : 0;
    }
    equal = std::min(equal, cut.ties);
    cut.ties -= equal;
    return above + equal;
}

} // namespace kvtrim
