// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// query_tile by AMX for bf16 queries, keys and values: products of bf16 in tiles, all else as query_tile by AVX-512.
//
//   logits  [keys][32]      = K [keys][head_dim] * Q^T        weights = softmax step, rounded to bf16
//   out     [value_dim][32] += V^T [value_dim][keys] * weights
//
// Both products are one kernel, C [32][32] += A * B on four tiles: A row by row, B as pairs of rows with 32 queries
// beside each other. pack() copies keys and transposed values to tiles of 16 rows of 32, once for all query tiles that
// share them, and pads with zeros: any head_dim, value_dim and count work, multiples of 32 at full speed.
// The three phases of attend() - logits, weights, products with values - each find what they need in the L1 cache.
//
// Numerics: logits from exact products of bf16, summed in float; weights rounded to bf16 (relative 2^-9) for the product
// with values only, so that log-sum-exp is as exact as in AVX-512 and outputs are within 2e-3 of the largest value. A
// value that is not finite may reach queries of its tile that do not see it (not so in the other versions).
// Cost per 32 queries and 256 keys at head_dim 128, in cycles: 4096 of products (256 of 16), about 1200 of tile loads and
// stores of C, 5500 of weights (measured); together 37 % of the peak of AMX. That is an estimate: tiles were tested through
// an emulation and have not been measured on hardware. Packing a key tile takes 14 thousand, once for up to 1024 queries.

#include <kvtrim/kernels/amx_products.hpp>
#include <kvtrim/kernels/query_tile.hpp>

#if KVTRIM_HAS_X86

namespace KVTRIM_NAMESPACE::kernels {

namespace amx {

/// Writes the transposed of 16 rows as a tile of bf16, two in each lane.
KVTRIM_INLINE_AVX512 void store_transposed(avx512::floats (&rows)[16], bf16* to) {
    avx512::transpose(rows);
    KVTRIM_UNROLL
    for (std::size_t i = 0; i < 16; ++i) { _mm512_storeu_ps(to + i * step, rows[i]); }
}

/// A row of 32 bf16 from two vectors of weights [16], lane by lane: w0[0], w1[0], w0[1], ...
KVTRIM_INLINE_AMX __m512i pair_up(__m512 w0, __m512 w1) {
    alignas(64) static constexpr std::uint16_t order[step] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                              21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                              11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const auto rounded = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(w1, w0));
    return _mm512_maskz_permutexvar_epi16(0xffffffff, _mm512_load_si512(order), rounded);
}

} // namespace amx

/// query_tile of bf16. Tiles: simd::amx_tiles, or an emulation.
template <class Tiles>
class basic_query_tile_amx {
  public:
    /// Of queries, keys and values.
    using element = bf16;
    /// The key tile that attend() takes.
    using key_tile = basic_key_tile<bf16>;
    /// Queries of a tile.
    static constexpr index_t max_queries = avx512::panel_columns;
    /// Keys of a key tile.
    [[nodiscard]] static constexpr index_t max_keys(index_t) { return most_keys; }
    /// Floats of scratch of one tile.
    [[nodiscard]] static constexpr index_t own_floats(index_t head_dim, index_t value_dim) {
        return avx512::panel_softmax::memory_floats(amx::whole_steps(value_dim)) +
               max_queries * amx::whole_steps(head_dim) / 2;
    }
    /// Floats of scratch that all tiles of a thread share.
    [[nodiscard]] static constexpr index_t shared_floats(index_t head_dim, index_t value_dim) {
        return most_keys * (max_queries + max_queries / 2 +
                            (amx::whole_steps(head_dim) + amx::whole_steps(value_dim)) / 2);
    }

    /// Of own [own_floats()], aligned for doubles, and shared [shared_floats()].
    basic_query_tile_amx(float* own, float* shared, index_t head_dim, index_t value_dim)
        : head_dim_(head_dim), value_dim_(value_dim), softmax_(own, amx::whole_steps(value_dim)),
          queries_(reinterpret_cast<bf16*>(own + avx512::panel_softmax::memory_floats(softmax_.value_dim))),
          shared_(shared, head_dim) {}

