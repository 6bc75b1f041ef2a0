// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET {

using namespace simd::KVTRIM_TARGET;

// The highest over so many vectors of columns of: the sum over `count` rows of attention [.., rows] times a weight.
template <index_t Vectors, class Lanes>
KVTRIM_INLINE floats highest_pooled(const float* attention, index_t count, index_t rows, const float* weight,
                                    Lanes some) {
    registers<Vectors> sum;
    KVTRIM_UNROLL
    for (index_t v = 0; v < Vectors; ++v) { sum[v] = some.load(attention + v * lanes); }
    for (index_t j = 1; j < count; ++j) {
        attention += rows;
        KVTRIM_UNROLL
        for (index_t v = 0; v < Vectors; ++v) { sum[v] = sum[v] + some.load(attention + v * lanes); }
    }
    floats highest = broadcast(0.0f); // attention is not negative
    KVTRIM_UNROLL
    for (index_t v = 0; v < Vectors; ++v) { highest = max(sum[v] * some.load(weight + v * lanes), highest); }
    return highest;
}

inline void raise_to_pooled(const float* attention, index_t tokens, index_t before, index_t after,
                            index_t half, index_t rows, const float* weight, float* best) {
    const first_lanes rest(rows % lanes);
    for (index_t t = 0; t < tokens; ++t) {
        const index_t first = std::max(t - half, -before),
                      count = std::min(t + half + 1, tokens + after) - first;
        const float* const from = attention + first * rows;
        floats highest = broadcast(0.0f);
        index_t r = 0;
        for (; r + 4 * lanes <= rows; r += 4 * lanes) {
            highest = max(highest_pooled<4>(from + r, count, rows, weight + r, all_lanes{}), highest);
        }
        for (; r + lanes <= rows; r += lanes) {
            highest = max(highest_pooled<1>(from + r, count, rows, weight + r, all_lanes{}), highest);
        }
        if (r < rows) { highest = max(highest_pooled<1>(from + r, count, rows, weight + r, rest), highest); }
        best[t] = std::max(best[t], highest_of_lanes(highest));
    }
}

} // namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET
