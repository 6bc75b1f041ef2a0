// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// One attention layer as an engine describes it: views on its keys, values, queries and W_O.
//
//     const auto inputs = kvtrim::layer(keys, values).with_queries(window_queries)
//                                                    .with_output_projection(w_o);
//
//   keys, values        [kv_heads, tokens, head_dim]       as cached (RoPE applied)
//   queries             [q_heads, queries, head_dim]       the newest queries (RoPE applied); the last one
//                                                          belongs to the last token before a rollback tail
//   output_projection   [q_heads, head_dim, hidden]        W_O; row d of head h is channel h * head_dim + d
//
// Query head h reads KV head h / (q_heads / kv_heads); keys are never repeated. What was not given has the
// type not_given, so that a stage that needs it refuses to compile and says what to pass. validate() checks every view, and
// that they belong together; every call that takes a layer calls it first.

#include <kvtrim/cache/check_outputs.hpp>
#include <kvtrim/cache/row_source.hpp>

#include <cstdint>
#include <type_traits>

namespace KVTRIM_NAMESPACE {

/// How the query heads that share a KV head are reduced to one row.
enum class group_reduction : std::uint8_t { mean, maximum, sum };

/// The type of a part of a layer that was not given.
struct not_given {};

/// Most heads of a layer. Calls loop over heads, so more are refused even where they hold no token and take no memory.
inline constexpr index_t most_heads = index_t{1} << 20;

/// Whether a type is that of a part that was given.
template <class T>
inline constexpr bool is_given = !std::is_same_v<T, not_given>;

/// The views of one layer, by value; the memory is the engine's. Made by layer().
template <class Keys, class Values = not_given, class Queries = not_given, class OutputProjection = not_given>
struct layer_inputs {
    static_assert(cache_view<Keys>,
                  "kvtrim: keys must be a view [kv_heads, tokens, head_dim]: a rank-3 tensor_view "
                  "(extent, operator()) or a row_source (extent, load_rows); see cache/row_source.hpp");
    static_assert(!is_given<Values> || cache_view<Values>,
                  "kvtrim: values must be a view [kv_heads, tokens, head_dim]; see cache/row_source.hpp");
    static_assert(!is_given<Queries> || cache_view<Queries>,
                  "kvtrim: queries must be a view [q_heads, queries, head_dim]; see cache/row_source.hpp");
    static_assert(!tensor_view<OutputProjection, 2>,
                  "kvtrim: W_O must be a view [q_heads, head_dim, hidden]; a torch weight [hidden, q_heads * "
                  "head_dim] is the strided view {head_dim, 1, q_heads * head_dim}; see "
                  "score/projected_value_norms.hpp");
    static_assert(
        cache_view<OutputProjection> || !requires(const OutputProjection& w) { w.view(); },
        "kvtrim: the output projection is a view: pass gram.view(), and keep the gram_projection; see "
        "score/projected_value_norms.hpp");

    /// Whether values were given.
    static constexpr bool has_values = is_given<Values>;
    /// Whether queries were given.
    static constexpr bool has_queries = is_given<Queries>;
    /// Whether W_O was given.
    static constexpr bool has_output_projection = is_given<OutputProjection>;

    Keys keys;                          ///< [kv_heads, tokens, head_dim]
    Values values;                      ///< [kv_heads, tokens, head_dim]
    Queries queries;                    ///< [q_heads, queries, head_dim]
    OutputProjection output_projection; ///< [q_heads, head_dim, hidden], or a prepared form

    /// The same layer with the newest queries [q_heads, queries, head_dim].
    template <class Q>
    [[nodiscard]] constexpr layer_inputs<Keys, Values, Q, OutputProjection> with_queries(Q q) const {
        return {keys, values, q, output_projection};
    }
    /// The same layer with W_O [q_heads, head_dim, hidden], or a prepared form of it
    /// (score/projected_value_norms.hpp).
    template <class W>
    [[nodiscard]] constexpr layer_inputs<Keys, Values, Queries, W> with_output_projection(W w) const {
        return {keys, values, queries, w};
    }

