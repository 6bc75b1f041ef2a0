// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

namespace kvtrim::kernels::KVTRIM_TARGET {

using namespace simd::KVTRIM_TARGET;

template <class T>
void widen_row(const T* from, index_t count, float* to) {
    index_t i = 0;
    for (; i + lanes <= count; i += lanes) { store(to + i, load(from + i)); }
    for (; i < count; ++i) { to[i] = to_float(from[i]); }
}

} // namespace kvtrim::kernels::KVTRIM_TARGET
