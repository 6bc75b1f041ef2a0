// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The query tile of the active CPU level: for floats, and for bf16 where the level multiplies them.

#include <kvtrim/kernels/query_tile.hpp>
#include <kvtrim/kernels/query_tile_amx.hpp>
#include <kvtrim/simd/choose.hpp>

namespace KVTRIM_NAMESPACE::kernels {

/// Returns fn<Tile>() with the class for float queries, keys and values.
template <class Fn>
decltype(auto) with_float_query_tile(Fn&& fn) {
    return (KVTRIM_CHOOSE(active_cpu_level(), call_with_query_tile<Fn>))(fn);
}

/// Returns fn<Tile>() for queries, keys and values that are bf16 in memory: the class for bf16 if the level has one, else
/// that for floats.
template <class Fn>
decltype(auto) with_bf16_query_tile(Fn&& fn) {
    return (KVTRIM_CHOOSE_PRODUCTS(active_cpu_level(), amx::call_with_query_tile<Fn>,
                                   with_float_query_tile<Fn&>, call_with_query_tile<Fn>))(fn);
}

} // namespace KVTRIM_NAMESPACE::kernels
