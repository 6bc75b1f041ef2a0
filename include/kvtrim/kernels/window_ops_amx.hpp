// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The logits of window_ops in AMX, for keys and queries of bf16; all other steps are those of AVX-512.
//
//   packed   panels of 32 queries, [head_dim / 32][2 halves][16 pairs of dimensions][16 queries][2]
//
// Keys are read where they are, 32 at a time past all panels: 8 KiB of keys and 32 KiB of queries at head_dim 128, so that
// memory gives every key once. The scale comes after the product, because scaled queries would have to be rounded.
// Any head_dim, count of tokens and of rows works, multiples of 32 at full speed.
//
// Numerics: products of bf16 are exact, their sums float: as exact as the products of the same elements in float. Elements
// below 2^-126 count as 0.
// Cost per 32 keys and 128 queries at head_dim 128, in cycles: 1024 of products (64 of 16), 64 vectors of C per panel. An
// estimate, as in kernels/query_tile_amx.hpp: tiles were tested through an emulation, not measured on hardware.

#include <kvtrim/kernels/amx_blocks.hpp>
#include <kvtrim/kernels/window_ops.hpp>

#if KVTRIM_HAS_X86

namespace kvtrim::kernels::amx {

inline void pack_queries(const bf16* queries, index_t query_stride, index_t first_row, index_t count,
                         index_t head_dim, bf16* packed) {
    for (index_t i = 0; i < count; ++i) {
        for (index_t d = 0; d < whole_steps(head_dim); ++d) {
            packed[packed_index(head_dim, d, first_row + i)] =
                d < head_dim ? queries[i * query_stride + d] : bf16{0};
        }
    }
}

// out [tokens, rows] from column `first_row` on = scale * c [tokens][32], as far as there are columns.
KVTRIM_INLINE_AVX512 void copy_scaled(const float* c, index_t tokens, float scale, float* out, index_t rows,
                                      index_t first_row) {
    const __m512 unit = _mm512_set1_ps(scale);
    const __mmask16 left = avx512::first_lanes(rows - first_row);
    const __mmask16 right = avx512::first_lanes(rows - first_row - 16);
    for (index_t t = 0; t < tokens; ++t, c += step) {
        float* const to = out + t * rows + first_row;
        const __m512 low = _mm512_mul_ps(unit, _mm512_load_ps(c));
        const __m512 high = _mm512_mul_ps(unit, _mm512_load_ps(c + 16));
        if (right == 0xffff) { // what a masked store wrote is slow to read again
            _mm512_storeu_ps(to, low);
            _mm512_storeu_ps(to + 16, high);
        } else {
            _mm512_mask_storeu_ps(to, left, low);
            _mm512_mask_storeu_ps(to + 16, right, high);
        }
    }
}

// Tiles: amx_tiles, or an emulation.
template <class Tiles>
KVTRIM_TARGET_AMX void logits(const bf16* keys, index_t key_stride, index_t tokens, const bf16* packed,
                              index_t rows, index_t head_dim, float scale, float soft_cap, float* out,
                              soon_read next) {
    constexpr index_t line_bytes = 64;
    const index_t steps = (tokens + step - 1) / step;
    const index_t step_bytes = (next.bytes / steps + line_bytes) / line_bytes * line_bytes;
    const char* line = static_cast<const char*>(next.data);
    const char* const end = line + next.bytes;
    alignas(64) float c[step * step];
    Tiles::configure();
    for (index_t t = 0; t < tokens; t += step) {
        for (const char* stop = line + std::min<index_t>(step_bytes, end - line); line < stop;
             line += line_bytes) {
            _mm_prefetch(line, _MM_HINT_T1);
        }
        for (index_t r = 0; r < rows; r += step) {
            multiply_panel<Tiles>({keys, key_stride, tokens, head_dim}, t,
                                  packed + r * whole_steps(head_dim));
            store_c<Tiles>(c, step * static_cast<index_t>(sizeof(float)));
            copy_scaled(c, std::min(step, tokens - t), scale, out + t * rows, rows, r);
        }
    }
    Tiles::release();
    if (soft_cap > 0) { avx512::cap_logits(out, tokens * rows, soft_cap, 1.0f); }
}

} // namespace kvtrim::kernels::amx

#endif // KVTRIM_HAS_X86
