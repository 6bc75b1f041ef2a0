// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET {

using namespace simd::KVTRIM_TARGET;

template <class T>
void widen_row(const T* from, index_t count, float* to) {
    index_t i = 0;
    if constexpr (requires { store(to, load(from)); }) {
        i = for_whole_vectors(count, [&](index_t at) KVTRIM_INLINED { store(to + at, load(from + at)); });
    }
    for (; i < count; ++i) { to[i] = element_traits<T>::to_float(from[i]); }
}

template <class T>
void narrow_row(const float* from, index_t count, T* to) {
    index_t i = 0;
    if constexpr (requires { store(to, load(from)); }) {
        i = for_whole_vectors(count, [&](index_t at) KVTRIM_INLINED { store(to + at, load(from + at)); });
    }
    for (; i < count; ++i) { to[i] = element_traits<T>::from_float(from[i]); }
}

} // namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET
