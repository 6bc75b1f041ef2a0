// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

namespace kvtrim::kernels::KVTRIM_TARGET {

using namespace simd::KVTRIM_TARGET;

inline void dots(const float* rows, index_t stride, index_t count, index_t length, const float* other,
                 float* out) {
    sum_rows(
        count, length,
        [&](index_t i, floats sum, index_t d, auto some) __attribute__((always_inline)) {
            const floats x = some.load(rows + i * stride + d);
            return fma(x, other != nullptr ? some.load(other + d) : x, sum);
        },
        [&](index_t i, float sum) __attribute__((always_inline)) { out[i] = sum; });
}

inline void add_absolute(const float* rows, index_t stride, index_t count, index_t length, float* out) {
    sum_rows(
        count, length,
        [&](index_t i, floats sum, index_t d, auto some)
            __attribute__((always_inline)) { return sum + absolute(some.load(rows + i * stride + d)); },
        [&](index_t i, float sum) __attribute__((always_inline)) { out[i] += sum; });
}

inline void condition_logits(float* logits, index_t count, float soft_cap) {
    if (soft_cap > 0) { cap_logits(logits, count, logit_cap{soft_cap}); }
    for_each_vector(
        count, [&](index_t i, auto some) __attribute__((always_inline)) {
            const floats x = some.load(logits + i); // max and min give their second operand for NaN
            some.store(logits + i, min(max(x, broadcast(masked_logit)), broadcast(largest_logit)));
        });
}

inline void add_over_rows(const float* tile, index_t rows, index_t columns, double* sums) {
    for_each_vector(
        columns, [&](index_t c, auto some) __attribute__((always_inline)) {
            floats sum = broadcast(0.0f);
            for (index_t t = 0; t < rows; ++t) { sum = sum + some.load(tile + t * columns + c); }
            float partial[lanes];
            store(partial, sum);
            for (index_t i = 0; i < some.count(); ++i) { sums[c + i] += static_cast<double>(partial[i]); }
        });
}

inline void fold_bounds(const float* rows, index_t stride, index_t count, index_t length, float* maximum,
                        float* minimum) {
    for_each_vector(
        length, [&](index_t c, auto some) __attribute__((always_inline)) {
            floats high = some.load(maximum + c), low = some.load(minimum + c);
            for (index_t t = 0; t < count; ++t) { // max and min give their second operand for NaN
                const floats x = some.load(rows + t * stride + c);
                high = max(x, high);
                low = min(x, low);
            }
            some.store(maximum + c, high);
            some.store(minimum + c, low);
        });
}

inline float corner_bound(const float* q_maximum, const float* q_minimum, const float* k_maximum,
                          const float* k_minimum, index_t channels) {
    return sum_of_elements<true>(
        channels, [&](floats sum, index_t d, auto some) __attribute__((always_inline)) {
            const floats q_high = some.load(q_maximum + d), q_low = some.load(q_minimum + d);
            const floats k_high = some.load(k_maximum + d), k_low = some.load(k_minimum + d);
            return sum + max(max(q_high * k_high, q_high * k_low), max(q_low * k_high, q_low * k_low));
        });
}

inline void softmax(float* row, index_t count) {
    float highest = masked_logit;
    for (index_t i = 0; i < count; ++i) { highest = std::max(highest, row[i]); }
    if (highest == masked_logit) {
        std::fill_n(row, count, 0.0f);
        return;
    }
    const float sum = sum_of_elements<true>(
        count, [&](floats partial, index_t i, auto some) __attribute__((always_inline)) {
            const floats p = some.keep(weight_of(some.load(row + i), broadcast(highest)));
            some.store(row + i, p);
            return partial + p;
        });
    for_each_vector(
        count, [&](index_t i, auto some) __attribute__((always_inline)) {
            some.store(row + i, some.load(row + i) * broadcast(1.0f / sum));
        });
}

inline constexpr row_kernels row_table{dots,        add_absolute, condition_logits, add_over_rows,
                                       fold_bounds, corner_bound, softmax};

} // namespace kvtrim::kernels::KVTRIM_TARGET
