// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET {

using namespace simd::KVTRIM_TARGET;

inline constexpr auto vector_length = static_cast<std::size_t>(lanes);
inline constexpr unsigned every_lane = (1u << lanes) - 1u;

// Not inlined, because it is called once per row and unrolls to a load and an addition for every lane.
[[nodiscard, gnu::noinline]] inline index_t sum_of_counts(const uints& counts) {
    index_t sum = 0;
    for (int i = 0; i < static_cast<int>(lanes); ++i) { sum += counts[i]; }
    return sum;
}

// Buckets are collected before they are counted: most vectors have some scores in the range and some outside, so a loop over
// the scores of each vector would be mispredicted every time.
inline void count_keys(std::span<const float> row, const key_range& range, key_histogram& histogram) {
    constexpr std::size_t most = 1024;
    std::uint32_t buckets[most + vector_length];
    const uints low = broadcast(range.low), high = broadcast(range.high), width = high - low;
    const auto shift = static_cast<std::uint32_t>(range.shift());
    uints not_above{};
    for (std::size_t first = 0; first < row.size(); first += most) {
        const auto part = row.subspan(first, std::min(most, row.size() - first));
        std::uint32_t* end = buckets;
        std::size_t i = 0;
        for (; i + vector_length <= part.size(); i += vector_length) {
            const uints bits = in_order_of_size(load(part.data() + i));
            const uints offset = bits - low; // wraps around below the range
            not_above = add_one(at_most(bits, high), not_above);
            end = pack(end, lanes_of(at_most(offset, width)), offset >> shift);
        }
        for (; i < part.size(); ++i) {
            const std::uint32_t bits = ordered_bits(part[i]);
            histogram.above += bits > range.high ? 1 : 0;
            if (range.low <= bits && bits <= range.high) { *end++ = (bits - range.low) >> shift; }
        }
        const auto collected = static_cast<std::size_t>(end - buckets);
        std::size_t j = 0;
        for (; j + 4 <= collected; j += 4) {
            KVTRIM_UNROLL
            for (std::size_t table = 0; table < 4; ++table) { ++histogram.tables[table][buckets[j + table]]; }
        }
        for (; j < collected; ++j) { ++histogram.tables[0][buckets[j]]; }
    }
    const std::size_t whole = row.size() / vector_length * vector_length;
    histogram.above += static_cast<index_t>(whole) - sum_of_counts(not_above);
}

[[nodiscard]] inline above_and_equal compare(std::span<const float> row, std::uint32_t cut_bits) {
    const uints cut = broadcast(cut_bits);
    uints not_above{}, same{};
    std::size_t i = 0;
    for (; i + vector_length <= row.size(); i += vector_length) {
        const uints bits = in_order_of_size(load(row.data() + i));
        not_above = add_one(at_most(bits, cut), not_above);
        same = add_one(equal(bits, cut), same);
    }
    above_and_equal n{static_cast<index_t>(i) - sum_of_counts(not_above), sum_of_counts(same)};
    for (; i < row.size(); ++i) {
        const std::uint32_t bits = ordered_bits(row[i]);
        n.above += bits > cut_bits ? 1 : 0;
        n.equal += bits == cut_bits ? 1 : 0;
    }
    return n;
}

[[nodiscard]] inline std::int32_t* write_above(std::span<const float> row, top_k_cut& cut,
                                               std::int32_t first_index, std::int32_t* out) {
    static constexpr std::uint32_t numbers[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const uints border = broadcast(cut.bits);
    uints index = load(numbers) + static_cast<std::uint32_t>(first_index);
    std::size_t i = 0;
    for (; i + vector_length <= row.size(); i += vector_length) {
        const uints bits = in_order_of_size(load(row.data() + i));
        unsigned in = ~lanes_of(at_most(bits, border)) & every_lane;
        unsigned ties = lanes_of(equal(bits, border));
        for (; ties != 0 && cut.ties > 0; --cut.ties) { // the lowest first
            in |= ties & (0u - ties);
            ties &= ties - 1;
        }
        out = pack_only(out, in, index);
        index += static_cast<std::uint32_t>(lanes);
    }
    for (; i < row.size(); ++i) {
        const std::uint32_t bits = ordered_bits(row[i]);
        if (bits < cut.bits || (bits == cut.bits && cut.ties == 0)) { continue; }
        cut.ties -= bits == cut.bits ? 1 : 0;
        *out++ = first_index + static_cast<std::int32_t>(i);
    }
    return out;
}

inline constexpr selection_kernels selection_table{count_keys, compare, write_above};

} // namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET
