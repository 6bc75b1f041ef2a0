// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The products of kernels/query_tile.hpp by AMX, for bf16 queries, keys and values; all other steps are those of AVX-512.
//
//   logits  [keys][32]      = K [keys][head_dim] * Q^T        weights rounded to bf16
//   out     [value_dim][32] += V^T [value_dim][keys] * weights
//
// Keys and transposed values are copied to the order of tiles, once for all query tiles that share them, and padded with zeros.
// So any head_dim, value_dim and count work, multiples of 32 at full speed. Reading keys in place took 2 to 5 % longer.
//
// Numerics: logits from exact products of bf16, summed in float; weights rounded to bf16 (relative 2^-9) for the product
// with values only, so that log-sum-exp is as exact as in AVX-512 and outputs are within 2e-3 of the largest value. A
// value that is not finite may reach queries of its tile that do not see it (not so in the other versions).
// Cost per 32 queries and 256 keys at head_dim 128, in cycles: 4096 of products (256 of 16), about 1200 of tile loads and
// stores of C, 5500 of weights (measured). Packing a key tile takes 14 thousand, once for up to 1024 queries.

#include <kvtrim/kernels/amx_products.hpp>
#include <kvtrim/kernels/query_tile.hpp>

#if KVTRIM_HAS_X86

KVTRIM_BEGIN_AMX

namespace KVTRIM_NAMESPACE::kernels::amx {

/// Writes sixteen rows of 32 bf16 as a tile of columns, two elements in each lane.
template <class Row>
KVTRIM_INLINE void pack_transposed(const Row& row, bf16* to) {
    registers<lanes> x;
    KVTRIM_UNROLL
    for (index_t i = 0; i < lanes; ++i) { x[i] = _mm512_castsi512_ps(row(i)); }
    transpose(x);
    KVTRIM_UNROLL
    for (index_t i = 0; i < lanes; ++i) { _mm512_storeu_ps(to + i * 32, x[i]); }
}

/// Members: kernels/query_products.inl. Tiles: simd::amx_tiles, or an emulation.
template <class Tiles>
struct basic_query_products {
    using element = bf16;
    using key_tile = basic_key_tile<bf16>;
    static constexpr index_t max_keys = 256, keys_together = 2;
    static constexpr bool scales_queries = false;
    static constexpr auto padded = order::whole_steps;
    [[nodiscard]] static constexpr index_t own_floats(index_t head_dim) {
        return padded(head_dim) * edge / 2;
    }
    [[nodiscard]] static constexpr index_t shared_floats(index_t head_dim, index_t value_dim) {
        return max_keys * (edge + edge / 2 + (padded(head_dim) + padded(value_dim)) / 2);
    }

    index_t head_dim, value_dim;
    bf16* queries; // in the order of B, as weights
    float* logits; // [max_keys][32]
    bf16* weights;
    bf16* keys;   // [max_keys / 16][head_dim / 32][16][32]
    bf16* values; // [value_dim / 16][max_keys / 32][16][32], transposed

    basic_query_products(float* own, float* shared, index_t head_size, index_t value_size)
        : head_dim(head_size), value_dim(value_size), queries(reinterpret_cast<bf16*>(own)), logits(shared),
          weights(reinterpret_cast<bf16*>(shared + max_keys * edge)), keys(weights + max_keys * edge),
          values(keys + max_keys * padded(head_size)) {}

    /// The values of two keys are paired in lanes of 32 bits, which are then transposed.
    void pack(const key_tile& tile) const {
        bf16* to = keys;
        for (index_t first = 0; first < padded(tile.count); first += 16) {
            for (index_t d = 0; d < head_dim; d += edge) {
                for (index_t t = first; t < first + 16; ++t, to += edge) {
                    const bf16* const key = tile.keys + t * tile.key_stride + d;
                    _mm512_storeu_si512(to, load_row(key, t < tile.count ? head_dim - d : 0));
                }
            }
        }
        for (index_t first = 0; first < tile.count; first += edge) {
            for (index_t d = 0; d < padded(value_dim); d += 16) {
                const auto half_row = [&](index_t t) KVTRIM_INLINED {
                    const index_t count = t < tile.count ? std::min<index_t>(value_dim - d, 16) : 0;
                    const __m512i row = load_row(tile.values + t * tile.value_stride + d, count);
                    return _mm512_maskz_cvtepu16_epi32(0xffff, _mm512_maskz_extracti64x4_epi64(0xff, row, 0));
                };
                const auto pairs = [&](index_t i) KVTRIM_INLINED {
                    const __m512i even = half_row(first + 2 * i), odd = half_row(first + 2 * i + 1);
                    return even | _mm512_maskz_slli_epi32(0xffff, odd, 16);
                };
                pack_transposed(pairs, values + d * max_keys + first * 16);
            }
        }
    }

    void take_queries(const bf16* from, index_t stride, index_t count, float) const {
        for (index_t d = 0; d < head_dim; d += edge) {
            for (index_t half = 0; half < edge; half += 16) {
                const auto row = [&](index_t i) KVTRIM_INLINED {
                    const index_t r = half + i;
                    return load_row(from + r * stride + d, r < count ? head_dim - d : 0);
                };
                pack_transposed(row, queries + order::index(head_dim, d, half));
            }
        }
    }

    /// Takes the tiles, which add_values() gives back.
    void multiply_keys(const key_tile& tile) const {
        Tiles::configure();
        const index_t dims = padded(head_dim);
        for (index_t t = 0; t < tile.count; t += edge) {
            zero_c<Tiles>();
            multiply(keys + t * dims, 16 * dims, queries, dims);
            store_c<Tiles>(logits + t * edge);
        }
    }

    KVTRIM_INLINE void put_weights(const floats (&x)[2], index_t t, index_t lane) const {
        alignas(64) static constexpr std::uint16_t zipped[] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                               21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                               11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
        const auto both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(x[1], x[0]));
        _mm512_storeu_si512(weights + order::index(max_keys, t, lane),
                            _mm512_maskz_permutexvar_epi16(0xffffffff, _mm512_load_si512(zipped), both));
    }

    void add_values(const key_tile& tile, bool, float* out) const {
        for (index_t d = 0; d < value_dim; d += edge) {
            load_c<Tiles>(out + d * edge);
            multiply(values + d * max_keys, 16 * max_keys, weights, padded(tile.count));
            store_c<Tiles>(out + d * edge);
        }
        Tiles::release();
    }

  private:
    /// C += A * B. a [2][inner / 32][16][32], the second half a_half elements behind the first.
    static void multiply(const bf16* a, index_t a_half, const bf16* b, index_t inner) {
        for (index_t k = 0; k < inner; k += edge, a += tile_elements, b += 2 * tile_elements) {
            multiply_step<Tiles>(a, a + a_half, tile_row_bytes, b);
        }
    }
};
using query_products = basic_query_products<tiles>;

} // namespace KVTRIM_NAMESPACE::kernels::amx

#define KVTRIM_TARGET amx
#include <kvtrim/kernels/query_tile.inl>
#undef KVTRIM_TARGET

KVTRIM_END_REGION

#endif // KVTRIM_HAS_X86
