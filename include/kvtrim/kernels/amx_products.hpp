// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Products of bf16 by AMX, 32 by 32; all other steps are those of AVX-512.
//
//   C [32][32] += A [32][32] * B [32][32]      C in tiles 0 to 3, rows of 16 and then columns of 16
//
// A is read in place, 16 rows at a time; B in two tiles of 16 columns, [16 pairs of rows][16 columns][2]. Any size works,
// multiples of 32 at full speed. Tiles: simd::amx_tiles, or an emulation.
//
// Numerics: exact products of bf16, summed in float; denormals count as 0 (simd/amx_tiles.hpp).
// Cost in cycles, measured with an inner dimension of 128. Window logits of 32 keys and 128 queries take 3200, of which the 64
// products are 1024; 8 KiB of keys and 32 KiB of queries are read. Norms of 32 rows and 32 columns take 740, of which products are
// 256; 64 vectors of C are folded, 16 KiB of rows and an 8 KiB panel are read.

#include <kvtrim/kernels/bf16_rows.hpp>
#include <kvtrim/kernels/panel_product.hpp>
#include <kvtrim/simd/amx_tiles.hpp>

#if KVTRIM_HAS_X86

KVTRIM_BEGIN_AMX

namespace KVTRIM_NAMESPACE::kernels::amx {

using namespace avx512;
using tiles = simd::amx_tiles;
using order = packed_order<32, 16, 2>; ///< of B

inline constexpr index_t edge = 32;               ///< of C, and a step of the inner dimension
inline constexpr index_t tile_elements = 16 * 32; ///< of bf16
inline constexpr index_t tile_row_bytes = 64;     ///< of a tile
inline constexpr index_t row_sums = lanes;        ///< in which fold_absolute() sums a row

/// C in memory.
struct sums_of_panel {
    alignas(64) float c[edge * edge];
};

/// The first `count` elements of a row of 32 bf16, and zeros.
KVTRIM_INLINE __m512i load_row(const bf16* from, index_t count) {
    const std::uint64_t first = (std::uint64_t{1} << std::clamp<index_t>(count, 0, 32)) - 1;
    return _mm512_maskz_loadu_epi16(static_cast<__mmask32>(first), from);
}

/// C = 0; C = memory without gaps; memory = C.
template <class Tiles>
void zero_c() {
    Tiles::template zero<0>();
    Tiles::template zero<1>();
    Tiles::template zero<2>();
    Tiles::template zero<3>();
}
template <class Tiles>
void load_c(const float* c) {
    Tiles::template load<0>(c, 2 * tile_row_bytes);
    Tiles::template load<1>(c + 16, 2 * tile_row_bytes);
    Tiles::template load<2>(c + 16 * edge, 2 * tile_row_bytes);
    Tiles::template load<3>(c + 16 * edge + 16, 2 * tile_row_bytes);
}
template <class Tiles>
void store_c(float* c) {
    Tiles::template store<0>(c, 2 * tile_row_bytes);
    Tiles::template store<1>(c + 16, 2 * tile_row_bytes);
    Tiles::template store<2>(c + 16 * edge, 2 * tile_row_bytes);
    Tiles::template store<3>(c + 16 * edge + 16, 2 * tile_row_bytes);
}

/// C += A * B. The first 16 rows of A are at a and the last 16 at a_below, a_row_bytes apart.
template <class Tiles>
void multiply_step(const bf16* a, const bf16* a_below, index_t a_row_bytes, const bf16* b) {
    Tiles::template load<4>(a, a_row_bytes);
    Tiles::template load<6>(b, tile_row_bytes);
    Tiles::template multiply_add<0, 4, 6>();
    Tiles::template load<7>(b + tile_elements, tile_row_bytes);
    Tiles::template multiply_add<1, 4, 7>();
    Tiles::template load<5>(a_below, a_row_bytes);
    Tiles::template multiply_add<2, 5, 6>();
    Tiles::template multiply_add<3, 5, 7>();
}

/// C = rows [first, first + 32) of A times a panel of 32 columns.
template <class Tiles>
void multiply_panel(const bf16_rows& a, index_t first, const bf16* panel, sums_of_panel& c) {
    alignas(64) bf16 padded_rows[edge * edge]; // a copy, padded with zeros, of rows that are no whole step
    zero_c<Tiles>();
    for (index_t d = 0; d < a.length; d += edge, panel += edge * edge) {
        const bf16* const from = a.data + first * a.stride + d;
        if (first + edge <= a.count && d + edge <= a.length) {
            const index_t row_bytes = a.stride * static_cast<index_t>(sizeof(bf16));
            multiply_step<Tiles>(from, from + 16 * a.stride, row_bytes, panel);
            continue;
        }
        for (index_t t = 0; t < edge; ++t) {
            const index_t length = first + t < a.count ? a.length - d : 0;
            _mm512_store_si512(padded_rows + t * edge, load_row(from + t * a.stride, length));
        }
        multiply_step<Tiles>(padded_rows, padded_rows + tile_elements, tile_row_bytes, panel);
    }
    store_c<Tiles>(c.c);
}

/// Calls put(row, column, vector, lanes) for the first rows and columns of C.
template <class Put>
KVTRIM_INLINE void for_each_vector_of(const sums_of_panel& c, index_t rows, index_t columns, const Put& put) {
    for (index_t half = 0; half < std::min(edge, columns); half += lanes) {
        const auto put_rows = [&](auto some) KVTRIM_INLINED {
            for (index_t t = 0; t < rows; ++t) { put(t, half, load(c.c + t * edge + half), some); }
        };
        if (half + lanes <= columns) { // a masked store is slow to read back
            put_rows(all_lanes{});
        } else {
            put_rows(first_lanes(columns - half));
        }
    }
}

/// sums [rows][row_sums] += |C|, of as many columns as there are.
KVTRIM_INLINE void fold_absolute(const sums_of_panel& c, index_t rows, index_t columns, float* sums) {
    const auto fold = [&](auto left, auto right) KVTRIM_INLINED {
        for (const float* from = c.c; from != c.c + rows * edge; from += edge, sums += row_sums) {
            store(sums, load(sums) + absolute(left.load(from)) + absolute(right.load(from + lanes)));
        }
    };
    if (columns >= edge) {
        fold(all_lanes{}, all_lanes{});
    } else {
        fold(first_lanes(columns), first_lanes(columns - lanes)); // zeros elsewhere
    }
}

/// The norm of a row.
KVTRIM_INLINE float folded(const float* sums) {
    return sum_of_lanes(load(sums));
}

} // namespace KVTRIM_NAMESPACE::kernels::amx

KVTRIM_END_REGION

#endif // KVTRIM_HAS_X86
