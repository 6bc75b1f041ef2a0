// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET {

using namespace simd::KVTRIM_TARGET;

// The sum of step(position, doubles) over all elements.
template <class Step>
KVTRIM_INLINE double sum_of_doubles(index_t length, const Step& step) {
    doubles sum[4] = {};
    index_t d = 0;
    for (; d + 4 * double_lanes <= length; d += 4 * double_lanes) {
        KVTRIM_UNROLL
        for (index_t v = 0; v < 4; ++v) { sum[v] += step(d + v * double_lanes, all_doubles{}); }
    }
    for (; d + double_lanes <= length; d += double_lanes) { sum[0] += step(d, all_doubles{}); }
    const doubles lanes_of = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    double total = 0;
    KVTRIM_UNROLL
    for (index_t i = 0; i < double_lanes; ++i) { total += lanes_of[i]; }
    for (; d < length; ++d) { total += step(d, one_double{}); }
    return total;
}

inline void deviations(const float* rows, index_t stride, index_t count, index_t length, const double* low,
                       const double* scale, double* out) {
    const auto channels = static_cast<double>(length);
    for (index_t i = 0; i < count; ++i) {
        const float* const row = rows + i * stride;
        const auto scaled = [&](index_t d, auto some) KVTRIM_INLINED {
            return (some.load(row + d) - some.load(low + d)) * some.load(scale + d);
        };
        const double mean = sum_of_doubles(length, scaled) / channels;
        const double squares = sum_of_doubles(length, [&](index_t d, auto some) KVTRIM_INLINED {
            const auto distance = scaled(d, some) - mean;
            return distance * distance;
        });
        out[i] = length > 1 ? std::sqrt(squares / (channels - 1)) : 0.0 * squares; // NaN stays NaN
    }
}

} // namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET
