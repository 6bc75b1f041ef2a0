// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The machine's limits: loops that do nothing but read, copy, multiply or exponentiate, as fast as this core can.
// limit_rows.cpp makes rows of them, so that they are timed in the same process and rounds as the rows they bound.

#include <kvtrim/core/status.hpp>

#include <span>

namespace bench {

using kvtrim::index_t;

// A loop over registers: run(steps) does steps * per_step operations, in some tens of milliseconds.
struct register_loop {
    const char* name; // of the row limit/<name>, ends with _<level>
    index_t steps;
    double per_step;
    void (*run)(index_t steps);
};

// Multiply-adds in f32, one loop for each level that this machine has, and bf16 tiles where it has AMX; flops.
// The portable level's is multiplication and addition in 128 bits: what code for plain x86-64 can do.
[[nodiscard]] std::span<const register_loop> product_limits();

// 2^x to float accuracy with the widest vectors, from registers; the portable level's is Eigen's, from L1.
[[nodiscard]] register_loop exponential_limit();

// Reads floats [count], a multiple of 256, in four streams.
void read_all(const float* data, index_t count);

} // namespace bench
