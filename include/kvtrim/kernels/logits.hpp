// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Logits and their softmax weights, a vector at a time: what every kernel of attention shares.
//
//   weight_of(logit, maximum)        e^(logit - maximum); binary_weight_of() the same for logits in units of log 2
//   raised_maximum(old, found)       the maximum of a softmax over tiles, and the factor for what was summed before it rose
//   cap_logits(logits, count, cap)   cap * tanh(logit / cap), in place
//
// Numerics: NaN counts as masked and +infinity as the largest float; 2^x as in simd/exp2.inl.

#include <kvtrim/simd/simd.hpp>

#include <algorithm>
#include <limits>

namespace KVTRIM_NAMESPACE::kernels {

/// The logit of a key that a query does not see.
inline constexpr float masked_logit = -std::numeric_limits<float>::infinity();
/// Logits of +infinity count as this.
inline constexpr float largest_logit = std::numeric_limits<float>::max();
/// Factors between natural logarithms and those to base 2.
inline constexpr float log2_e = 1.44269504f, ln_2 = 0.693147181f;

/// How logits are made of products, and which of them a query at cache row p sees: t <= p, p - t < sliding_window.
struct logit_rules {
    float scale;            ///< of the products
    float soft_cap;         ///< 0: none
    index_t sliding_window; ///< 0: all
};

} // namespace KVTRIM_NAMESPACE::kernels

#define KVTRIM_BODY <kvtrim/kernels/logits.inl>
#include <kvtrim/simd/for_each_target.inl>
