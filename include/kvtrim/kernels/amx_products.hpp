// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What the AMX kernels share: tiles of bf16 as the registers read them, and products of 32 by 32.
//
//   C [32][32] += A [32][32] * B [32][32]      C in tiles 0 to 3, rows of 16 and then columns of 16
//
// A is read in place, 16 rows at a time; B in two tiles of 16 columns, [16 pairs of rows][16 columns][2]. The caller pads
// with zeros what is not a whole step of 32.
// Numerics: exact products of bf16, summed in float; denormals count as 0 (simd/amx_tiles.hpp).

#include <kvtrim/core/element.hpp>
#include <kvtrim/kernels/bf16_rows.hpp>
#include <kvtrim/kernels/panel_product.hpp>
#include <kvtrim/simd/amx_tiles.hpp>

namespace KVTRIM_NAMESPACE::kernels::amx {

inline constexpr index_t step = 32;               ///< of the inner dimension, and the edge of C
inline constexpr index_t tile_elements = 16 * 32; ///< elements of a tile of bf16
/// Bytes of a row of a tile.
inline constexpr index_t tile_row_bytes = 64;

/// The next multiple of `step`.
[[nodiscard]] constexpr index_t whole_steps(index_t count) {
    return (count + step - 1) / step * step;
}

/// Index of element (inner, column) in the packed matrix that multiply_panel() reads; inner_dim: rows of the matrix.
[[nodiscard]] constexpr index_t packed_index(index_t inner_dim, index_t inner, index_t column) {
    return column / step * step * whole_steps(inner_dim) + inner / step * 2 * tile_elements +
           column % step / 16 * tile_elements + inner % step / 2 * step + column % 16 * 2 + inner % 2;
}

#if KVTRIM_HAS_X86

/// A mask of the first `count` of 32 lanes.
[[nodiscard]] inline __mmask32 first_lanes(index_t count) {
    return static_cast<__mmask32>((std::uint64_t{1} << std::clamp<index_t>(count, 0, 32)) - 1);
}

/// The first `count` elements of a row of 32 bf16, and zeros.
KVTRIM_INLINE_AVX512 __m512i load_row(const bf16* from, index_t count) {
    return _mm512_maskz_loadu_epi16(first_lanes(count), from);
}

/// C = 0.
template <class Tiles>
KVTRIM_TARGET_AMX void zero_c() {
    Tiles::template zero<0>();
    Tiles::template zero<1>();
    Tiles::template zero<2>();
    Tiles::template zero<3>();
}

/// Writes C to memory, rows row_bytes apart.
template <class Tiles>
KVTRIM_TARGET_AMX void store_c(float* c, index_t row_bytes) {
    const index_t half = 16 * row_bytes / static_cast<index_t>(sizeof(float));
    Tiles::template store<0>(c, row_bytes);
    Tiles::template store<1>(c + 16, row_bytes);
    Tiles::template store<2>(c + half, row_bytes);
    Tiles::template store<3>(c + half + 16, row_bytes);
}

/// C += A * B. The first 16 rows of A are at a and the last 16 at a_below, a_row_bytes apart.
template <class Tiles>
KVTRIM_TARGET_AMX void multiply_step(const bf16* a, const bf16* a_below, index_t a_row_bytes, const bf16* b) {
    Tiles::template load<4>(a, a_row_bytes);
    Tiles::template load<6>(b, tile_row_bytes);
    Tiles::template multiply_add<0, 4, 6>();
    Tiles::template load<7>(b + tile_elements, tile_row_bytes);
    Tiles::template multiply_add<1, 4, 7>();
    Tiles::template load<5>(a_below, a_row_bytes);
    Tiles::template multiply_add<2, 5, 6>();
    Tiles::template multiply_add<3, 5, 7>();
}

/// C = rows [first, first + 32) of A times a panel of 32 columns, b [whole_steps(length) / 32][2][16][16][2].
template <class Tiles>
KVTRIM_TARGET_AMX void multiply_panel(const bf16_rows& a, index_t first, const bf16* b) {
    alignas(64) bf16 part[step * step]; // a copy, padded with zeros, of rows that are no whole step
    zero_c<Tiles>();
    for (index_t d = 0; d < a.length; d += step, b += 2 * tile_elements) {
        const bf16* const from = a.data + first * a.stride + d;
        if (first + step <= a.count && d + step <= a.length) {
            const index_t row_bytes = a.stride * static_cast<index_t>(sizeof(bf16));
            multiply_step<Tiles>(from, from + 16 * a.stride, row_bytes, b);
            continue;
        }
        for (index_t t = 0; t < step; ++t) {
            const index_t length = first + t < a.count ? a.length - d : 0;
            _mm512_store_si512(part + t * step, load_row(from + t * a.stride, length));
        }
        multiply_step<Tiles>(part, part + tile_elements, tile_row_bytes, b);
    }
}

#endif // KVTRIM_HAS_X86

} // namespace KVTRIM_NAMESPACE::kernels::amx
