// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Scores as integers of the same order, and the three walks over a row that exact selection is made of.
//
//   order   higher score first; -0 equals +0; NaN ranks below -infinity
//
// The vector paths give the same numbers. Cost of a walk: one read of the row.

#include <kvtrim/base/status.hpp>
#include <kvtrim/simd/cpu.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <span>

#if KVTRIM_HAS_X86
#include <immintrin.h>
#endif

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

namespace kernels {

// A range of the ordered bits, both ends included, in at most 2048 buckets of 2^shift.
struct key_range {
    std::uint32_t low = 0;
    std::uint32_t high = 0xffffffffu;

    [[nodiscard]] constexpr int shift() const {
        return std::max(0, static_cast<int>(std::bit_width(high - low)) - 11);
    }
    [[nodiscard]] constexpr std::uint32_t last_bucket() const { return (high - low) >> shift(); }
    [[nodiscard]] constexpr key_range bucket(std::uint32_t b) const {
        const std::uint32_t first = low + (b << shift());
        return {first, first + std::min(high - first, (1u << shift()) - 1u)};
    }
};

// How many scores lie above a range, and in each of its buckets; equal neighbours go to different tables, whose increments
// do not wait for each other.
struct key_histogram {
    index_t above = 0;
    std::array<std::array<std::uint32_t, 2048>, 4> tables{};

    [[nodiscard]] index_t count(std::uint32_t bucket) const {
        return static_cast<index_t>(tables[0][bucket]) + static_cast<index_t>(tables[1][bucket]) +
               static_cast<index_t>(tables[2][bucket]) + static_cast<index_t>(tables[3][bucket]);
    }
};

struct above_and_equal {
    index_t above;
    index_t equal;
};

namespace detail {

inline void count_keys(std::span<const float> row, const key_range& range, key_histogram& histogram) {
    const int shift = range.shift();
    for (std::size_t i = 0; i < row.size(); ++i) {
        const std::uint32_t bits = ordered_bits(row[i]);
        histogram.above += bits > range.high ? 1 : 0;
        if (range.low <= bits && bits <= range.high) {
            ++histogram.tables[i % 4][(bits - range.low) >> shift];
        }
    }
}

[[nodiscard]] inline above_and_equal compare(std::span<const float> row, std::uint32_t cut_bits) {
    above_and_equal n{0, 0};
    for (const float score : row) {
        const std::uint32_t bits = ordered_bits(score);
        n.above += bits > cut_bits ? 1 : 0;
        n.equal += bits == cut_bits ? 1 : 0;
    }
    return n;
}

[[nodiscard]] inline std::int32_t* write_above(std::span<const float> row, top_k_cut& cut,
                                               std::int32_t first_index, std::int32_t* out) {
    for (std::size_t c = 0; c < row.size(); ++c) {
        const std::uint32_t bits = ordered_bits(row[c]);
        if (bits < cut.bits || (bits == cut.bits && cut.ties == 0)) { continue; }
        cut.ties -= bits == cut.bits ? 1 : 0;
        *out++ = first_index + static_cast<std::int32_t>(c);
    }
    return out;
}

#if KVTRIM_HAS_X86

// AVX2 compares signed integers only: the ordered bits, their highest one flipped.
inline constexpr std::uint32_t signed_order = 0x80000000u;

KVTRIM_TARGET_AVX2 inline __m256i signed_bits_avx2(const float* from) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    const __m256i magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
    const __m256i negative = _mm256_srai_epi32(bits, 31);
    const __m256i is_nan = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x7f800000));
    // Scores below zero become -1 - magnitude, which leaves -1 for the zero that has a sign.
    const __m256i below = _mm256_xor_si256(magnitude, negative);
    const __m256i is_zero = _mm256_cmpeq_epi32(magnitude, _mm256_setzero_si256());
    const __m256i ordered = _mm256_andnot_si256(is_zero, below);
    return _mm256_blendv_epi8(ordered, _mm256_set1_epi32(static_cast<int>(signed_order)), is_nan);
}

