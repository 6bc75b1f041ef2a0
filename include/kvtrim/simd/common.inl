// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// What every target says in the same words: included inside each target's namespace.

// How the lanes of a vector reach memory: all of them. first_lanes has the same members and reaches only the first few.
// Loops are compiled for both, because masked stores are slow, and slow to read again.
struct all_lanes {
    [[nodiscard]] KVTRIM_INLINE floats load(const float* from) const {
        return simd::KVTRIM_SIMD_TARGET::load(from);
    }
    KVTRIM_INLINE void store(float* to, floats x) const { simd::KVTRIM_SIMD_TARGET::store(to, x); }
    [[nodiscard]] KVTRIM_INLINE floats keep(floats x) const { return x; }
    [[nodiscard]] static constexpr index_t count() { return lanes; }
};

// Two vectors of elements as they follow each other. Elements that are widened sooner so come apart into those of even
// and those of odd place (splits_pairs): whoever multiplies two rows does not mind, as long as both are in that order.
template <class T>
inline constexpr bool splits_pairs = std::is_same_v<T, bf16>;
template <class T>
KVTRIM_INLINE void load_two(const T* from, floats& first, floats& second) {
    if constexpr (splits_pairs<T>) {
        load_split(from, first, second);
    } else {
        first = load(from);
        second = load(from + lanes);
    }
}

// ---- Integers ----

KVTRIM_INLINE uints load(const std::uint32_t* from) {
    uints x;
    __builtin_memcpy(&x, from, sizeof(x));
    return x;
}
KVTRIM_INLINE uints broadcast(std::uint32_t x) {
    return uints{} + x;
}
// As ordered_bits(): the bits of floats below zero turned round, those of -0 made those of 0, and those of NaN made 0.
KVTRIM_INLINE uints in_order_of_size(floats x) {
    const auto bits = reinterpret_cast<uints>(x);
    const auto negative = reinterpret_cast<uints>(reinterpret_cast<ints>(bits) >> 31);
    const uints turned = add_one(equal(bits, broadcast(0x80000000u)), bits ^ (negative | 0x80000000u));
    const mask number = at_most(bits & 0x7fffffffu, broadcast(0x7f800000u));
    return reinterpret_cast<uints>(keep(number, reinterpret_cast<floats>(turned)));
}

// So many vectors, which live in registers where every loop over them is unrolled.
template <index_t Count>
using registers = floats[static_cast<std::size_t>(Count)];

// ---- Doubles, half as many as floats ----

using doubles = double __attribute__((vector_size(sizeof(floats))));
inline constexpr index_t double_lanes = lanes / 2;

// How they reach memory: a vector of them, or one, so that what is written for one is written for the other.
struct all_doubles {
    [[nodiscard]] static KVTRIM_INLINE doubles load(const double* from) {
        doubles x;
        __builtin_memcpy(&x, from, sizeof(x));
        return x;
    }
    [[nodiscard]] static KVTRIM_INLINE doubles load(const float* from) {
        float x __attribute__((vector_size(sizeof(floats) / 2)));
        __builtin_memcpy(&x, from, sizeof(x));
        return __builtin_convertvector(x, doubles);
    }
};
struct one_double {
    [[nodiscard]] static KVTRIM_INLINE double load(const double* from) { return *from; }
    [[nodiscard]] static KVTRIM_INLINE double load(const float* from) { return static_cast<double>(*from); }
};
