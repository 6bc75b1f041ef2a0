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