// One bit per lane.
KVTRIM_TARGET_AVX2 inline unsigned lanes_of(__m256i comparison) {
    return static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(comparison)));
}

// The walks do whole eights and leave the rest of the row to the plain ones.
[[nodiscard]] inline std::size_t whole_eights(std::span<const float> row) {
    return row.size() / 8 * 8;
}

KVTRIM_TARGET_AVX2 inline void count_keys_avx2(std::span<const float> row, const key_range& range,
                                               key_histogram& histogram) {
    const __m256i low = _mm256_set1_epi32(static_cast<int>(range.low ^ signed_order));
    const __m256i high = _mm256_set1_epi32(static_cast<int>(range.high ^ signed_order));
    const __m128i shift = _mm_cvtsi32_si128(range.shift());
    alignas(32) std::uint32_t buckets[8];
    const std::size_t whole = whole_eights(row);
    for (std::size_t i = 0; i < whole; i += 8) {
        const __m256i bits = signed_bits_avx2(row.data() + i);
        const unsigned above = lanes_of(_mm256_cmpgt_epi32(bits, high));
        unsigned inside = ~(above | lanes_of(_mm256_cmpgt_epi32(low, bits))) & 0xffu;
        histogram.above += std::popcount(above);
        if (inside == 0) { continue; }
        const __m256i bucket = _mm256_srl_epi32(_mm256_sub_epi32(bits, low), shift);
        _mm256_store_si256(reinterpret_cast<__m256i*>(buckets), bucket);
        if (inside == 0xff) {
            for (std::size_t j = 0; j < 8; ++j) { ++histogram.tables[j % 4][buckets[j]]; }
            continue;
        }
        for (; inside != 0; inside &= inside - 1) {
            const auto j = static_cast<std::size_t>(std::countr_zero(inside));
            ++histogram.tables[j % 4][buckets[j]];
        }
    }
    count_keys(row.subspan(whole), range, histogram);
}

[[nodiscard]] KVTRIM_TARGET_AVX2 inline above_and_equal compare_avx2(std::span<const float> row,
                                                                     std::uint32_t cut_bits) {
    const __m256i cut = _mm256_set1_epi32(static_cast<int>(cut_bits ^ signed_order));
    const std::size_t whole = whole_eights(row);
    above_and_equal n = compare(row.subspan(whole), cut_bits);
    for (std::size_t i = 0; i < whole; i += 8) {
        const __m256i bits = signed_bits_avx2(row.data() + i);
        n.above += std::popcount(lanes_of(_mm256_cmpgt_epi32(bits, cut)));
        n.equal += std::popcount(lanes_of(_mm256_cmpeq_epi32(bits, cut)));
    }
    return n;
}

[[nodiscard]] KVTRIM_TARGET_AVX2 inline std::int32_t*
write_above_avx2(std::span<const float> row, top_k_cut& cut, std::int32_t first_index, std::int32_t* out) {
    const __m256i border = _mm256_set1_epi32(static_cast<int>(cut.bits ^ signed_order));
    const std::size_t whole = whole_eights(row);
    for (std::size_t i = 0; i < whole; i += 8) {
        const __m256i bits = signed_bits_avx2(row.data() + i);
        unsigned in = lanes_of(_mm256_cmpgt_epi32(bits, border));
        unsigned equal = lanes_of(_mm256_cmpeq_epi32(bits, border));
        for (; equal != 0 && cut.ties > 0; --cut.ties) { // the lowest first
            in |= equal & (0u - equal);
            equal &= equal - 1;
        }
        for (; in != 0; in &= in - 1) {
            *out++ = first_index + static_cast<std::int32_t>(i) + std::countr_zero(in);
        }
    }
    return write_above(row.subspan(whole), cut, first_index + static_cast<std::int32_t>(whole), out);
}

