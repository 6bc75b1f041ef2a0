// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The output projection of latent values (MLA), so that score/projected_value_norms.hpp works on them as on any others:
//
//   out[h] = W_uv[h] * W_O[h]        [latent_dim, hidden]:   v[h, t] * W_O[h] = c(t) * out[h]
//
//   w_uv  [q_heads, latent_dim, value_dim]      out [q_heads, latent_dim, hidden], row-major
//   w_o   [q_heads, value_dim, hidden]
//
// Computed once per model layer, into the caller's memory. It is then passed as the output projection (exact L1 norms), or
// to packed_projection or gram_projection (score/prepared_projection.hpp); after these out is no longer needed. For
// DeepSeek-V3 out has 128 * 512 * 7168 elements, its Gram matrices 14 times fewer. A cache whose W_O already holds W_uv
// needs none of this.
// Source: CriticalKV, arXiv:2502.03805, Eq. 8, with the values of DeepSeek-V2, arXiv:2405.04434, Eq. 9 to 11.
// Numerics: products in float, rounded once to T. Cost: 2 * q_heads * latent_dim * value_dim * hidden flops.
// Workspace per worker: W_O of one head as floats, and two tiles.

#include <kvtrim/cache/read_rows.hpp>
#include <kvtrim/core/for_each_item.hpp>
#include <kvtrim/kernels/convert.hpp>
#include <kvtrim/kernels/product_kernels.hpp>

#include <array>
#include <span>

namespace KVTRIM_NAMESPACE {

namespace detail {

struct combined_projection_scratch {
    static constexpr index_t tile_rows = 64;

    std::span<float> w_o;     // [value_dim, hidden]
    std::span<float> up;      // [tile_rows, value_dim]
    std::span<float> product; // [tile_rows, tile_hidden]

    combined_projection_scratch(index_t value_dim, index_t hidden, workspace& own)
        : w_o(own.take<float>(value_dim * hidden)), up(own.take<float>(tile_rows * value_dim)),
          product(own.take<float>(tile_rows * kernels::tile_hidden(value_dim))) {}

    [[nodiscard]] static index_t bytes(index_t value_dim, index_t hidden) {
        workspace counting = workspace::counting();
        static_cast<void>(combined_projection_scratch(value_dim, hidden, counting));
        return counting.needed_bytes();
    }
};

// out [latent_dim, hidden] of one query head.
template <class Up, class W, class T>
void combine_head(const Up& w_uv, const W& w_o, index_t head, const combined_projection_scratch& memory,
                  T* out) {
    const index_t latent_dim = row_count(w_uv, head);
    const index_t value_dim = extent(w_uv, 2);
    const index_t hidden = extent(w_o, 2);
    const index_t step = kernels::tile_hidden(value_dim);
    const float_rows right = read_rows(w_o, head, 0, value_dim, memory.w_o.data());
    for (index_t l = 0; l < latent_dim; l += combined_projection_scratch::tile_rows) {
        const index_t rows = std::min(combined_projection_scratch::tile_rows, latent_dim - l);
        const float_rows left = read_rows(w_uv, head, l, rows, memory.up.data());
        for (index_t c = 0; c < hidden; c += step) {
            const index_t columns = std::min(step, hidden - c);
            float* const product = memory.product.data();
            kernels::active_product_kernels().multiply({left.data, left.stride, 1}, rows,
                                                       {right.data + c, right.stride, 1}, value_dim, columns,
                                                       product, columns);
            for (index_t r = 0; r < rows; ++r) {
                kernels::narrow(product + r * columns, columns, out + (l + r) * hidden + c);
            }
        }
    }
}

} // namespace detail

/// Bytes of workspace for combine_projections() with this executor.
template <cache_view W, class Executor>
[[nodiscard]] index_t combine_projections_bytes(const W& w_o, const Executor& ex) {
    return for_each_item_bytes(ex, extent(w_o, 0),
                               detail::combined_projection_scratch::bytes(extent(w_o, 1), extent(w_o, 2)));
}

/// Writes out [q_heads, latent_dim, hidden]. Returns what validate() says of the matrices, invalid_parameter for matrices
/// that do not agree in q_heads and value_dim, no_room for an output that is too short (needed: elements),
/// views_overlap (check_outputs), workspace_too_small (needed: combine_projections_bytes()); with nothing written.
template <cache_view Up, cache_view W, element T, executor Executor>
[[nodiscard]] status combine_projections(const Up& w_uv, const W& w_o, std::span<T> out, workspace& scratch,
                                         Executor&& ex) {
    if (const status s = validate(w_uv); !s.ok()) { return s; }
    if (const status s = validate(w_o); !s.ok()) { return s; }
    const index_t q_heads = extent(w_o, 0);
    const index_t latent_dim = extent(w_uv, 1);
    const index_t value_dim = extent(w_o, 1);
    const index_t hidden = extent(w_o, 2);
    if (extent(w_uv, 0) != q_heads || extent(w_uv, 2) != value_dim ||
        !detail::heads_have_rows(w_uv, latent_dim) || !detail::heads_have_rows(w_o, value_dim)) {
        return {errc::invalid_parameter,
                "combine_projections: W_uv and W_O must agree in q_heads and value_dim, in every head"};
    }
    const std::array<index_t, 3> shape{q_heads, latent_dim, hidden};
    if (!detail::fits_in_memory(shape, sizeof(T)) || std::ssize(out) < q_heads * latent_dim * hidden) {
        return {errc::no_room, "combine_projections: out must hold q_heads * latent_dim * hidden elements",
                detail::fits_in_memory(shape, sizeof(T)) ? q_heads * latent_dim * hidden : 0};
    }
    const auto written = out.first(static_cast<std::size_t>(q_heads * latent_dim * hidden));
    if (const status s = check_outputs(std::array{bytes_of(written)}, w_uv, w_o); !s.ok()) { return s; }
    return for_each_item(q_heads, detail::combined_projection_scratch::bytes(value_dim, hidden), scratch, ex,
                         [&](index_t h, workspace& own) {
                             const detail::combined_projection_scratch memory(value_dim, hidden, own);
                             detail::combine_head(w_uv, w_o, h, memory, out.data() + h * latent_dim * hidden);
                         });
}

} // namespace KVTRIM_NAMESPACE
