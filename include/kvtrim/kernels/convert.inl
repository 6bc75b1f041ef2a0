// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET {

using namespace simd::KVTRIM_TARGET;

// Calls step(position) for whole vectors, sixteen elements at a time and then one vector, and returns the position behind
// them: of the instructions of a loop over single vectors of four, more than half would be the loop's own.
template <class Step>
KVTRIM_INLINE index_t for_whole_vectors(index_t count, const Step& step) {
    index_t i = 0;
    for (; i + 16 <= count; i += 16) {
        KVTRIM_UNROLL
        for (index_t v = 0; v < 16; v += lanes) { step(i + v); }
    }
    for (; i + lanes <= count; i += lanes) { step(i); }
    return i;
}

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
