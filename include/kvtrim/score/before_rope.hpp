// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Any scorer of keys over the keys as they were before RoPE: they are turned back while they are read.
//
//   key[g, t]  ->  R(-p) key[g, t] / attention factor       p: position of row t of head g; the channels behind the rotary stay
//
//     auto policy = kvtrim::key_diff_before_rope(rope);                                   policy/baselines.hpp
//     auto other = kvtrim::eviction_policy{kvtrim::before_rope<kvtrim::lag_score>{{}, rope}, ...};
//
// RoPE rotates each pair of channels by an angle that grows with the position, so keys that were equal differ in the cache.
// Turned back, they are equal again, and what keys have in common does not depend on their positions. Meant for scorers that look
// at keys alone (key_diff_score, an own one): the queries of window attention are rotated, so their keys must be too.
//
// The cache stays as it is. A cache that was cut needs the positions of its rows: positions_of(plan), or cache_positions
// (decode/cache_positions.hpp). Frequencies that the model changes with the length (dynamic NTK) cannot be turned back.
//
// Source: Compactor, arXiv:2507.08143, and kvpress get_prerope_key_states, which computes keys anew from hidden states.
// Cost: a complex product per pair and row each time the scorer reads it, 2 sqrt(positions) sines and cosines per pair.
// Workspace: 32 sqrt(positions) bytes per pair, shared by all heads, and the scorer's. Numerics: angles in double, rows in float.

#include <kvtrim/cache/layer.hpp>
#include <kvtrim/cache/read_rows.hpp>
#include <kvtrim/cache/turn_table.hpp>
#include <kvtrim/core/eviction_request.hpp>
#include <kvtrim/core/executor.hpp>
#include <kvtrim/plan/row_positions.hpp>
#include <kvtrim/plan/token_scores.hpp>

#include <bit>
#include <cmath>

namespace KVTRIM_NAMESPACE {

namespace detail {

// The rows of any view turned back from their positions. Made of valid parts.
template <class View>
class rows_before_rope {
  public:
    // most: positions are below it.
    rows_before_rope(const View& view, const rope& r, const row_positions& positions, index_t most,
                     workspace& scratch)
        : view_(view), rope_(r), positions_(positions), fine_(fine_turns(most), r.pairs(), scratch),
          coarse_((most + fine_.turns() - 1) / fine_.turns(), r.pairs(), scratch) {}

    void fill() const {
        fine_.fill(rope_, -1);
        coarse_.fill(rope_, -fine_.turns(), 1 / static_cast<double>(rope_.attention_factor));
    }

    [[nodiscard]] index_t extent(std::size_t r) const { return kvtrim::extent(view_, static_cast<int>(r)); }
    [[nodiscard]] index_t rows(index_t head) const { return row_count(view_, head); }
    void load_rows(index_t head, index_t first, index_t count, float* tile) const {
        kvtrim::load_rows(view_, head, first, count, tile);
        for (index_t t = first; t < first + count; ++t, tile += extent(2)) {
            const index_t p = positions_.heads() == 0 ? t : positions_.row(head)[static_cast<std::size_t>(t)];
            rotate_by(rope_, coarse_[p / fine_.turns()], fine_[p % fine_.turns()], tile);
        }
    }

  private:
    [[nodiscard]] static index_t fine_turns(index_t most) {
        return static_cast<index_t>(
            std::bit_ceil(static_cast<std::uint64_t>(std::sqrt(static_cast<double>(most)) + 1)));
    }

    View view_;
    rope rope_;
    row_positions positions_;
    turn_table fine_, coarse_;
};

} // namespace detail

/// Scores keys as they were before RoPE.
template <class Scorer>
struct before_rope {
    [[no_unique_address]] Scorer scorer = {}; ///< of keys alone
    kvtrim::rope rope = {};                   ///< of the model; must outlive the scorer
    row_positions positions =
        {}; ///< of the cached rows; none: row t has position t, as in a cache that was never cut

    static constexpr bool writes_attention = false; ///< whether score() also writes attention
    static_assert(
        !Scorer::writes_attention,
        "kvtrim: before_rope wraps a scorer of keys alone; attention needs keys as they are cached");

    /// Returns what valid_rope() or positions.validate() says, invalid_parameter for more rotary channels than a key has,
    /// plan_mismatch for positions of another cache, or what the inner scorer says.
    template <class Inputs>
    [[nodiscard]] status validate(const Inputs& in, const eviction_request& request) const {
        if (const status s = valid_rope(rope); !s.ok()) { return s; }
        if (rope.rotary_dim() > in.head_dim()) {
            return {errc::invalid_parameter, "before_rope: rope rotates at most head_dim channels",
                    in.head_dim()};
        }
        if (const status s = positions.validate(); !s.ok()) { return s; }
        bool fits = positions.heads() == 0 || positions.heads() == in.kv_heads();
        for (index_t g = 0; fits && g < positions.heads(); ++g) {
            fits = std::ssize(positions.row(g)) == in.tokens(g);
        }
        if (!fits) {
            return {errc::plan_mismatch, "before_rope: there must be a position for each row of the cache"};
        }
        if constexpr (requires { scorer.validate(in, request); }) { return scorer.validate(in, request); }
        return {};
    }

    /// Bytes of workspace for score() at the full width of this executor; 0 for inputs that it refuses.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] index_t workspace_bytes(const Inputs& in, const eviction_request& request,
                                          const Executor& ex = {}) const {
        if (!validate(in, request).ok()) { return 0; }
        workspace counting = workspace::counting();
        const auto inner = turned_back(in, counting);
        static_cast<void>(counting.take<std::byte>(scoring_bytes(scorer, inner, request, ex)));
        return counting.needed_bytes();
    }

    /// Writes the importance of every candidate.
    /// Returns what validate_scoring() says or workspace_too_small, with nothing written.
    template <class Inputs, executor Executor>
    [[nodiscard]] status score(const Inputs& in, const eviction_request& request, const token_scores& out,
                               workspace& scratch, Executor& ex) const {
        if (const status s = validate_scoring(*this, in, request, out, scratch); !s.ok()) { return s; }
        const workspace::frame frame(scratch);
        const auto inner = turned_back(in, scratch);
        inner.keys.fill();
        return scorer.score(inner, request, out, scratch, ex);
    }

  private:
    template <class K, class V, class Q, class W>
    [[nodiscard]] auto turned_back(const layer_inputs<K, V, Q, W>& in, workspace& scratch) const {
        index_t most = in.longest_row();
        for (index_t g = 0; g < positions.heads(); ++g) {
            for (const std::int32_t p : positions.row(g)) { most = std::max<index_t>(most, index_t{p} + 1); }
        }
        using rows = detail::rows_before_rope<K>;
        return layer_inputs<rows, V, Q, W>{rows(in.keys, rope, positions, most, scratch), in.values,
                                           in.queries, in.output_projection};
    }
};

} // namespace KVTRIM_NAMESPACE
