// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Primitives that are the same in the targets of four lanes: included inside their namespaces.

// Lanes beyond the count access the first element instead, so that there is no branch inside a loop.
class first_lanes {
  public:
    explicit first_lanes(index_t count) : count_(std::clamp<index_t>(count, 0, lanes)) {
        for (int i = 0; i < 4; ++i) { there_[i] = i < count_ ? 0xffffffffu : 0u; }
        for (index_t i = 1; i < lanes; ++i) { at_[i] = i < count_ ? i : 0; }
    }

    [[nodiscard]] KVTRIM_INLINE floats load(const float* from) const {
        if (count_ == 0) { return broadcast(0.0f); }
        return keep(floats{from[0], from[at_[1]], from[at_[2]], from[at_[3]]});
    }
    KVTRIM_INLINE void store(float* to, floats x) const {
        if (count_ == 0) { return; }
        to[at_[3]] = x[3];
        to[at_[2]] = x[2];
        to[at_[1]] = x[1];
        to[0] = x[0]; // last, because lanes beyond the count wrote here, too
    }
    [[nodiscard]] KVTRIM_INLINE floats keep(floats x) const {
        return simd::KVTRIM_SIMD_TARGET::keep(there_, x);
    }
    [[nodiscard]] index_t count() const { return count_; }

  private:
    index_t count_;
    index_t at_[lanes] = {};
    mask there_ = {};
};

// ---- Integers ----

KVTRIM_INLINE mask equal(uints a, uints b) {
    return reinterpret_cast<mask>(a == b);
}
KVTRIM_INLINE mask at_most(uints a, uints b) {
    return reinterpret_cast<mask>(a <= b);
}
KVTRIM_INLINE uints add_one(mask m, uints x) {
    return x - m;
}
KVTRIM_INLINE std::int32_t* pack_only(std::int32_t* to, unsigned chosen, uints x) {
    std::uint32_t all[lanes];
    __builtin_memcpy(all, &x, sizeof(x));
    for (; chosen != 0; chosen &= chosen - 1) {
        *to++ = static_cast<std::int32_t>(all[__builtin_ctz(chosen)]);
    }
    return to;
}

KVTRIM_INLINE void store_low_bytes(void* to, ints x) {
    using low_bytes = std::int8_t __attribute__((vector_size(lanes)));
    const low_bytes low = __builtin_convertvector(x, low_bytes);
    __builtin_memcpy(to, &low, sizeof(low));
}

// ---- Pairs, and doubles ----

KVTRIM_INLINE void load_split(const bf16* from, floats& even, floats& odd) {
    mask bits;
    __builtin_memcpy(&bits, from, sizeof(bits));
    even = reinterpret_cast<floats>(bits << 16);
    odd = reinterpret_cast<floats>(bits & 0xffff0000u);
}
KVTRIM_INLINE floats sums_of_lanes(const floats* x) {
    const floats a =
        __builtin_shufflevector(x[0], x[1], 0, 4, 1, 5) + __builtin_shufflevector(x[0], x[1], 2, 6, 3, 7);
    const floats b =
        __builtin_shufflevector(x[2], x[3], 0, 4, 1, 5) + __builtin_shufflevector(x[2], x[3], 2, 6, 3, 7);
    return __builtin_shufflevector(a, b, 0, 1, 4, 5) + __builtin_shufflevector(a, b, 2, 3, 6, 7);
}
KVTRIM_INLINE floats sum_of_fours(floats x) {
    return x;
}
KVTRIM_INLINE floats highest_of_fours(floats x) {
    return x;
}

KVTRIM_INLINE floats even_lanes(floats a, floats b) {
    return __builtin_shufflevector(a, b, 0, 2, 4, 6);
}
KVTRIM_INLINE floats odd_lanes(floats a, floats b) {
    return __builtin_shufflevector(a, b, 1, 3, 5, 7);
}
KVTRIM_INLINE floats zip_low(floats a, floats b) {
    return __builtin_shufflevector(a, b, 0, 4, 1, 5);
}
KVTRIM_INLINE floats zip_high(floats a, floats b) {
    return __builtin_shufflevector(a, b, 2, 6, 3, 7);
}
