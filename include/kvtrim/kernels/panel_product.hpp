// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// One small matrix product, which nearly all kernels are made of.
//
//   C [rows][n] = (or +=) A [rows][inner] * B [inner][panel_columns],  n <= panel_columns
//
// A is read where it is, each element broadcast to all lanes; B is a packed panel of a few vectors, in the first level
// cache. As many sums of C are in registers at a time as the target has room for: at AVX-512 8 rows of 2 vectors, 16
// multiply-adds for 10 loads.
//
// Numerics: each element of C is one chain of multiply-adds in the order of `inner`, whatever rows and columns are computed
// with it, so results do not depend on how a cache is cut into tiles.

#include <kvtrim/simd/simd.hpp>

#include <limits>

namespace kvtrim::kernels {

// The operands of a small product, in any vector width. Element (i, k) is data[i * row + k * step].
struct matrix_in {
    const float* data;
    index_t row;
    index_t step;
};

// Element (i, j) is data[i * row + j], j < columns <= those of a panel; what lies behind `columns` is not touched.
struct panel_out {
    float* data;
    index_t row;
    index_t columns;
};

inline constexpr float masked_logit = -std::numeric_limits<float>::infinity();
inline constexpr float largest_logit = std::numeric_limits<float>::max();
inline constexpr float log2_e = 1.44269504f, ln_2 = 0.693147181f;

// How logits are made of products, and which of them a query at cache row p sees: t <= p, p - t < sliding_window.
struct logit_rules {
    float scale;
    float soft_cap;         // 0: none
    index_t sliding_window; // 0: all
};

} // namespace kvtrim::kernels

#define KVTRIM_BODY <kvtrim/kernels/panel_product.inl>
#include <kvtrim/simd/for_each_target.inl>
