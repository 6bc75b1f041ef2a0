// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Bounds of rows, channel by channel, and the largest product of two rows within such bounds: what pruned prefill estimates.
//
//   maximum, minimum [length] of rows [count, length]
//   corner bound = sum over channels of the largest of q_max k_max, q_max k_min, q_min k_max, q_min k_min  >=  <q, k>
//
// Numerics: bounds are exact; a bound of products is a float sum in an order that depends on the length alone.

#include <kvtrim/kernels/logits.hpp>
#include <kvtrim/kernels/vector_loops.hpp>
#include <kvtrim/simd/choose.hpp>

namespace KVTRIM_NAMESPACE::kernels {

/// One implementation of every step per instruction set.
struct bound_kernels {
    /// The bounds of `count` rows: maximum, minimum [length], folded with what is there unless these rows are the first. NaN
    /// elements count as absent: without a number maximum < minimum.
    void (*fold_bounds)(const float* rows, index_t stride, index_t count, index_t length, bool are_first,
                        float* maximum, float* minimum);
    /// Bounds without a number become 0.
    void (*clear_empty_bounds)(index_t length, float* maximum, float* minimum);
    /// The largest <q, k> over all q between q_minimum and q_maximum and all k between k_minimum and k_maximum, channel by
    /// channel [channels]: the best of the four corners.
    float (*corner_bound)(const float* q_maximum, const float* q_minimum, const float* k_maximum,
                          const float* k_minimum, index_t channels);
};

} // namespace KVTRIM_NAMESPACE::kernels

#define KVTRIM_BODY <kvtrim/kernels/bound_kernels.inl>
#include <kvtrim/simd/for_each_target.inl>

namespace KVTRIM_NAMESPACE::kernels {

/// The kernels of a level.
template <class = void>
[[nodiscard]] const bound_kernels& bound_kernels_of(cpu_level level) {
    return KVTRIM_CHOOSE(level, bound_table);
}

#if defined(KVTRIM_COMPILED_KERNELS) // kernels/compiled.hpp
extern template const bound_kernels& bound_kernels_of<void>(cpu_level);
#endif

/// The kernels of the active CPU level.
[[nodiscard]] inline const bound_kernels& active_bound_kernels() {
    return bound_kernels_of(active_cpu_level());
}

/// The largest <q, k> of queries and keys within these bounds [channels], at the active CPU level.
[[nodiscard]] inline float corner_bound(const float* q_maximum, const float* q_minimum,
                                        const float* k_maximum, const float* k_minimum, index_t channels) {
    return active_bound_kernels().corner_bound(q_maximum, q_minimum, k_maximum, k_minimum, channels);
}

} // namespace KVTRIM_NAMESPACE::kernels
