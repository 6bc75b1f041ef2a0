// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Contiguous floats to elements, rounded to nearest even: the way back of widen.hpp. A NaN stays one; which, differs.

#include <kvtrim/kernels/panel_product.hpp>
#include <kvtrim/simd/choose.hpp>

#define KVTRIM_BODY <kvtrim/kernels/narrow.inl>
#include <kvtrim/simd/for_each_target.inl>

namespace kvtrim::kernels {

template <class T>
void narrow(const float* from, index_t count, T* to) {
    (KVTRIM_CHOOSE(active_cpu_level(), narrow_row<T>))(from, count, to);
}

} // namespace kvtrim::kernels
