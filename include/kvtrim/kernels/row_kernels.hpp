// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Reductions and elementwise steps on rows of floats, for scorers without queries.
//
// Numerics: float where nothing else is said; sums in the lanes of four vectors, in an order that
// depends on the length alone, so that equal rows give equal results at any address.

#include <kvtrim/kernels/logits.hpp>
#include <kvtrim/kernels/vector_loops.hpp>
#include <kvtrim/simd/choose.hpp>
#include <kvtrim/simd/prefetch.hpp>

#include <cmath>
#include <type_traits>

namespace KVTRIM_NAMESPACE::kernels {

/// One implementation of every step per instruction set.
struct row_kernels {
    /// out [count] = <row i, other>, with other null: <row i, row i>. Rows [length] start every `stride` floats.
    void (*dots)(const float* rows, index_t stride, index_t count, index_t length, const float* other,
                 float* out);
    /// out [count] += the sum of |row i|.
    void (*add_absolute)(const float* rows, index_t stride, index_t count, index_t length, float* out);
    /// Soft cap (0: none), then NaN to masked and +infinity to the largest float, in place.
    void (*condition_logits)(float* logits, index_t count, float soft_cap);
    /// sums [length] += sum of weight[i] * row i; weights null: 1 each. Rows of weight 0 are not read. Sums in
    /// float within a call.
    void (*add_over_rows)(const float* rows, index_t stride, index_t count, index_t length,
                          const float* weights, double* sums);
    /// into [count] += from
    void (*add_row)(const float* from, index_t count, float* into);
    /// into [count] += from * |from|: squares that keep their sign, so that their order is that of the scores.
    void (*add_squares)(const float* from, index_t count, float* into);
    /// into [count] = max(into, from); NaN in from counts as absent.
    void (*raise_row)(const float* from, index_t count, float* into);
    /// row [count] = (row + added) * weights
    void (*weigh_row)(float* row, index_t count, float added, const float* weights);
    /// row i *= factors[i], in place; rows without gaps.
    void (*scale_rows)(float* rows, index_t count, index_t length, const float* factors);
    /// A row of conditioned logits becomes exp(x - max) / sum; a row of masked logits becomes zeros.
    void (*softmax)(float* row, index_t count);
};

} // namespace KVTRIM_NAMESPACE::kernels

#define KVTRIM_BODY <kvtrim/kernels/row_kernels.inl>
#include <kvtrim/simd/for_each_target.inl>

namespace KVTRIM_NAMESPACE::kernels {

/// The kernels of a level.
template <class = void>
[[nodiscard]] const row_kernels& row_kernels_of(cpu_level level) {
    return KVTRIM_CHOOSE(level, row_table);
}

#if defined(KVTRIM_COMPILED_KERNELS) // kernels/compiled.hpp
extern template const row_kernels& row_kernels_of<void>(cpu_level);
#endif

/// The kernels of the active CPU level.
[[nodiscard]] inline const row_kernels& active_row_kernels() {
    return row_kernels_of(active_cpu_level());
}

// ---- Named steps, at the active CPU level ----

/// The inner product of a and b [count].
[[nodiscard]] inline float dot(const float* a, const float* b, index_t count) {
    float sum = 0;
    active_row_kernels().dots(a, count, 1, count, b, &sum);
    return sum;
}

/// Soft cap (0: none), then NaN to masked and +infinity to the largest float, in place.
inline void condition_logits(float* logits, index_t count, float soft_cap) {
    active_row_kernels().condition_logits(logits, count, soft_cap);
}

/// sums [query_rows] += the sum over tokens of tile [tokens, query_rows]. Float within the tile.
inline void add_over_tokens(const float* tile, index_t tokens, index_t query_rows, double* sums) {
    active_row_kernels().add_over_rows(tile, query_rows, tokens, query_rows, nullptr, sums);
}

/// Softmax of conditioned logits, in place; a row of masked logits becomes zeros.
inline void softmax(float* row, index_t count) {
    active_row_kernels().softmax(row, count);
}

} // namespace KVTRIM_NAMESPACE::kernels
