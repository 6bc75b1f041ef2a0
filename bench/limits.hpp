// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The machine's limits: loops that do nothing but read, copy, multiply or exponentiate, as fast as this core can.
// limit_rows.cpp makes rows of them, so that they are timed in the same process and rounds as the rows they bound.

#include <kvtrim/core/status.hpp>
#include <kvtrim/simd/cpu_level.hpp>

#include <span>

namespace bench {

using kvtrim::index_t;

// A loop over registers: run(steps) does steps * per_step operations, in some tens of milliseconds.
struct register_loop {
    index_t steps;
    double per_step;
    void (*run)(index_t steps);
};

// The loop of a level, which is a part of its row's name.
struct level_limit {
    kvtrim::cpu_level level;
    register_loop loop;
};

// Multiply-adds, one loop for each level that this machine has, the lowest level first: of bf16 where the level has products
// of bf16 of its own, of f32 elsewhere; flops. The portable level's of x86-64 multiply and then add.
[[nodiscard]] std::span<const level_limit> product_limits();

// Whether a level has products of bf16 of its own. What else its kernels do is then done as at float_level().
[[nodiscard]] bool multiplies_bf16(kvtrim::cpu_level level);

// The lowest level that multiplies f32 as `level` does.
[[nodiscard]] kvtrim::cpu_level float_level(kvtrim::cpu_level level);

// 2^x to float accuracy with the widest vectors, from registers.
[[nodiscard]] level_limit exponential_limit();

// Reads floats [count], a multiple of 256, in four streams.
void read_all(const float* data, index_t count);

} // namespace bench
