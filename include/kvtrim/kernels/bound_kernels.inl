// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET {

using namespace simd::KVTRIM_TARGET;

inline void fold_bounds(const float* rows, index_t stride, index_t count, index_t length, bool are_first,
                        float* maximum, float* minimum) {
    for_each_vector(length, [&](index_t c, auto some) KVTRIM_INLINED {
        floats high = are_first ? broadcast(masked_logit) : some.load(maximum + c);
        floats low = are_first ? broadcast(-masked_logit) : some.load(minimum + c);
        for (index_t t = 0; t < count; ++t) { // max and min give their second operand for NaN
            const floats x = some.load(rows + t * stride + c);
            high = max(x, high);
            low = min(x, low);
        }
        some.store(maximum + c, high);
        some.store(minimum + c, low);
    });
}

inline void clear_empty_bounds(index_t length, float* maximum, float* minimum) {
    for_each_vector(length, [&](index_t c, auto some) KVTRIM_INLINED {
        const floats high = some.load(maximum + c), low = some.load(minimum + c), zero = broadcast(0.0f);
        const auto is_empty = greater(low, high);
        some.store(maximum + c, select(is_empty, zero, high));
        some.store(minimum + c, select(is_empty, zero, low));
    });
}

inline float corner_bound(const float* q_maximum, const float* q_minimum, const float* k_maximum,
                          const float* k_minimum, index_t channels) {
    return sum_of_elements<true>(channels, [&](floats sum, index_t d, auto some) KVTRIM_INLINED {
        const floats q_high = some.load(q_maximum + d), q_low = some.load(q_minimum + d);
        const floats k_high = some.load(k_maximum + d), k_low = some.load(k_minimum + d);
        return sum + max(max(q_high * k_high, q_high * k_low), max(q_low * k_high, q_low * k_low));
    });
}

inline constexpr bound_kernels bound_table{fold_bounds, clear_empty_bounds, corner_bound};

} // namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET
