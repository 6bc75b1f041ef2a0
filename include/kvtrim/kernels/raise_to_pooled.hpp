// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The highest pooled attention of each token: pooling and maximum in one pass over a tile.
//
//   best[t] = max(best[t], max over rows r of weight[r] * (sum of attention[j, r] over |j - t| <= half))
//
// Shapes: attention [before + tokens + after, rows], pointing at row `before`; weight [rows], best [tokens], not negative.
// Cost: 2 half + 1 additions per weight of attention. Numerics: float, in the order of the tokens.

#include <kvtrim/simd/choose.hpp>
#include <kvtrim/simd/simd.hpp>

#define KVTRIM_BODY <kvtrim/kernels/raise_to_pooled.inl>
#include <kvtrim/simd/for_each_target.inl>

namespace KVTRIM_NAMESPACE::kernels {

/// best [tokens] = max(best, pooled attention), as above.
inline void raise_to_pooled(const float* attention, index_t tokens, index_t before, index_t after,
                            index_t half, index_t rows, const float* weight, float* best) {
    (KVTRIM_CHOOSE(active_cpu_level(), raise_to_pooled))(attention, tokens, before, after, half, rows, weight,
                                                         best);
}

} // namespace KVTRIM_NAMESPACE::kernels
