// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Products of matrices in memory, of any size.
//
//   C [rows, columns] = (or +=) A [rows, inner] * B [inner, columns]
//
// B is packed as it is used, a panel of 256 by a few vectors at a time, on the stack; nothing allocates.
// Numerics: each element of C is one chain of multiply-adds in the order of `inner` per 256 of these, and the chains are
// added in order: the result does not depend on the rows and columns that are computed with it, nor on their addresses.
// Cost: 2 * rows * inner * columns flops, and inner * columns elements packed.

#include <kvtrim/kernels/panel_product.hpp>
#include <kvtrim/kernels/tile_tokens.hpp>
#include <kvtrim/simd/choose.hpp>

namespace KVTRIM_NAMESPACE::kernels {

/// Products of one instruction set. Rows of C are out_row floats apart. Either the rows of B have no gaps, or its columns.
struct product_kernels {
    /// C = A * B.
    void (*multiply)(const matrix_in& a, index_t rows, const matrix_in& b, index_t inner, index_t columns,
                     float* out, index_t out_row);
    /// C += A * B.
    void (*add)(const matrix_in& a, index_t rows, const matrix_in& b, index_t inner, index_t columns,
                float* out, index_t out_row);
};

} // namespace KVTRIM_NAMESPACE::kernels

#define KVTRIM_BODY <kvtrim/kernels/product_kernels.inl>
#include <kvtrim/simd/for_each_target.inl>

namespace KVTRIM_NAMESPACE::kernels {

/// The kernels of a level.
template <class = void>
[[nodiscard]] const product_kernels& product_kernels_of(cpu_level level) {
    return KVTRIM_CHOOSE(level, product_table);
}

#if defined(KVTRIM_COMPILED_KERNELS) // kernels/compiled.hpp
extern template const product_kernels& product_kernels_of<void>(cpu_level);
#endif

/// The kernels of the active CPU level.
[[nodiscard]] inline const product_kernels& active_product_kernels() {
    return product_kernels_of(active_cpu_level());
}

// ---- Named products, at the active CPU level ----

/// out [rows, columns] = a [rows, inner] * b [columns, inner]^T; rows of out are out_stride apart.
inline void inner_products(const float* a, index_t rows, const float* b, index_t columns, index_t inner,
                           float* out, index_t out_stride) {
    active_product_kernels().multiply({a, inner, 1}, rows, {b, 1, inner}, inner, columns, out, out_stride);
}

/// out [tokens, query_rows] = keys [tokens, head_dim] * queries [query_rows, head_dim]^T
inline void logits(const float* keys, index_t key_stride, index_t tokens, const float* queries,
                   index_t query_rows, index_t head_dim, float* out) {
    active_product_kernels().multiply({keys, key_stride, 1}, tokens, {queries, 1, head_dim}, head_dim,
                                      query_rows, out, query_rows);
}

/// out [query_rows, value_dim] += tile [tokens, query_rows]^T * values [tokens, value_dim]
inline void add_weighted_values(const float* tile, index_t tokens, index_t query_rows, const float* values,
                                index_t value_stride, index_t value_dim, float* out) {
    active_product_kernels().add({tile, 1, query_rows}, query_rows, {values, value_stride, 1}, tokens,
                                 value_dim, out, value_dim);
}

/// out [rows, columns] += a [rows, inner] * b [inner, columns]; out rows are contiguous.
inline void add_products(const float* a, index_t a_stride, index_t rows, const float* b, index_t b_stride,
                         index_t inner, index_t columns, float* out) {
    active_product_kernels().add({a, a_stride, 1}, rows, {b, b_stride, 1}, inner, columns, out, columns);
}

/// gram [head_dim, head_dim] += projection [head_dim, columns] * projection^T
inline void add_gram(const float* projection, index_t projection_stride, index_t head_dim, index_t columns,
                     float* gram) {
    active_product_kernels().add({projection, projection_stride, 1}, head_dim,
                                 {projection, 1, projection_stride}, columns, head_dim, gram, head_dim);
}

} // namespace KVTRIM_NAMESPACE::kernels