KVTRIM_TARGET_AVX512 inline __m512i ordered_bits_avx512(const float* from, __mmask16 lanes) {
    const __m512i sign = _mm512_set1_epi32(static_cast<int>(0x80000000u));
    const __m512i bits = _mm512_maskz_loadu_epi32(lanes, from);
    const __m512 score = _mm512_castsi512_ps(bits);
    const __mmask16 number = _mm512_cmp_ps_mask(score, score, _CMP_ORD_Q);
    const __m512i negative = _mm512_maskz_srai_epi32(0xffff, bits, 31);
    constexpr int flip = 0x1e; // bits ^ (negative | sign)
    const __m512i ordered = _mm512_maskz_ternarylogic_epi32(number, bits, negative, sign, flip);
    return _mm512_mask_mov_epi32(ordered, _mm512_cmpeq_epi32_mask(bits, sign), sign); // -0 is 0
}

KVTRIM_TARGET_AVX512 inline index_t sum_of_counts(__m512i counts) {
    alignas(64) std::uint32_t lanes[16];
    _mm512_store_si512(lanes, counts);
    index_t sum = 0;
    for (const std::uint32_t n : lanes) { sum += n; }
    return sum;
}

[[nodiscard]] inline __mmask16 lanes_left(std::size_t count) {
    return static_cast<__mmask16>((1u << std::min<std::size_t>(count, 16)) - 1u);
}

// Buckets are collected first: few vectors have no score in the range, and few are full of them, so a loop over those of
// each vector would be mispredicted every time.
KVTRIM_TARGET_AVX512 inline void count_keys_avx512(std::span<const float> row, const key_range& range,
                                                   key_histogram& histogram) {
    const __m512i low = _mm512_set1_epi32(static_cast<int>(range.low));
    const __m512i high = _mm512_set1_epi32(static_cast<int>(range.high));
    const __m512i width = _mm512_set1_epi32(static_cast<int>(range.high - range.low));
    const __m512i one = _mm512_set1_epi32(1);
    const __m128i shift = _mm_cvtsi32_si128(range.shift());
    __m512i above = _mm512_setzero_si512();
    alignas(64) std::uint32_t buckets[1024 + 16];
    std::size_t collected = 0;
    const auto add_collected = [&] {
        std::size_t j = 0;
        for (; j + 4 <= collected; j += 4) {
            for (std::size_t table = 0; table < 4; ++table) { ++histogram.tables[table][buckets[j + table]]; }
        }
        for (; j < collected; ++j) { ++histogram.tables[0][buckets[j]]; }
        collected = 0;
    };
    for (std::size_t i = 0; i < row.size(); i += 16) {
        const __mmask16 lanes = lanes_left(row.size() - i);
        const __m512i bits = ordered_bits_avx512(row.data() + i, lanes);
        const __m512i offset = _mm512_sub_epi32(bits, low); // wraps around below the range
        const __mmask16 inside = _mm512_mask_cmple_epu32_mask(lanes, offset, width);
        above = _mm512_mask_add_epi32(above, _mm512_mask_cmpgt_epu32_mask(lanes, bits, high), above, one);
        const __m512i bucket = _mm512_maskz_srl_epi32(0xffff, offset, shift);
        _mm512_storeu_si512(buckets + collected, _mm512_maskz_compress_epi32(inside, bucket));
        collected += static_cast<std::size_t>(std::popcount(static_cast<unsigned>(inside)));
        if (collected > 1024) { add_collected(); }
    }
    add_collected();
    histogram.above += sum_of_counts(above);
}

