// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Loops over the vectors of rows of floats: whole vectors, then the rest with its first lanes.
//
//   for_each_vector(count, step)                  step(position, lanes)
//   for_whole_vectors(count, step)                step(position), returns the position behind the whole vectors
//   sum_of_elements<IsLong>(length, step)         the sum over a row, by step(sum, position, lanes)
//   sum_rows(count, length, step, take)           the same for many rows, by step(row, sum, position, lanes)
//
// Numerics: the order of additions depends on the length alone.

#include <kvtrim/simd/simd.hpp>

#include <type_traits>

#define KVTRIM_BODY <kvtrim/kernels/vector_loops.inl>
#include <kvtrim/simd/for_each_target.inl>
