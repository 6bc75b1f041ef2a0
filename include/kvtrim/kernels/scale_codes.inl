// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET {

using namespace simd::KVTRIM_TARGET;

// One loop per combination of scales and zero points: a branch inside would be taken for every vector.
template <bool PerChannel, bool HasZero, class Code>
KVTRIM_INLINE void scale_row_by(const Code* codes, index_t count, const code_scales& by, float* to) {
    const float* const scales = by.scale;
    const float* const zeros = by.zero;
    const floats scale = broadcast(scales[0]), zero = broadcast(HasZero ? zeros[0] : 0.0f);
    index_t i = for_whole_vectors(count, [&](index_t at) KVTRIM_INLINED {
        floats x = load(codes + at);
        if constexpr (HasZero) { x = x - (PerChannel ? load(zeros + at) : zero); }
        store(to + at, (PerChannel ? load(scales + at) : scale) * x);
    });
    for (; i < count; ++i) {
        const index_t s = PerChannel ? i : 0;
        to[i] = scales[s] * (static_cast<float>(codes[i]) - (HasZero ? zeros[s] : 0.0f));
    }
}

template <class Code>
void scale_row(const Code* codes, index_t count, const code_scales& by, float* to) {
    if (by.step == 0) {
        return by.zero != nullptr ? scale_row_by<false, true>(codes, count, by, to)
                                  : scale_row_by<false, false>(codes, count, by, to);
    }
    return by.zero != nullptr ? scale_row_by<true, true>(codes, count, by, to)
                              : scale_row_by<true, false>(codes, count, by, to);
}

} // namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET
