// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

namespace KVTRIM_NAMESPACE::simd::KVTRIM_TARGET {

template <class T>
void widen_row(const T* from, index_t count, float* to) {
    index_t i = 0;
    if constexpr (requires { store(to, load(from)); }) {
        for (; i + lanes <= count; i += lanes) { store(to + i, load(from + i)); }
    }
    for (; i < count; ++i) { to[i] = element_traits<T>::to_float(from[i]); }
}

template <class T>
void narrow_row(const float* from, index_t count, T* to) {
    index_t i = 0;
    if constexpr (requires { store(to, load(from)); }) {
        for (; i + lanes <= count; i += lanes) { store(to + i, load(from + i)); }
    }
    for (; i < count; ++i) { to[i] = element_traits<T>::from_float(from[i]); }
}

} // namespace KVTRIM_NAMESPACE::simd::KVTRIM_TARGET