    /// Packs keys and values, for attend() to any number of the tile's first keys.
    KVTRIM_TARGET_AMX static void pack(const key_tile& tile, float* shared, index_t head_dim,
                                       index_t value_dim) {
        const shared_memory to(shared, head_dim);
        pack_keys(tile, head_dim, to.keys);
        pack_values(tile, value_dim, to.values);
    }

    /// Takes queries [count, head_dim], count <= max_queries. A model with an attention sink passes its logit, others
    /// masked_logit.
    KVTRIM_TARGET_AMX void begin(const bf16* queries, index_t query_stride, index_t count, float sink_logit,
                                 const logit_rules&) {
        bf16* to = queries_;
        for (index_t d = 0; d < head_dim_; d += amx::step) {
            for (index_t half = 0; half < max_queries; half += 16, to += amx::tile_elements) {
                avx512::floats rows[16];
                KVTRIM_UNROLL
                for (index_t i = 0; i < 16; ++i) {
                    const index_t r = half + i;
                    rows[i] = _mm512_castsi512_ps(
                        amx::load_row(queries + r * query_stride + d, r < count ? head_dim_ - d : 0));
                }
                amx::store_transposed(rows, to);
            }
        }
        softmax_.begin(sink_logit);
    }

    /// Adds the attention to a key tile. Requires that it, or a longer one that begins with it, was packed.
    KVTRIM_TARGET_AMX void attend(const key_tile& tile, const logit_rules& rules, query_range queries) {
        const index_t keys = amx::whole_steps(tile.count);
        Tiles::configure();
        multiply_keys(keys);
        if (rules.soft_cap > 0) {
            avx512::cap_logits(shared_.logits, tile.count * max_queries,
                               avx512::logit_cap{rules.soft_cap, log2_e, rules.scale});
        }
        if (!all_visible(tile, rules, queries)) {
            avx512::mask_logits(shared_.logits, tile.count, tile.first_position, rules, queries);
        }
        std::fill(shared_.logits + tile.count * max_queries, shared_.logits + keys * max_queries,
                  masked_logit);
        const float scale = rules.soft_cap > 0 ? 1.0f : rules.scale * log2_e;
        make_weights(keys, scale, 0);
        make_weights(keys, scale, 16);
        multiply_values(keys);
        Tiles::release();
    }

    /// Writes out [count, value_dim] and log_sum_exp [count], which may be null.
    void finish(index_t count, float* out, float* log_sum_exp) const {
        softmax_.finish(count, value_dim_, out, log_sum_exp);
    }

  private:
    static constexpr index_t most_keys = 256;
    struct shared_memory {
        float* logits; // [max_keys][32]
        bf16* weights; // [max_keys / 32][2 halves][16 pairs of keys][16 queries][2]
        bf16* keys;    // [max_keys / 16][head_dim / 32][16][32]
        bf16* values;  // [value_dim / 16][max_keys / 32][16][32], transposed

        shared_memory(float* memory, index_t head_dim)
            : logits(memory), weights(reinterpret_cast<bf16*>(memory + most_keys * max_queries)),
              keys(weights + most_keys * max_queries), values(keys + most_keys * amx::whole_steps(head_dim)) {
        }
    };
    static constexpr index_t row_bytes = max_queries * static_cast<index_t>(sizeof(float)); // of C

    KVTRIM_TARGET_AMX static void pack_keys(const key_tile& tile, index_t head_dim, bf16* to) {
        for (index_t first = 0; first < amx::whole_steps(tile.count); first += 16) {
            for (index_t d = 0; d < head_dim; d += amx::step) {
                for (index_t t = first; t < first + 16; ++t, to += amx::step) {
                    const bf16* const key = tile.keys + t * tile.key_stride + d;
                    _mm512_storeu_si512(to, amx::load_row(key, t < tile.count ? head_dim - d : 0));
                }
            }
        }
    }

