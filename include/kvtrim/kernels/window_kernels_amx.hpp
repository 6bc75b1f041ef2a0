// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The logits of kernels/window_kernels.hpp by AMX, for keys and queries of bf16; all other steps are those of AVX-512.
//
//   packed   panels of 32 queries, [head_dim / 32][2 halves][16 pairs of dimensions][16 queries][2]
//
// Keys are read in place, 32 at a time with all panels: 8 KiB of keys and 32 KiB of queries at head_dim 128, so that every
// key is read from memory once. The scale comes after the product, because scaled queries would have to be rounded.
// Any head_dim, count of tokens and of rows works, multiples of 32 at full speed.
//
// Numerics: products of bf16 are exact, their sums float: as exact as the products of the same elements in float. Elements
// below 2^-126 count as 0.
// Cost per 32 keys and 128 queries at head_dim 128, in cycles: 1024 of products (64 of 16), 64 vectors of C per panel; 3200
// measured.

#include <kvtrim/kernels/amx_products.hpp>
#include <kvtrim/kernels/soon_read.hpp>

#if KVTRIM_HAS_X86

namespace KVTRIM_NAMESPACE::kernels::amx {

/// window_kernels::pack_bf16_queries.
inline constexpr auto pack_queries = pack_columns<packed_index, whole_steps>;

/// out [tokens, rows] = scale * c [tokens][32], of the 16 columns that begin at both pointers, or fewer.
template <class Lanes>
KVTRIM_INLINE_AVX512 void copy_scaled(const float* c, index_t tokens, float scale, float* out, index_t rows,
                                      Lanes some) {
    const __m512 unit = _mm512_set1_ps(scale);
    for (index_t t = 0; t < tokens; ++t) { some.store(out + t * rows, unit * _mm512_load_ps(c + t * step)); }
}

/// window_kernels::bf16_logits. Tiles: simd::amx_tiles, or an emulation.
template <class Tiles>
KVTRIM_TARGET_AMX void logits(const bf16* keys, index_t key_stride, index_t tokens, const bf16* packed,
                              index_t rows, index_t head_dim, float scale, float soft_cap, float* out,
                              soon_read next) {
    even_prefetch soon(next, (tokens + step - 1) / step);
    alignas(64) float c[step * step];
    Tiles::configure();
    for (index_t t = 0; t < tokens; t += step) {
        soon.step();
        for (index_t r = 0; r < rows; r += step) {
            multiply_panel<Tiles>({keys, key_stride, tokens, head_dim}, t,
                                  packed + r * whole_steps(head_dim));
            store_c<Tiles>(c, step * static_cast<index_t>(sizeof(float)));
            for (index_t half = 0; half < std::min(step, rows - r); half += 16) {
                const index_t count = std::min(step, tokens - t), columns = rows - r - half;
                float* const to = out + t * rows + r + half;
                if (columns >= 16) { // a masked store is slow to read back
                    copy_scaled(c + half, count, scale, to, rows, avx512::all_lanes{});
                } else {
                    copy_scaled(c + half, count, scale, to, rows, avx512::first_lanes(columns));
                }
            }
        }
    }
    Tiles::release();
    if (soft_cap > 0) { avx512::cap_logits(out, tokens * rows, {soft_cap}); }
}

/// The steps of a target's window_kernels, with these products.
template <const auto& Steps>
inline constexpr auto with_logits = [] {
    auto steps = Steps;
    steps.pack_bf16_queries = pack_queries;
    steps.bf16_logits = logits<simd::amx_tiles>;
    return steps;
}();

} // namespace KVTRIM_NAMESPACE::kernels::amx

#endif // KVTRIM_HAS_X86
