// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// widen() makes floats of contiguous elements, exactly, and narrow() makes elements of floats, rounded to nearest even: by
// vectors for f16, bf16 and fp8 where a target loads and stores them, else one by one. A NaN stays a NaN; its bits may differ
// between levels.

#include <kvtrim/kernels/vector_loops.hpp>
#include <kvtrim/simd/choose.hpp>

#define KVTRIM_BODY <kvtrim/kernels/convert.inl>
#include <kvtrim/simd/for_each_target.inl>

namespace KVTRIM_NAMESPACE::kernels {

/// to [count] = the floats of elements [count], exact; double is rounded.
template <class T>
void widen(const T* from, index_t count, float* to) {
    (KVTRIM_CHOOSE(active_cpu_level(), widen_row<T>))(from, count, to);
}

/// to [count] = elements of the floats [count], rounded to nearest even.
template <class T>
void narrow(const float* from, index_t count, T* to) {
    (KVTRIM_CHOOSE(active_cpu_level(), narrow_row<T>))(from, count, to);
}

} // namespace KVTRIM_NAMESPACE::kernels
