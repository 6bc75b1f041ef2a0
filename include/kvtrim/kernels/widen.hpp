// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Contiguous f16, bf16 and fp8 elements to floats, exactly.

#include <kvtrim/kernels/panel_product.hpp>
#include <kvtrim/simd/choose.hpp>

#include <type_traits>

namespace kvtrim::kernels {

// The elements that have a vector path here.
template <class T>
inline constexpr bool is_widened = std::is_same_v<T, f16> || std::is_same_v<T, bf16> ||
                                   std::is_same_v<T, f8_e4m3> || std::is_same_v<T, f8_e5m2>;

} // namespace kvtrim::kernels

#define KVTRIM_BODY <kvtrim/kernels/widen.inl>
#include <kvtrim/simd/for_each_target.inl>

namespace kvtrim::kernels {

template <class T>
void widen(const T* from, index_t count, float* to) {
    (KVTRIM_CHOOSE(active_cpu_level(), widen_row<T>))(from, count, to);
}

} // namespace kvtrim::kernels
