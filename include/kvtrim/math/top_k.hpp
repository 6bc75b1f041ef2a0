// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The k highest of one row or of many rows, exactly, in linear time and with a deterministic tie rule.
//
// Order: higher score first, then the lower flat index (row by row); -0 equals +0; NaN ranks below -infinity
// (kernels/ordered_bits.hpp).
// Method: floats become integers of the same order; three passes of a radix histogram (11 + 11 + 10 bits) find
// the k-th of them. The result is a cut, not a list: every row can be walked in ascending order against it.
// Cost: three reads of the scores, no copy; 32 KiB of histogram on the stack.

#include <kvtrim/base/token_scores.hpp>
#include <kvtrim/kernels/ordered_bits.hpp>

#include <algorithm>

namespace kvtrim {

// The cut behind the k highest scores of the rows r for which use_row(r). Requires 0 <= k <= their length.
template <class UseRow>
[[nodiscard]] top_k_cut find_top_k(const score_rows& scores, index_t k, UseRow&& use_row) {
    index_t length = 0;
    for (index_t r = 0; r < scores.rows(); ++r) { length += use_row(r) ? scores.length(r) : 0; }
    KVTRIM_EXPECTS(0 <= k && k <= length, "find_top_k: k must be between 0 and the number of scores");
    if (k == 0) { return {0xffffffffu, 0}; } // no float has these bits
    constexpr std::array<int, 3> shifts{21, 10, 0};
    constexpr std::array<std::uint32_t, 3> digit_masks{0x7ffu, 0x7ffu, 0x3ffu};
    std::uint32_t prefix = 0;
    std::uint32_t prefix_mask = 0;
    for (std::size_t pass = 0; pass < 3; ++pass) {
        kernels::digit_histogram histogram;
        for (index_t r = 0; r < scores.rows(); ++r) {
            if (!use_row(r)) { continue; }
            kernels::count_digits(scores.row(r), {shifts[pass], digit_masks[pass], prefix, prefix_mask},
                                  histogram);
        }
        std::uint32_t digit = digit_masks[pass];
        while (histogram.count(digit) < k) { k -= histogram.count(digit--); }
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
    std::array<std::int32_t, 256> found;
    for (std::size_t first = 0; first < row.size(); first += found.size()) {
        const auto part = row.subspan(first, std::min(found.size(), row.size() - first));
        const auto* const end = kernels::write_above(part, cut, 0, found.data());
        for (const std::int32_t* c = found.data(); c != end; ++c) { fn(static_cast<index_t>(first) + *c); }
    }
}

// How many columns of a row a cut selects; uses up cut.ties.
[[nodiscard]] inline index_t count_above(std::span<const float> row, top_k_cut& cut) {
    const kernels::above_and_equal n = kernels::compare(row, cut.bits);
    const index_t taken = std::min(n.equal, cut.ties);
    cut.ties -= taken;
    return n.above + taken;
}

} // namespace kvtrim
