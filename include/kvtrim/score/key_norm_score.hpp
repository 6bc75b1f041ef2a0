// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Two scorers that read only the keys: small norms stay, or keys unlike the average stay.
//
//   key_norm_score:  importance[g, t] = - || k[g, t] ||_2
//   key_diff_score:  importance[g, t] = - cos( k[g, t], mean over all rows s of k[g, s] / || k[g, s] || )
//
// Source: L2 norm, arXiv:2406.11430; KeyDiff, arXiv:2504.15364; kvpress@8bb29b9 knorm_press.py,
// keydiff_press.py (post-RoPE keys, as here).
// Departures: none in the formulas; the references protect neither sinks nor window, here the request does.
// A zero key has cosine 0. A key whose norm is not finite (NaN, infinite, or beyond float) has no direction: it
// takes no part in the mean and scores NaN, which ranks last; by norm it scores NaN or -infinity.
// Cost: keys read once (key_norm_score) or twice (key_diff_score). Workspace: a tile of keys per KV head.

#include <kvtrim/cache/layer.hpp>
#include <kvtrim/cache/read_rows.hpp>
#include <kvtrim/core/eviction_request.hpp>
#include <kvtrim/core/for_each_item.hpp>
#include <kvtrim/kernels/row_kernels.hpp>
#include <kvtrim/kernels/tile_tokens.hpp>
#include <kvtrim/plan/token_scores.hpp>

#include <cmath>
#include <limits>

namespace KVTRIM_NAMESPACE {

namespace detail {

// Scratch of one head: a tile of rows, one more row, and sums of rows.
struct row_scratch {
    row_tile tile;
    std::span<float> row;   // [length]
    std::span<double> sums; // [length]

    row_scratch(index_t length, workspace& own)
        : tile(length, own), row(own.take<float>(length)), sums(own.take<double>(length)) {}

    [[nodiscard]] static index_t bytes(index_t length) {
        workspace counting = workspace::counting();
        static_cast<void>(row_scratch(length, counting));
        return counting.needed_bytes();
    }
};

// Calls fn(rows, first, count, squares) as kvtrim::for_each_tile does; squares [count] are those of the rows' lengths.
template <cache_view V, class Fn>
void for_each_tile(const V& view, index_t head, token_range range, const row_tile& tile, Fn&& fn) {
    const kernels::row_kernels& steps = kernels::active_row_kernels();
    float squares[row_tile::most_rows];
    kvtrim::for_each_tile(view, head, range, tile, [&](index_t first, index_t count, const float_rows& rows) {
        steps.dots(rows.data, rows.stride, count, extent(view, 2), nullptr, squares);
        fn(rows, first, count, squares);
    });
}

} // namespace detail

/// Keys of small norm stay.
struct key_norm_score {
    static constexpr bool writes_attention = false; ///< whether score() also writes attention

    /// Bytes of workspace for score(), at the full width of this executor.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] index_t workspace_bytes(const Inputs& in, const eviction_request&,
                                          const Executor& ex = {}) const {
        return for_each_item_bytes(ex, in.kv_heads(), detail::row_scratch::bytes(in.head_dim()));
    }

    /// Writes the importance of every candidate.
    /// Returns what validate_scoring() says or errc::workspace_too_small, with nothing written.
    template <class Inputs, executor Executor>
    [[nodiscard]] status score(const Inputs& in, const eviction_request& request, const token_scores& out,
                               workspace& scratch, Executor& ex) const {
        if (const status s = validate_scoring(*this, in, request, out); !s.ok()) { return s; }
        return for_each_item(in.kv_heads(), detail::row_scratch::bytes(in.head_dim()), scratch, ex,
                             [&](index_t g, workspace& own) {
                                 const detail::row_scratch memory(in.head_dim(), own);
                                 const token_range range = candidates(request.protect, in.tokens(g));
                                 float* score = out.importance_rows().row(g).data();
                                 detail::for_each_tile(
                                     in.keys, g, range, memory.tile,
                                     [&](const float_rows&, index_t, index_t count, const float* squares) {
                                         for (index_t i = 0; i < count; ++i) {
                                             *score++ = -std::sqrt(squares[i]);
                                         }
                                     });
                             });
    }
};

/// Keys unlike the mean key of their head stay.
struct key_diff_score {
    static constexpr bool writes_attention = false; ///< whether score() also writes attention

    /// Bytes of workspace for score(), at the full width of this executor.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] index_t workspace_bytes(const Inputs& in, const eviction_request&,
                                          const Executor& ex = {}) const {
        return for_each_item_bytes(ex, in.kv_heads(), detail::row_scratch::bytes(in.head_dim()));
    }

    /// Writes the importance of every candidate.
    /// Returns what validate_scoring() says or errc::workspace_too_small, with nothing written.
    template <class Inputs, executor Executor>
    [[nodiscard]] status score(const Inputs& in, const eviction_request& request, const token_scores& out,
                               workspace& scratch, Executor& ex) const {
        if (const status s = validate_scoring(*this, in, request, out); !s.ok()) { return s; }
        return for_each_item(
            in.kv_heads(), detail::row_scratch::bytes(in.head_dim()), scratch, ex,
            [&](index_t g, workspace& own) {
                const detail::row_scratch memory(in.head_dim(), own);
                const auto anchor = memory.row;
                const auto sums = memory.sums;
                std::fill(sums.begin(), sums.end(), 0.0);
                // The sum has the direction of the mean, and a cosine depends on the direction alone.
                detail::for_each_tile(
                    in.keys, g, {0, in.tokens(g)}, memory.tile,
                    [&](const float_rows& rows, index_t, index_t count, const float* squares) {
                        float weights[kernels::most_tile_tokens];
                        for (index_t i = 0; i < count; ++i) {
                            const float norm = std::sqrt(squares[i]);
                            weights[i] = norm > 0 && std::isfinite(norm) ? 1.0f / norm : 0.0f;
                        }
                        kernels::active_row_kernels().add_over_rows(rows.data, rows.stride, count,
                                                                    in.head_dim(), weights, sums.data());
                    });
                for (std::size_t d = 0; d < sums.size(); ++d) { anchor[d] = static_cast<float>(sums[d]); }
                const index_t dim = in.head_dim();
                const float anchor_norm = std::sqrt(kernels::dot(anchor.data(), anchor.data(), dim));
                const token_range range = candidates(request.protect, in.tokens(g));
                float* const scores = out.importance_rows().row(g).data();
                detail::for_each_tile(
                    in.keys, g, range, memory.tile,
                    [&](const float_rows& rows, index_t first, index_t count, const float* squares) {
                        float* const score = scores + (first - range.begin);
                        kernels::active_row_kernels().dots(rows.data, rows.stride, count, dim, anchor.data(),
                                                           score);
                        for (index_t i = 0; i < count; ++i) {
                            const float norm = std::sqrt(squares[i]);
                            const float norms = norm * anchor_norm;
                            score[i] = norms == 0 ? 0.0f : -score[i] / norms;
                            if (!std::isfinite(norm)) { score[i] = std::numeric_limits<float>::quiet_NaN(); }
                        }
                    });
            });
    }
};

} // namespace KVTRIM_NAMESPACE
