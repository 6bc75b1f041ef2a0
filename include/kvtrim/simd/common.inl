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

// So many vectors, which live in registers where every loop over them is unrolled.
template <index_t Count>
using registers = floats[static_cast<std::size_t>(Count)];
