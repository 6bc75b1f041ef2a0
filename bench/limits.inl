// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// The loops of limits.cpp, in the words of kvtrim's simd/simd.hpp: compiled once for each instruction set.

namespace bench::KVTRIM_TARGET {

using namespace kvtrim::simd::KVTRIM_TARGET;

// The compiler does not know that nobody reads the result, so it computes all of x.
template <std::size_t Count>
KVTRIM_INLINE void use(const floats (&x)[Count]) {
    floats total = x[0];
    KVTRIM_UNROLL
    for (std::size_t i = 1; i < Count; ++i) { total = total + x[i]; }
    result = sum_of_lanes(total);
}

// ---- Products and exponentials ----

// As many sums as a product of the kernels has: they do not wait for each other, and fit the registers. Each starts from a
// value that the compiler does not know, or all would be computed once.
inline void multiply_add(index_t steps) {
    registers<product_registers> sums;
    KVTRIM_UNROLL
    for (floats& sum : sums) { sum = broadcast(one); }
    const floats factor = broadcast(half), addend = broadcast(one);
    for (index_t i = 0; i < steps; ++i) {
        KVTRIM_UNROLL
        for (floats& sum : sums) { sum = fma(sum, factor, addend); }
    }
    use(sums);
}
inline constexpr register_loop float_products{4'000'000, 2.0 * product_registers* lanes, multiply_add};

// More do not fit beside the polynomial's registers.
inline constexpr index_t powers_at_once = lanes == 16 ? 16 : 4;

// Each power is of the one before, negative again.
inline void exponentiate(index_t steps) {
    registers<powers_at_once> powers;
    KVTRIM_UNROLL
    for (floats& power : powers) { power = broadcast(-half); }
    for (index_t i = 0; i < steps; ++i) {
        KVTRIM_UNROLL
        for (floats& power : powers) { power = exp2(broadcast(0.0F) - power); }
    }
    use(powers);
}
inline constexpr register_loop exponentials{1'000'000, 1.0 * powers_at_once* lanes, exponentiate};

// ---- Reading ----

inline void read(const float* data, index_t count) {
    constexpr index_t line = 16; // floats in a cache line
    const index_t quarter = count / 4;
    registers<8> sums;
    KVTRIM_UNROLL
    for (floats& sum : sums) { sum = broadcast(0.0F); }
    for (index_t i = 0; i < quarter; i += 2 * line) {
        KVTRIM_UNROLL
        for (index_t stream = 0; stream < 4; ++stream) {
            const float* const from = data + stream * quarter + i;
            KVTRIM_UNROLL
            for (index_t j = 0; j < 2 * line; j += lanes) {
                floats& sum = sums[2 * stream + j / line];
                sum = sum + load(from + j);
            }
        }
    }
    use(sums);
}

} // namespace bench::KVTRIM_TARGET
