// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The logits of kernels/window_kernels.hpp by BFMMLA, for keys and queries of bf16; all other steps are those of NEON.
//
// Keys are read in place, eight at a time with all panels of queries. The scale comes after the product, because scaled queries
// would have to be rounded. Numerics and cost: kernels/bfmmla_products.hpp.

#include <kvtrim/kernels/bfmmla_products.hpp>
#include <kvtrim/kernels/soon_read.hpp>

#if KVTRIM_HAS_NEON

namespace KVTRIM_NAMESPACE::kernels::bfmmla {

/// window_kernels::pack_bf16_queries.
inline constexpr auto pack_queries = pack_columns<packed_index, whole_steps>;

KVTRIM_BEGIN_NEON_BF16

/// window_kernels::bf16_logits.
inline void logits(const bf16* keys, index_t key_stride, index_t tokens, const bf16* packed, index_t rows,
                   index_t head_dim, float scale, float soft_cap, float* out, soon_read next) {
    even_prefetch soon(next, (tokens + edge - 1) / edge);
    const float32x4_t unit = vdupq_n_f32(scale);
    for (index_t t = 0; t < tokens; t += edge) {
        soon.step();
        for (index_t r = 0; r < rows; r += edge) {
            sums_of_panel c;
            multiply_panel({keys, key_stride, tokens, head_dim}, t, packed + r * whole_steps(head_dim), c);
            float* const to = out + t * rows + r;
            const auto put = [&](index_t token, index_t column, float64x2_t x, auto some) KVTRIM_INLINED {
                if (t + token < tokens) {
                    some.store(to + token * rows + column, vreinterpretq_f32_f64(x) * unit);
                }
            };
            const auto put_all = [&](auto lanes_of) KVTRIM_INLINED {
                KVTRIM_UNROLL
                for (int n = 0; n < 16; n += 2) { // two rows of four columns
                    const float64x2_t left = vreinterpretq_f64_f32(c[n]),
                                      right = vreinterpretq_f64_f32(c[n + 1]);
                    const index_t token = n / 4 * 2, column = n % 4 * 2;
                    put(token, column, vzip1q_f64(left, right), lanes_of(column));
                    put(token + 1, column, vzip2q_f64(left, right), lanes_of(column));
                }
            };
            if (r + edge <= rows) {
                put_all([](index_t) KVTRIM_INLINED { return neon::all_lanes{}; });
            } else {
                put_all([&](index_t column) { return neon::first_lanes(rows - r - column); });
            }
        }
    }
    if (soft_cap > 0) { neon::cap_logits(out, tokens * rows, {soft_cap}); }
}

KVTRIM_END_REGION

/// The steps of a target's window_kernels, with these products.
template <const auto& Steps>
inline constexpr auto with_logits = [] {
    auto steps = Steps;
    steps.pack_bf16_queries = pack_queries;
    steps.bf16_logits = logits;
    return steps;
}();

} // namespace KVTRIM_NAMESPACE::kernels::bfmmla

#endif // KVTRIM_HAS_NEON