[[nodiscard]] KVTRIM_TARGET_AVX512 inline above_and_equal compare_avx512(std::span<const float> row,
                                                                         std::uint32_t cut_bits) {
    const __m512i cut = _mm512_set1_epi32(static_cast<int>(cut_bits));
    const __m512i one = _mm512_set1_epi32(1);
    __m512i above = _mm512_setzero_si512(), equal = _mm512_setzero_si512();
    for (std::size_t i = 0; i < row.size(); i += 16) {
        const __mmask16 lanes = lanes_left(row.size() - i);
        const __m512i bits = ordered_bits_avx512(row.data() + i, lanes);
        above = _mm512_mask_add_epi32(above, _mm512_mask_cmpgt_epu32_mask(lanes, bits, cut), above, one);
        equal = _mm512_mask_add_epi32(equal, _mm512_mask_cmpeq_epi32_mask(lanes, bits, cut), equal, one);
    }
    return {sum_of_counts(above), sum_of_counts(equal)};
}

[[nodiscard]] KVTRIM_TARGET_AVX512 inline std::int32_t*
write_above_avx512(std::span<const float> row, top_k_cut& cut, std::int32_t first_index, std::int32_t* out) {
    const __m512i border = _mm512_set1_epi32(static_cast<int>(cut.bits));
    __m512i index = _mm512_add_epi32(_mm512_set1_epi32(first_index),
                                     _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
    for (std::size_t i = 0; i < row.size(); i += 16) {
        const __mmask16 lanes = lanes_left(row.size() - i);
        const __m512i bits = ordered_bits_avx512(row.data() + i, lanes);
        auto in = static_cast<unsigned>(_mm512_mask_cmpgt_epu32_mask(lanes, bits, border));
        auto equal = static_cast<unsigned>(_mm512_mask_cmpeq_epi32_mask(lanes, bits, border));
        for (; equal != 0 && cut.ties > 0; --cut.ties) { // the lowest first
            in |= equal & (0u - equal);
            equal &= equal - 1;
        }
        const auto chosen = static_cast<std::size_t>(std::popcount(in));
        _mm512_mask_storeu_epi32(out, lanes_left(chosen),
                                 _mm512_maskz_compress_epi32(static_cast<__mmask16>(in), index));
        out += chosen;
        index = _mm512_add_epi32(index, _mm512_set1_epi32(16));
    }
    return out;
}

#endif

} // namespace detail

// Adds the row's scores to the histogram of a range.
inline void count_keys(std::span<const float> row, const key_range& range, key_histogram& histogram) {
#if KVTRIM_HAS_X86
    const cpu_level level = active_cpu_level();
    if (level >= cpu_level::avx512) { return detail::count_keys_avx512(row, range, histogram); }
    if (level >= cpu_level::avx2) { return detail::count_keys_avx2(row, range, histogram); }
#endif
    detail::count_keys(row, range, histogram);
}

// How many scores of the row are above the cut, and how many equal to it.
[[nodiscard]] inline above_and_equal compare(std::span<const float> row, std::uint32_t cut_bits) {
#if KVTRIM_HAS_X86
    const cpu_level level = active_cpu_level();
    if (level >= cpu_level::avx512) { return detail::compare_avx512(row, cut_bits); }
    if (level >= cpu_level::avx2) { return detail::compare_avx2(row, cut_bits); }
#endif
    return detail::compare(row, cut_bits);
}

// Writes first_index + c for each selected column c of the row, ascending, and returns the end. Uses up cut.ties, so that
// a cut over many rows is passed from row to row. Writes nothing behind the end.
inline std::int32_t* write_above(std::span<const float> row, top_k_cut& cut, std::int32_t first_index,
                                 std::int32_t* out) {
#if KVTRIM_HAS_X86
    const cpu_level level = active_cpu_level();
    if (level >= cpu_level::avx512) { return detail::write_above_avx512(row, cut, first_index, out); }
    if (level >= cpu_level::avx2) { return detail::write_above_avx2(row, cut, first_index, out); }
#endif
    return detail::write_above(row, cut, first_index, out);
}

} // namespace kernels

} // namespace kvtrim
