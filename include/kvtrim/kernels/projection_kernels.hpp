// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Norms of rows times a matrix: the kernels of projected value norms.
//
//   packed   a matrix [inner, columns] in the order that the level's products want, panel_floats(inner, columns) floats
//
// A panel of the matrix stays in the first level cache while all rows of a tile are multiplied by it. The products are
// reduced in registers, and none is written to memory.
//
// Numerics: products in float; each row is summed in the lanes of one vector; norms add up in float. A row's norm depends on
// no other row, nor on its address.

#include <kvtrim/core/element.hpp>
#include <kvtrim/kernels/amx_products.hpp>
#include <kvtrim/kernels/bfmmla_products.hpp>
#include <kvtrim/kernels/panel_product.hpp>
#include <kvtrim/kernels/tile_tokens.hpp>
#include <kvtrim/simd/choose.hpp>

#include <cmath>
#include <cstring>

namespace KVTRIM_NAMESPACE::kernels {

/// Floats of a packed matrix: whole panels, of 32 columns at most.
[[nodiscard]] constexpr index_t panel_floats(index_t inner, index_t columns) {
    return inner * ((columns + 31) / 32 * 32);
}

/// Elements of a packed matrix of bf16: whole steps of 32 rows and columns.
[[nodiscard]] constexpr index_t panel_bf16(index_t inner, index_t columns) {
    return panel_floats((inner + 31) / 32 * 32, columns);
}

/// Floats of scratch for the norms of so many rows.
[[nodiscard]] constexpr index_t norm_scratch_floats(index_t rows) {
    return rows * 16;
}

/// One implementation of every step per instruction set.
struct projection_kernels {
    /// Packs rows [first_row, first_row + count) of a matrix [inner, columns]; `rows` start every `stride` floats.
    void (*pack)(const float* rows, index_t stride, index_t first_row, index_t count, index_t inner,
                 index_t columns, float* packed);
    /// norms [rows] += sum over the columns of | x [rows, inner] * matrix |.
    void (*add_l1)(const float* x, index_t x_stride, index_t rows, const float* packed, index_t inner,
                   index_t columns, float* scratch, float* norms);
    /// norms [rows] += sqrt(x G x^T) for each row x of [rows, dim], with G [dim, dim] packed.
    void (*add_gram_l2)(const float* x, index_t x_stride, index_t rows, const float* packed, index_t dim,
                        float* scratch, float* norms);
    /// forms [rows] += x M x^T likewise.
    void (*add_forms)(const float* x, index_t x_stride, index_t rows, const float* packed, index_t dim,
                      float* scratch, float* forms);
    /// `pack` for add_bf16_l1, of a matrix whose floats are exactly bf16; null if the level has none. Rows are packed in
    /// pairs: first_row is even, and so is count unless the matrix ends there.
    void (*pack_bf16)(const float* rows, index_t stride, index_t first_row, index_t count, index_t inner,
                      index_t columns, bf16* packed) = nullptr;
    /// rows [count, columns] without gaps = rows [first_row, first_row + count) of a matrix [inner, columns] that pack_bf16
    /// packed; null if the level has none.
    void (*unpack_bf16)(const bf16* packed, index_t first_row, index_t count, index_t inner, index_t columns,
                        float* rows) = nullptr;
    /// `add_l1` for x of bf16; null if the level has none.
    void (*add_bf16_l1)(const bf16* x, index_t x_stride, index_t rows, const bf16* packed, index_t inner,
                        index_t columns, float* scratch, float* norms) = nullptr;
};

} // namespace KVTRIM_NAMESPACE::kernels

#define KVTRIM_BODY <kvtrim/kernels/projection_kernels.inl>
#include <kvtrim/simd/for_each_target.inl>

#define KVTRIM_BODY <kvtrim/kernels/projection_kernels_bf16.inl>
#include <kvtrim/simd/for_each_bf16_target.inl>

namespace KVTRIM_NAMESPACE::kernels {

/// The kernels of a level.
template <class = void>
[[nodiscard]] const projection_kernels& projection_kernels_of(cpu_level level) {
    return KVTRIM_CHOOSE_PRODUCTS(level, amx::with_norms<avx512::projection_table>,
                                  bfmmla::with_norms<neon::projection_table>, projection_table);
}

#if defined(KVTRIM_COMPILED_KERNELS) // kernels/compiled.hpp
extern template const projection_kernels& projection_kernels_of<void>(cpu_level);
#endif

/// The kernels of the active CPU level.
[[nodiscard]] inline const projection_kernels& active_projection_kernels() {
    return projection_kernels_of(active_cpu_level());
}

} // namespace KVTRIM_NAMESPACE::kernels
