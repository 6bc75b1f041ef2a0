// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Vectors of floats: one header per instruction set (a target), with the same primitives in each.
//
//   lanes                                   floats of a vector
//   product_registers, product_vectors      register blocking: sums that a product keeps in registers; vectors of a panel
//   floats, ints, mask                      + - * / of floats are those of the language; ints: lanes of 32 bits with a sign
//   broadcast(x), load(p), store(p, x)      p anywhere; load() also from bf16, f16, fp8 and int8, store() also to bf16, f16
//   fma(a, b, c)                            a * b + c
//   min(a, b), max(a, b)                    b where a is NaN
//   greater(a, b), any(m)                   false for NaN; whether any lane is true
//   select(m, a, b), keep(m, x)             a where m, else b; x where m, else 0, whatever x
//   absolute(x), sum_of_lanes(x), highest_of_lanes(x)
//   exp2(x)                                 2^x for -126 < x < 127 with error 1.5e-7 relative (2.2e-7 if fma rounds twice)
//   load_nibbles(p, x)                      x [32 / lanes] = 4 bits minus 8: the low halves of 16 bytes, then the high ones
//   look_up(table, p)                       p [32] = table [16] at p [32], all of 8 bits
//   even_lanes(a, b), odd_lanes(a, b)       of both, one behind the other; zip_low(a, b), zip_high(a, b) are the inverse
//   load_two(p, a, b)                       two vectors of elements, in order, or by the target's load_split(p, a, b) the elements
//                                           at even and those at odd places (splits_pairs)
//   load_first_of_two(p, n, a, b)           load_two() of the first n elements, and zeros
//   sums_of_lanes(x)                        lane i: the sum of the lanes of x[i], x [lanes]
//   sum_of_fours(x), highest_of_fours(x)    over lanes whose places differ by a multiple of 4, in each of them
//   round_products(a, b, c, d, sign)        of doubles in memory: a * b + sign * (c * d), rounded to floats
//   uints                                   lanes of 32 bits; + - & | ^ << >> are those of the language
//   equal(a, b), at_most(a, b)              of uints; add_one(m, x) where m
//   in_order_of_size(x)                     uints in the order of the floats x, see kernels/selection_kernels.hpp
//   lanes_of(m)                             a bit for each lane, the first one lowest
//   pack(p, chosen, x)                      writes the chosen lanes of x one behind the other, returns their end;
//                                           may write a whole vector; pack_only(p, chosen, x) writes nothing else
//   store_low_bytes(p, x)                   the lowest 8 bits of each of the ints x
//   sixteen_bytes, load_sixteen(p)          of 8 bits, in every target; + - & | >> == are those of the language; store(p, x)
//   doubles, double_lanes                   a vector of doubles; + - * / are those of the language
//   all_doubles{}, one_double{}             .load(p) of doubles or floats: a vector of doubles, or one
//   all_lanes{}, first_lanes(n)             .load(p), .store(p, x), .keep(x), .count(): all, or as many as there are of the
//                                           first n lanes, the others reading 0 and writing nothing
//
// Kernels are written once with these primitives, in a .inl file that simd/for_each_target.inl includes for each target. A new
// target is a header here, included below; its region and the tag of its namespace in core/region.hpp; a section in
// simd/for_each_target.inl; a level, its detection and its name in simd/cpu_level.hpp; a line in simd/choose.hpp. What is the same
// in all targets, from uints on, is simd/common.inl; simd/four_lanes.inl and simd/load_first_of_two.inl are for the targets
// that they fit.
//
// Google Highway 1.0.3 is not used: every user would have to install it, and it costs each file 1.2 s of g++ 12, these
// headers 0.5 s; fp8, ggml's blocks and tiles of bf16 would still have to be written here. For SVE, RVV or WASM it could
// replace the targets here.

#include <kvtrim/simd/avx2.hpp>
#include <kvtrim/simd/avx512.hpp>
#include <kvtrim/simd/neon.hpp>
#include <kvtrim/simd/portable.hpp>
