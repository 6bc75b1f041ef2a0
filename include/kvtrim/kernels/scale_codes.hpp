// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A row of codes to floats, with one scale and zero point for the row, or with one of each per channel.
//
//   to[i] = scale[i * step] * (code[i] - zero[i * step])        step 0 or 1
//
// Codes are signed bytes, or floats that were widened before. Numerics: one rounded difference, one rounded product; the
// same at every level. A zero point that is an integer costs no rounding.

#include <kvtrim/kernels/vector_loops.hpp>
#include <kvtrim/simd/choose.hpp>

namespace KVTRIM_NAMESPACE::kernels {

/// Scales and zero points of a row.
struct code_scales {
    const float* scale; ///< one, or one per channel
    const float* zero;  ///< null: 0 everywhere
    index_t step;       ///< 0: one for the row, 1: one per channel
};

} // namespace KVTRIM_NAMESPACE::kernels

#define KVTRIM_BODY <kvtrim/kernels/scale_codes.inl>
#include <kvtrim/simd/for_each_target.inl>

namespace KVTRIM_NAMESPACE::kernels {

/// to [count] = the floats of codes [count]. Requires count > 0 and step 0 or 1. `to` may be `codes` if these are floats.
template <class Code>
void scale_codes(const Code* codes, index_t count, const code_scales& by, float* to) {
    (KVTRIM_CHOOSE(active_cpu_level(), scale_row<Code>))(codes, count, by, to);
}

} // namespace KVTRIM_NAMESPACE::kernels
