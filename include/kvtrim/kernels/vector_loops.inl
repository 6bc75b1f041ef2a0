// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET {

using namespace simd::KVTRIM_TARGET;

// The sum over all elements of a row, by step(sum, position, lanes). Long rows have four independent sums, so that additions
// do not wait for each other.
template <bool IsLong, class Step>
KVTRIM_INLINE float sum_of_elements(index_t length, const Step& step) {
    floats total = broadcast(0.0f);
    index_t d = 0;
    if constexpr (IsLong) {
        registers<4> sum;
        KVTRIM_UNROLL
        for (index_t v = 0; v < 4; ++v) { sum[v] = broadcast(0.0f); }
        for (; d + 4 * lanes <= length; d += 4 * lanes) {
            KVTRIM_UNROLL
            for (index_t v = 0; v < 4; ++v) { sum[v] = step(sum[v], d + v * lanes, all_lanes{}); }
        }
        total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
    for (; d + lanes <= length; d += lanes) { total = step(total, d, all_lanes{}); }
    if (d < length) { total = step(total, d, first_lanes(length - d)); }
    return sum_of_lanes(total);
}

// Calls take(i, sum of row i) for `count` rows; step(i, sum, position, lanes) as above.
template <class Step, class Take>
KVTRIM_INLINE void sum_rows(index_t count, index_t length, const Step& step, const Take& take) {
    const auto sum_all = [&](auto is_long) KVTRIM_INLINED {
        for (index_t i = 0; i < count; ++i) {
            const auto of_row = [&](floats sum, index_t d, auto some)
                                    KVTRIM_INLINED { return step(i, sum, d, some); };
            take(i, sum_of_elements<decltype(is_long)::value>(length, of_row));
        }
    };
    if (length >= 8 * lanes) {
        sum_all(std::true_type{});
    } else {
        sum_all(std::false_type{});
    }
}

// Calls step(position, lanes) for all elements.
template <class Step>
KVTRIM_INLINE void for_each_vector(index_t count, const Step& step) {
    index_t i = 0;
    for (; i + lanes <= count; i += lanes) { step(i, all_lanes{}); }
    if (i < count) { step(i, first_lanes(count - i)); }
}

// Calls step(position) for whole vectors, sixteen elements at a time and then one vector, and returns the position behind
// them: of the instructions of a loop over single vectors of four, more than half would be the loop's own.
template <class Step>
KVTRIM_INLINE index_t for_whole_vectors(index_t count, const Step& step) {
    index_t i = 0;
    for (; i + 16 <= count; i += 16) {
        KVTRIM_UNROLL
        for (index_t v = 0; v < 16; v += lanes) { step(i + v); }
    }
    for (; i + lanes <= count; i += lanes) { step(i); }
    return i;
}

} // namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET
