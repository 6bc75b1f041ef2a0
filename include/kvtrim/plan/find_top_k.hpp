// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The k highest of one row or of many rows, exactly, in linear time and with a deterministic tie rule.
//
// Order: higher score first, then the lower flat index (row by row); -0 equals +0; NaN ranks below -infinity
// (kernels/selection_kernels.hpp).
// Method: floats become integers of the same order. A histogram of 2048 buckets over a range of them finds the bucket of
// the k-th, which is the next range, until a bucket is one integer. The first range is where a sample of one score in 128
// says that the k-th is, with a wide margin; where it is not, the search begins again with all integers. The result is
// exact, and it is a cut, not a list: every row can be walked in ascending order against it.
// Cost: two reads of the scores in general, three for short rows, four at most; no copy; 40 KiB on the stack.

#include <kvtrim/core/math.hpp>
#include <kvtrim/kernels/selection_kernels.hpp>
#include <kvtrim/plan/token_scores.hpp>

#include <algorithm>

namespace KVTRIM_NAMESPACE {

namespace detail {

// list [rank] = the element of that rank in descending order, and those before it none lower: quickselect. (std::nth_element
// is many functions; of 2048 elements the worst order costs 2 million steps here.)
inline void select_descending(std::span<std::uint32_t> list, index_t rank) {
    std::uint32_t* const x = list.data();
    for (index_t first = 0, last = std::ssize(list) - 1; first < last;) {
        const std::uint32_t pivot = x[first + (last - first) / 2];
        index_t i = first, j = last;
        while (i <= j) {
            while (x[i] > pivot) { ++i; }
            while (x[j] < pivot) { --j; }
            if (i <= j) { std::swap(x[i++], x[j--]); }
        }
        if (j < rank && rank < i) { return; }
        if (rank <= j) {
            last = j;
        } else {
            first = i;
        }
    }
}

// Where the k-th highest of `length` scores is likely to be.
template <class UseRow>
[[nodiscard]] kernels::key_range likely_range(const score_rows& scores, index_t k, index_t length,
                                              UseRow&& use_row) {
    constexpr index_t spacing = 128, least = 128, most = 2048;
    std::array<std::uint32_t, most> sample;
    const index_t step = std::max(spacing, length / most + 1);
    if (length / step < least) { return {}; }
    std::size_t count = 0;
    index_t next = 0; // within the row
    for (index_t r = 0; r < scores.rows(); ++r) {
        if (!use_row(r)) { continue; }
        const auto row = scores.row(r);
        for (; next < scores.length(r); next += step) {
            sample[count++] = ordered_bits(row[static_cast<std::size_t>(next)]);
        }
        next -= scores.length(r);
    }
    if (count == 0) { return {}; }
    const double share = static_cast<double>(k) / static_cast<double>(length);
    const double rank = share * static_cast<double>(count);
    const double margin = 2 + 3 * detail::math::sqrt(rank * (1 - share)); // three standard deviations
    kernels::key_range range;
    auto low = static_cast<index_t>(count);
    if (rank + margin < static_cast<double>(count)) {
        low = static_cast<index_t>(rank + margin);
        select_descending({sample.data(), count}, low);
        range.low = sample[static_cast<std::size_t>(low)];
    }
    if (rank > margin) {
        const auto high = static_cast<index_t>(rank - margin);
        select_descending({sample.data(), static_cast<std::size_t>(low)}, high);
        range.high = sample[static_cast<std::size_t>(high)];
    }
    return range;
}

} // namespace detail

/// The cut below the k highest scores of the rows r for which use_row(r) is true. k below 0 counts as 0, k beyond their
/// length as all of them.
template <class UseRow>
[[nodiscard]] top_k_cut find_top_k(const score_rows& scores, index_t k, UseRow&& use_row) {
    index_t length = 0;
    for (index_t r = 0; r < scores.rows(); ++r) { length += use_row(r) ? scores.length(r) : 0; }
    k = std::clamp<index_t>(k, 0, length);
    if (k == 0) { return {0xffffffffu, 0}; } // no float has these bits
    kernels::key_range range = detail::likely_range(scores, k, length, use_row);
    for (;;) {
        kernels::key_histogram histogram;
        for (index_t r = 0; r < scores.rows(); ++r) {
            if (use_row(r)) { kernels::count_keys(scores.row(r), range, histogram); }
        }
        index_t rank = k - histogram.above;
        std::uint32_t bucket = range.last_bucket();
        while (rank > histogram.count(bucket) && bucket > 0) { rank -= histogram.count(bucket--); }
        const bool found = rank > 0 && rank <= histogram.count(bucket);
        if (found && range.shift() == 0) { return {range.low + bucket, rank}; }
        range = found ? range.bucket(bucket) : kernels::key_range{};
    }
}

/// The cut below the k highest scores of all rows.
[[nodiscard]] inline top_k_cut find_top_k(const score_rows& scores, index_t k) {
    return find_top_k(scores, k, [](index_t) { return true; });
}

/// The cut below the k highest scores of one row.
[[nodiscard]] inline top_k_cut find_top_k(std::span<float> row, index_t k) {
    const std::array<index_t, 2> offsets{0, static_cast<index_t>(row.size())};
    return find_top_k(score_rows{offsets, row}, k);
}

/// The same if the cut of another row may be this row's too: one read of the row if it is.
[[nodiscard]] inline top_k_cut find_top_k(std::span<float> row, index_t k, std::uint32_t likely_bits) {
    const kernels::above_and_equal n = kernels::compare(row, likely_bits);
    if (n.above <= k && k <= n.above + n.equal) { return {likely_bits, k - n.above}; }
    return find_top_k(row, k);
}

/// Calls fn(c) for each selected column c of a row, ascending. Uses up cut.ties, so that a cut over many
/// rows is passed from row to row.
template <class Fn>
void for_each_above(std::span<const float> row, top_k_cut& cut, Fn&& fn) {
    std::array<std::int32_t, 256> found;
    for (std::size_t first = 0; first < row.size(); first += found.size()) {
        const auto part = row.subspan(first, std::min(found.size(), row.size() - first));
        const auto* const end = kernels::write_above(part, cut, 0, found.data());
        for (const std::int32_t* c = found.data(); c != end; ++c) { fn(static_cast<index_t>(first) + *c); }
    }
}

/// How many columns of a row a cut selects. Uses up cut.ties.
[[nodiscard]] inline index_t count_above(std::span<const float> row, top_k_cut& cut) {
    const kernels::above_and_equal n = kernels::compare(row, cut.bits);
    const index_t taken = std::min(n.equal, cut.ties);
    cut.ties -= taken;
    return n.above + taken;
}

} // namespace KVTRIM_NAMESPACE
