// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// The hot loops of every target, one function each, for bench/loops.py: it compiles this file and counts instructions.

#include <kvtrim/kernels/convert.hpp>
#include <kvtrim/kernels/decode_tile.hpp>
#include <kvtrim/kernels/eviction_errors.hpp>
#include <kvtrim/kernels/projection_kernels.hpp>
#include <kvtrim/kernels/quant_blocks.hpp>
#include <kvtrim/kernels/query_tile.hpp>
#include <kvtrim/kernels/row_kernels.hpp>
#include <kvtrim/kernels/selection_kernels.hpp>
#include <kvtrim/kernels/turn_row.hpp>
#include <kvtrim/kernels/window_kernels.hpp>

// A function that calls none, so that its loops are its own.
#define KVTRIM_LOOP __attribute__((flatten))

#define KVTRIM_BODY <bench/loops.inl>
#include <kvtrim/simd/for_each_target.inl>

#define KVTRIM_BODY <bench/loops_bf16.inl>
#include <kvtrim/simd/for_each_bf16_target.inl>
