// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Scores as integers of the same order, and the three passes over a row that exact selection needs.
//
//   order   higher score first; -0 equals +0; NaN ranks below -infinity
//
// Every target gives the same numbers. Cost of a pass: one read of the row.

#include <kvtrim/core/status.hpp>
#include <kvtrim/simd/choose.hpp>
#include <kvtrim/simd/simd.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <span>

namespace KVTRIM_NAMESPACE {

/// An integer with the order of the scores; 0 for NaN.
[[nodiscard]] constexpr std::uint32_t ordered_bits(float score) {
    const auto bits = std::bit_cast<std::uint32_t>(score);
    if ((bits & 0x7fffffffu) > 0x7f800000u) { return 0; }
    if ((bits & 0x7fffffffu) == 0) { return 0x80000000u; }
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

/// The border of a selection: scores above `bits` are selected; of those equal to it, the first `ties` by flat index.
struct top_k_cut {
    std::uint32_t bits = 0; ///< ordered_bits() of the lowest score selected
    index_t ties = 0;       ///< scores equal to it that are still to be selected
};

namespace kernels {

/// A range of the ordered bits, both ends included, in at most 2048 buckets of 2^shift.
struct key_range {
    std::uint32_t low = 0;            ///< first
    std::uint32_t high = 0xffffffffu; ///< last

    /// Bits by which a distance from `low` is shifted to give its bucket.
    [[nodiscard]] constexpr int shift() const {
        return std::max(0, static_cast<int>(std::bit_width(high - low)) - 11);
    }
    /// The bucket of `high`.
    [[nodiscard]] constexpr std::uint32_t last_bucket() const { return (high - low) >> shift(); }
    /// The range of one bucket.
    [[nodiscard]] constexpr key_range bucket(std::uint32_t b) const {
        const std::uint32_t first = low + (b << shift());
        return {first, first + std::min(high - first, (1u << shift()) - 1u)};
    }
};

/// How many scores lie above a range, and in each of its buckets. There are four tables, because neighbouring scores that are
/// equal would wait for each other's increment in one.
struct key_histogram {
    index_t above = 0; ///< scores above the range
    /// Counts per bucket; a bucket's number of scores is the sum over the tables.
    std::array<std::array<std::uint32_t, 2048>, 4> tables{};

    /// Scores in a bucket.
    [[nodiscard]] index_t count(std::uint32_t bucket) const {
        return static_cast<index_t>(tables[0][bucket]) + static_cast<index_t>(tables[1][bucket]) +
               static_cast<index_t>(tables[2][bucket]) + static_cast<index_t>(tables[3][bucket]);
    }
};

/// How many scores of a row are above a cut, and equal to it.
struct above_and_equal {
    index_t above; ///< above the cut
    index_t equal; ///< equal to it
};

/// The three passes, one implementation per instruction set.
struct selection_kernels {
    /// Adds the row's scores to the histogram of a range.
    void (*count_keys)(std::span<const float> row, const key_range& range, key_histogram& histogram);
    /// How many scores of the row are above the cut, and how many equal to it.
    above_and_equal (*compare)(std::span<const float> row, std::uint32_t cut_bits);
    /// Writes first_index + c for each selected column c of the row, ascending, and returns the end. Uses up cut.ties, so
    /// that a cut over many rows is passed from row to row. Writes nothing behind the end.
    std::int32_t* (*write_above)(std::span<const float> row, top_k_cut& cut, std::int32_t first_index,
                                 std::int32_t* out);
};

} // namespace kernels

} // namespace KVTRIM_NAMESPACE

#define KVTRIM_BODY <kvtrim/kernels/selection_kernels.inl>
#include <kvtrim/simd/for_each_target.inl>

namespace KVTRIM_NAMESPACE::kernels {

/// The kernels of a level.
template <class = void>
[[nodiscard]] const selection_kernels& selection_kernels_of(cpu_level level) {
    return KVTRIM_CHOOSE(level, selection_table);
}

#if defined(KVTRIM_COMPILED_KERNELS) // kernels/compiled.hpp
extern template const selection_kernels& selection_kernels_of<void>(cpu_level);
#endif

/// The kernels of the active CPU level.
[[nodiscard]] inline const selection_kernels& active_selection_kernels() {
    return selection_kernels_of(active_cpu_level());
}

/// Adds the row's scores to the histogram of a range.
inline void count_keys(std::span<const float> row, const key_range& range, key_histogram& histogram) {
    active_selection_kernels().count_keys(row, range, histogram);
}

/// How many scores of the row are above the cut, and how many equal to it.
[[nodiscard]] inline above_and_equal compare(std::span<const float> row, std::uint32_t cut_bits) {
    return active_selection_kernels().compare(row, cut_bits);
}

/// Writes first_index + c for each selected column c of the row, ascending, and returns the end. Uses up cut.ties.
inline std::int32_t* write_above(std::span<const float> row, top_k_cut& cut, std::int32_t first_index,
                                 std::int32_t* out) {
    return active_selection_kernels().write_above(row, cut, first_index, out);
}

} // namespace KVTRIM_NAMESPACE::kernels
