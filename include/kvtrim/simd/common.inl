// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Primitives that are the same in every target: included inside each target's namespace.

// Loads and stores all lanes of a vector. first_lanes has the same members and accesses only the first few. Loops are
// compiled for both, because masked stores are slow, and slow to read back.
struct all_lanes {
    [[nodiscard]] KVTRIM_INLINE floats load(const float* from) const {
        return simd::KVTRIM_SIMD_TARGET::load(from);
    }
    KVTRIM_INLINE void store(float* to, floats x) const { simd::KVTRIM_SIMD_TARGET::store(to, x); }
    [[nodiscard]] KVTRIM_INLINE floats keep(floats x) const { return x; }
    [[nodiscard]] static constexpr index_t count() { return lanes; }
};

// Two vectors of consecutive elements. Elements for which that is faster are split into those at even and those at odd
// indices (splits_pairs); products of two rows do not depend on the order, if it is the same for both.
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
// As ordered_bits(): the bits of negative floats are inverted, -0 gets the bits of 0, and NaN gets 0.
KVTRIM_INLINE uints in_order_of_size(floats x) {
    const auto bits = reinterpret_cast<uints>(x);
    const auto negative = reinterpret_cast<uints>(reinterpret_cast<ints>(bits) >> 31);
    const uints turned = add_one(equal(bits, broadcast(0x80000000u)), bits ^ (negative | 0x80000000u));
    const mask number = at_most(bits & 0x7fffffffu, broadcast(0x7f800000u));
    return reinterpret_cast<uints>(keep(number, reinterpret_cast<floats>(turned)));
}

// Codes of 8 bits.
using sixteen_bytes = std::int8_t __attribute__((vector_size(16)));

KVTRIM_INLINE sixteen_bytes load_sixteen(const void* from) {
    sixteen_bytes x;
    __builtin_memcpy(&x, from, sizeof(x));
    return x;
}
KVTRIM_INLINE void store(std::int8_t* to, sixteen_bytes x) {
    __builtin_memcpy(to, &x, sizeof(x));
}

// An array of vectors; it stays in registers only if every loop over it is unrolled.
template <index_t Count>
using registers = floats[static_cast<std::size_t>(Count)];

// ---- Doubles, half as many as floats ----

using doubles = double __attribute__((vector_size(sizeof(floats))));
inline constexpr index_t double_lanes = lanes / 2;

// Loads a vector of doubles, or one double, with the same members, so that a loop body is written once for both.
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
