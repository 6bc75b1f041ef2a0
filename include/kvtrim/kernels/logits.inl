// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET {

using namespace simd::KVTRIM_TARGET;

// e^(logit - maximum), the logit at most the largest float; 0 for NaN and below e^-75: so small a weight does not change a
// float sum, and denormals would make products ten times slower.
KVTRIM_INLINE floats weight_of(floats logit, floats maximum) {
    const floats x = min(broadcast(largest_logit), logit) - maximum;
    return keep(greater(x, broadcast(-75.0f)), exp2(x * broadcast(log2_e)));
}

// The same for logits in units of log 2: one multiplication less.
KVTRIM_INLINE floats binary_weight_of(floats logit, floats maximum) {
    const floats x = min(broadcast(largest_logit), logit) - maximum;
    return keep(greater(x, broadcast(-108.0f)), exp2(x));
}

// The maximum of a softmax over tiles of keys once it has seen `found`, at most the largest float, and where it rose.
struct raised_maximum {
    floats highest;
    mask rose;

    KVTRIM_INLINE raised_maximum(floats old, floats found)
        : highest(min(max(found, old), broadcast(largest_logit))), rose(greater(highest, old)) {} // NaN: old

    // The factor for what was summed so far, from the weight of the old maximum below the new: exactly 1 where the maximum
    // stays, because a computed 2^0 would round each time that another lane's maximum rises.
    [[nodiscard]] KVTRIM_INLINE floats rescale(floats old_weight) const {
        return select(rose, old_weight, broadcast(1.0f));
    }
};

// cap * tanh(logit / cap) with tanh x = 1 - 2 / (e^2x + 1); for small x, where that is mostly rounding error,
// x - x^3 / 3 + 2 x^5 / 15 - 17 x^7 / 315. The input is multiplied by `scale`, the output by `unit`.
struct logit_cap {
    float soft_cap, unit = 1.0f, scale = 1.0f;

    [[nodiscard]] KVTRIM_INLINE floats operator()(floats logit) const {
        const floats one = broadcast(1.0f);
        const floats x = logit * broadcast(2 * 1.44269504f / soft_cap * scale);
        // beyond 60 tanh is 1 in float
        const floats power = exp2(max(broadcast(-60.0f), min(broadcast(60.0f), x)));
        const floats tanh = one - broadcast(2.0f) / (power + one);
        const floats ratio = logit * broadcast(scale / soft_cap);
        const floats square = ratio * ratio;
        floats series = fma(square, broadcast(-17.0f / 315), broadcast(2.0f / 15));
        series = fma(square, series, broadcast(-1.0f / 3));
        series = fma(square, series, one);
        const floats small = logit * broadcast(unit * scale) * series;
        return select(greater(broadcast(0.04f), square), small, broadcast(unit * soft_cap) * tanh);
    }
};

// In place, with one body for whole vectors and the rest: the last vector ends at the last logit. Logits that it has in common
// with the one before are those of before the cap, so that none is capped twice. Fewer logits than lanes move to a full vector.
inline void cap_logits(float* logits, index_t count, const logit_cap& cap) {
    float few[static_cast<std::size_t>(lanes)] = {};
    const bool are_few = count < lanes;
    if (are_few) { std::copy_n(logits, count, few); }
    float* const at = are_few ? few : logits;
    const index_t last = std::max(count, lanes) - lanes;
    const floats uncapped = load(at + last);
    for (index_t i = 0; i < count; i += lanes) {
        const bool is_whole = i <= last;
        store(at + (is_whole ? i : last), cap(is_whole ? load(at + i) : uncapped));
    }
    if (are_few) { std::copy_n(few, count, logits); }
}

} // namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET
