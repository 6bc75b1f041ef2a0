// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Four queries of one token that share a KV head, and their attention over the tiles of keys so far: the attention
// of a decode step.
//
//   begin(), attend() for every tile of keys, finish(): o / z and m + log z as in kernels/query_tile.hpp
//
// A decode step is bound by memory: keys and values are read once, in place, and widened in registers, while the rows
// of the next tile are prefetched.
//
// Numerics: as kernels/query_tile.hpp; 2^x with relative error 1.5e-7; each query's result depends on no other query.
// Cost per attend: 8 * keys * (head_dim + value_dim) flops. Measured: see bench/NOTES.md.

#include <kvtrim/core/element_rows.hpp>
#include <kvtrim/kernels/logits.hpp>
#include <kvtrim/simd/choose.hpp>
#include <kvtrim/simd/prefetch.hpp>

#include <cmath>
#include <type_traits>

namespace KVTRIM_NAMESPACE::kernels {

/// The memory of one tile, a view of the caller's scratch. Sizes do not depend on the target.
struct decode_tile {
    static constexpr index_t max_queries = 4, max_keys = 64; ///< of one tile, and of one attend()
    /// Whether a tile reads keys or values of this element.
    template <class Element>
    static constexpr bool reads =
        std::is_same_v<Element, float> || std::is_same_v<Element, f16> || std::is_same_v<Element, bf16>;

    index_t head_dim, value_dim; ///< channels of keys and values
    double* sum;                 ///< [4]
    float* maximum;              ///< [vector / 4][4], repeated in every four lanes; units of log 2
    float* queries;              ///< [pairs of vectors of channels][4][of a pair], scaled
    float* out;                  ///< [4][value_dim, padded]
    float* logits;               ///< [max_keys][4]

    /// Floats of scratch of one tile.
    [[nodiscard]] static constexpr index_t own_floats(index_t head_dim, index_t value_dim) {
        return 32 + max_queries * (padded(head_dim, 32) + padded(value_dim, 64));
    }
    /// Floats of scratch that all tiles of a thread share.
    [[nodiscard]] static constexpr index_t shared_floats() { return max_keys * max_queries; }

    /// Of own [own_floats()], aligned for doubles, and shared [shared_floats()].
    decode_tile(float* own, float* shared, index_t key_length, index_t value_length)
        : head_dim(key_length), value_dim(value_length), sum(reinterpret_cast<double*>(own)),
          maximum(own + 16), queries(own + 32), out(queries + max_queries * padded(key_length, 32)),
          logits(shared) {}

    /// Output of a query, [padded value_dim].
    [[nodiscard]] float* out_of(index_t query) const { return out + query * padded(value_dim, 64); }

    /// The next multiple.
    [[nodiscard]] static constexpr index_t padded(index_t count, index_t multiple) {
        return (count + multiple - 1) / multiple * multiple;
    }
};

/// The steps of a tile, for elements float, f16 or bf16.
template <class Key, class Value>
struct decode_kernels {
    /// Takes queries [count, head_dim], count <= max_queries.
    void (*begin)(const decode_tile& tile, const float* queries, index_t query_stride, index_t count,
                  const logit_rules& rules);
    /// Adds the attention of all queries to `keys` rows, keys <= max_keys. `ahead` more rows of both follow in memory, will
    /// be attended next, and are prefetched.
    void (*attend)(const decode_tile& tile, element_rows<Key> key_rows, element_rows<Value> value_rows,
                   index_t keys, const logit_rules& rules, index_t ahead);
    /// Writes out [count, value_dim] and log_sum_exp [count].
    void (*finish)(const decode_tile& tile, index_t count, float* out, float* log_sum_exp);
};

} // namespace KVTRIM_NAMESPACE::kernels

#define KVTRIM_BODY <kvtrim/kernels/decode_tile.inl>
#include <kvtrim/simd/for_each_target.inl>

namespace KVTRIM_NAMESPACE::kernels {

/// The kernels of the active CPU level.
template <class Key, class Value>
[[nodiscard]] const decode_kernels<Key, Value>& active_decode_kernels() {
    return KVTRIM_CHOOSE(active_cpu_level(), decode_table<Key, Value>);
}

} // namespace KVTRIM_NAMESPACE::kernels