    /// Returns the answer of a view that is not valid; invalid_parameter where keys, values, queries and W_O do not agree in
    /// heads, tokens or channels; heads_not_divisible where their heads are no multiple of kv_heads;
    /// rows_differ where query heads have different numbers of queries; index_overflow for more than most_heads heads.
    /// O(heads).
    [[nodiscard]] KVTRIM_NOINLINE constexpr status validate() const {
        if (const status s = kvtrim::validate(keys); !s.ok()) { return s; }
        if (kv_heads() > most_heads) { return too_many_heads(kv_heads()); }
        if constexpr (has_values) {
            if (const status s = kvtrim::validate(values); !s.ok()) { return s; }
            if (extent(values, 0) != kv_heads()) {
                return {errc::invalid_parameter, "layer: keys and values must agree in kv_heads", kv_heads()};
            }
            for (index_t g = 0; g < kv_heads(); ++g) {
                if (row_count(values, g) != tokens(g)) {
                    return {errc::invalid_parameter, "layer: keys and values must agree in tokens",
                            tokens(g)};
                }
            }
        }
        if constexpr (has_queries) {
            if (const status s = validate_q_heads(queries); !s.ok()) { return s; }
            if (extent(queries, 2) != head_dim()) {
                return {errc::invalid_parameter, "layer: queries and keys must agree in head_dim",
                        head_dim()};
            }
            if (!detail::heads_have_rows(queries, extent(queries, 1))) {
                return {errc::rows_differ, "layer: every query head must have the same number of queries"};
            }
        }
        if constexpr (has_output_projection) { return validate_output_projection(); }
        return {};
    }

    /// Whether the memory of a view that was given shares a byte with `other`, which then must not be written
    /// (cache/check_outputs.hpp).
    [[nodiscard]] bool overlaps(const strided_bytes& other) const {
        return shares_bytes(keys, other) || shares_bytes(values, other) || shares_bytes(queries, other) ||
               shares_bytes(output_projection, other);
    }

    /// KV heads.
    [[nodiscard]] constexpr index_t kv_heads() const { return extent(keys, 0); }
    /// Channels of a key.
    [[nodiscard]] constexpr index_t head_dim() const { return extent(keys, 2); }
    /// Cached tokens of one KV head; all heads agree unless the cache is ragged.
    [[nodiscard]] constexpr index_t tokens(index_t kv_head) const { return row_count(keys, kv_head); }
    /// Cached tokens of the longest head.
    [[nodiscard]] constexpr index_t longest_row() const { return extent(keys, 1); }
    /// Cached tokens of the shortest head. O(kv_heads).
    [[nodiscard]] constexpr index_t shortest_row() const {
        index_t shortest = longest_row();
        for (index_t g = 0; g < kv_heads(); ++g) { shortest = tokens(g) < shortest ? tokens(g) : shortest; }
        return shortest;
    }

  private:
    [[nodiscard]] static constexpr status too_many_heads(index_t heads) {
        return {errc::index_overflow, "layer: at most 2^20 heads", heads};
    }
    template <class View>
    [[nodiscard]] constexpr status validate_q_heads(const View& view) const {
        if (const status s = kvtrim::validate(view); !s.ok()) { return s; }
        if (extent(view, 0) > most_heads) { return too_many_heads(extent(view, 0)); }
        if (kv_heads() > 0 && extent(view, 0) % kv_heads() != 0) {
            return {errc::heads_not_divisible, "layer: query heads must be a multiple of kv_heads"};
        }
        return {};
    }
    // A prepared form of W_O may have no extents: the scorer that reads it checks its shape.
    [[nodiscard]] constexpr status validate_output_projection() const {
        if constexpr (!requires { output_projection.extent(std::size_t{}); }) {
            return kvtrim::validate(output_projection);
        } else {
            if (const status s = validate_q_heads(output_projection); !s.ok()) { return s; }
            if constexpr (has_queries) {
                if (extent(output_projection, 0) != extent(queries, 0)) {
                    return {errc::invalid_parameter, "layer: W_O and the queries must agree in q_heads",
                            extent(queries, 0)};
                }
            }
            if constexpr (has_values) {
                if (!detail::heads_have_rows(output_projection, extent(values, 2))) {
                    return {errc::invalid_parameter,
                            "layer: W_O must be [q_heads, head_dim, hidden] with the values' head_dim",
                            extent(values, 2)};
                }
            }
            return {};
        }
    }
};

/// A layer of keys [kv_heads, tokens, head_dim].
template <class Keys>
[[nodiscard]] constexpr layer_inputs<Keys> layer(Keys keys) {
    return {keys, {}, {}, {}};
}

/// A layer of keys and values. Values have the kv_heads and tokens of the keys, head by head; their head_dim may differ.
template <class Keys, class Values>
[[nodiscard]] constexpr layer_inputs<Keys, Values> layer(Keys keys, Values values) {
    return {keys, values, {}, {}};
}

} // namespace KVTRIM_NAMESPACE
