// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The query tile of the active CPU level: for floats, and for bf16 where the level multiplies them.

#include <kvtrim/kernels/query_tile.hpp>
#include <kvtrim/kernels/query_tile_amx.hpp>
#include <kvtrim/simd/choose.hpp>

namespace kvtrim::kernels {

/// fn<Tile>() with the class for float queries, keys and values.
template <class Fn>
decltype(auto) with_float_query_tile(Fn&& fn) {
#if KVTRIM_HAS_X86
    if (active_cpu_level() >= cpu_level::avx512) { return fn.template operator()<avx512::query_tile>(); }
    if (active_cpu_level() >= cpu_level::avx2) { return fn.template operator()<avx2::query_tile>(); }
#endif
    return fn.template operator()<KVTRIM_BASELINE::query_tile>();
}

/// The same where queries, keys and values lie in memory as bf16: that of bf16 at a level that has one, else of floats.
template <class Fn>
decltype(auto) with_bf16_query_tile(Fn&& fn) {
#if KVTRIM_HAS_X86
    if (active_cpu_level() >= cpu_level::amx) { return fn.template operator()<query_tile_amx>(); }
#endif
    return with_float_query_tile(fn);
}

} // namespace kvtrim::kernels