    // The values of two keys are paired in lanes of 32 bits, which are then transposed.
    KVTRIM_TARGET_AMX static void pack_values(const key_tile& tile, index_t value_dim, bf16* to) {
        for (index_t first = 0; first < tile.count; first += amx::step) {
            for (index_t d = 0; d < amx::whole_steps(value_dim); d += 16) {
                const auto dims = static_cast<__mmask16>(amx::first_lanes(value_dim - d));
                const auto half_row = [&](index_t t) KVTRIM_TARGET_AMX {
                    const bf16* const value = tile.values + t * tile.value_stride + d;
                    return _mm512_maskz_cvtepu16_epi32(
                        0xffff, _mm256_maskz_loadu_epi16(t < tile.count ? dims : 0, value));
                };
                avx512::floats rows[16];
                KVTRIM_UNROLL
                for (index_t i = 0; i < 16; ++i) {
                    const auto even = half_row(first + 2 * i), odd = half_row(first + 2 * i + 1);
                    rows[i] = _mm512_castsi512_ps(even | _mm512_maskz_slli_epi32(0xffff, odd, 16));
                }
                amx::store_transposed(rows, to + d * most_keys + first * 16);
            }
        }
    }

    // C += A * B in tiles 0 to 3. a [2][steps][16][32], the second half a_half elements behind the first;
    // b [steps][2][16][16][2].
    KVTRIM_TARGET_AMX static void multiply(const bf16* a, index_t a_half, const bf16* b, index_t steps) {
        for (index_t s = 0; s < steps; ++s, a += amx::tile_elements, b += 2 * amx::tile_elements) {
            amx::multiply_step<Tiles>(a, a + a_half, amx::tile_row_bytes, b);
        }
    }

    KVTRIM_TARGET_AMX void multiply_keys(index_t keys) {
        const index_t dims = amx::whole_steps(head_dim_);
        for (index_t t = 0; t < keys; t += amx::step) {
            amx::zero_c<Tiles>();
            multiply(shared_.keys + t * dims, 16 * dims, queries_, dims / amx::step);
            amx::store_c<Tiles>(shared_.logits + t * max_queries, row_bytes);
        }
    }

    KVTRIM_TARGET_AMX void multiply_values(index_t keys) {
        for (index_t d = 0; d < softmax_.value_dim; d += amx::step) {
            float* const c = softmax_.out + d * max_queries;
            Tiles::template load<0>(c, row_bytes);
            Tiles::template load<1>(c + 16, row_bytes);
            Tiles::template load<2>(c + 16 * max_queries, row_bytes);
            Tiles::template load<3>(c + 16 * max_queries + 16, row_bytes);
            multiply(shared_.values + d * most_keys, 16 * most_keys, shared_.weights, keys / amx::step);
            amx::store_c<Tiles>(c, row_bytes);
        }
    }

    // Turns sixteen lanes of logits [keys], which times scale are in units of log 2, into weights; keys are whole steps.
    KVTRIM_TARGET_AMX void make_weights(index_t keys, float scale, index_t half) {
        const float* const logits = shared_.logits + half;
        const avx512::floats unit = avx512::broadcast(scale);
        const avx512::floats maximum = softmax_.raise(half, unit * avx512::highest_of(logits, keys));
        const auto weights_of = [&](index_t t) KVTRIM_INLINED KVTRIM_TARGET_AMX {
            return avx512::binary_weight_of(unit * avx512::load(logits + t * max_queries), maximum);
        };
        avx512::floats sum = avx512::broadcast(0.0f);
        for (index_t t = 0; t < keys; t += 2) {
            const avx512::floats even = weights_of(t), odd = weights_of(t + 1);
            sum = sum + (even + odd);
            const index_t at = t / amx::step * 2 * amx::tile_elements + half * amx::step;
            _mm512_storeu_si512(shared_.weights + at + t % amx::step * 16, amx::pair_up(even, odd));
        }
        softmax_.add(half, sum);
    }

    index_t head_dim_;
    index_t value_dim_;
    avx512::panel_softmax softmax_; // its value_dim is a whole number of steps
    bf16* queries_;                 // [head_dim / 32][2 halves][16 pairs of dimensions][16 queries][2]
    shared_memory shared_;
};

/// The query tile on the processor's tiles.
using query_tile_amx = basic_query_tile_amx<simd::amx_tiles>;

namespace amx {

/// Calls fn<Tile>() with the AMX class, as the function of that name in kernels/query_tile.inl does.
template <class Fn>
decltype(auto) call_with_query_tile(Fn& fn) {
    return fn.template operator()<query_tile_amx>();
}

} // namespace amx

} // namespace KVTRIM_NAMESPACE::kernels

#endif // KVTRIM_HAS_X86
