// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// How far a token's value can move the layer's output: the norm of its value after the output projection.
//
//   L1 (exact)   norm[g, t] = mean over query heads h of group g of || v[g, t] * W_O[h] ||_1
//   L2 (Gram)    norm[g, t] = mean over h of sqrt( v G_h v^T ),   G_h = W_O[h] * W_O[h]^T  [head_dim, head_dim]
//
// The Gram form needs no tokens x hidden product: hidden / head_dim times fewer flops once G is prepared. It ranks
// by a different norm; how far the kept sets agree is reported in README. Both prepared forms, gram_projection and
// packed_projection (W_O as the kernels read it), are made once per model layer.
// W_O is [q_heads, head_dim, hidden]; a torch weight [hidden, q_heads * head_dim] is the strided view
// {head_dim, 1, q_heads * head_dim}.
//
// Source: CriticalKV, arXiv:2502.03805, Sec. 4, Eq. 8; kvpress@8bb29b9 criticalkv_press.py:vwl1norm.
// Departures: values are not repeated per query head; the norms of fp16 values are taken in float.
// Cost: L1 2 * q_heads * tokens * head_dim * hidden flops, and packing W_O where it was not prepared; Gram
// 2 * q_heads * tokens * head_dim^2. Workspace per KV head: two tiles, and W_O of one query head unless prepared.

#include <kvtrim/base/for_each_head.hpp>
#include <kvtrim/base/layer.hpp>
#include <kvtrim/base/request.hpp>
#include <kvtrim/base/token_scores.hpp>
#include <kvtrim/kernels/dispatch.hpp>
#include <kvtrim/kernels/rows.hpp>

#include <span>
#include <vector>

namespace kvtrim {

// View of the Gram matrices of W_O: data [q_heads, head_dim, head_dim]. Pass it as the output projection to
// choose the L2 form.
struct gram_view {
    const float* data = nullptr;
    index_t q_heads = 0;
    index_t head_dim = 0;

    [[nodiscard]] const float* head(index_t q_head) const { return data + q_head * head_dim * head_dim; }
};

// G_h of every query head, prepared once per layer and kept by the engine.
class gram_projection {
  public:
    // W_O [q_heads, head_dim, hidden]. Allocates q_heads * head_dim^2 floats.
    template <cache_view W>
    explicit gram_projection(const W& w_o) : q_heads_(extent(w_o, 0)), head_dim_(row_count(w_o, 0)) {
        const index_t hidden = extent(w_o, 2);
        gram_.assign(static_cast<std::size_t>(q_heads_ * head_dim_ * head_dim_), 0.0f);
        std::vector<float> tile(static_cast<std::size_t>(head_dim_ * hidden));
        for (index_t h = 0; h < q_heads_; ++h) {
            const float_rows w = kernels::read_rows(w_o, h, 0, head_dim_, tile.data());
            const index_t step = kernels::tile_hidden(head_dim_);
            for (index_t c = 0; c < hidden; c += step) {
                kernels::add_gram(w.data + c, w.stride, head_dim_, std::min(step, hidden - c),
                                  gram_.data() + h * head_dim_ * head_dim_);
            }
        }
    }

    [[nodiscard]] gram_view view() const { return {gram_.data(), q_heads_, head_dim_}; }

  private:
    index_t q_heads_;
    index_t head_dim_;
    std::vector<float> gram_;
};

// View of W_O packed for the kernels of one instruction set. Pass it as the output projection.
struct packed_view {
    const float* data = nullptr;
    index_t q_heads = 0;
    index_t head_dim = 0;
    index_t hidden = 0;
    cpu_level level = cpu_level::portable;

    [[nodiscard]] const float* head(index_t q_head) const {
        return data + q_head * kernels::panel_floats(head_dim, hidden);
    }
};

namespace detail {

inline constexpr index_t packed_rows_at_once = 8;

// Packs matrix `head` [inner, columns] of a view; tile [packed_rows_at_once, columns] is scratch.
template <cache_view W>
void pack_head(const W& w, index_t head, const kernels::projection_kernels& steps, float* tile,
               float* packed) {
    const index_t inner = row_count(w, head);
    for (index_t i = 0; i < inner; i += packed_rows_at_once) {
        const index_t count = std::min(packed_rows_at_once, inner - i);
        const float_rows rows = kernels::read_rows(w, head, i, count, tile);
        steps.pack(rows.data, rows.stride, i, count, inner, extent(w, 2), packed);
    }
}

} // namespace detail

// W_O of every query head, packed once per layer and kept by the engine: exact norms without packing it for each prompt.
class packed_projection {
  public:
    // W_O [q_heads, head_dim, hidden]. Allocates as many floats, rows padded to 32 columns.
    template <cache_view W>
    explicit packed_projection(const W& w_o)
        : view_{nullptr, extent(w_o, 0), row_count(w_o, 0), extent(w_o, 2), active_cpu_level()} {
        const index_t floats = kernels::panel_floats(view_.head_dim, view_.hidden);
        packed_.resize(static_cast<std::size_t>(view_.q_heads * floats));
        std::vector<float> tile(static_cast<std::size_t>(detail::packed_rows_at_once * view_.hidden));
        for (index_t h = 0; h < view_.q_heads; ++h) {
            detail::pack_head(w_o, h, kernels::projection_kernels_of(view_.level), tile.data(),
                              packed_.data() + h * floats);
        }
    }

    // Valid while this object lives and does not change.
    [[nodiscard]] packed_view view() const& {
        packed_view v = view_;
        v.data = packed_.data();
        return v;
    }
    packed_view view() const&& = delete;

  private:
    packed_view view_;
    std::vector<float> packed_;
};

namespace detail {

template <class Inputs>
using projection_of = std::remove_cvref_t<decltype(std::declval<Inputs>().output_projection)>;
template <class Inputs>
inline constexpr bool uses_gram = std::is_same_v<projection_of<Inputs>, gram_view>;
template <class Inputs>
inline constexpr bool uses_packed = std::is_same_v<projection_of<Inputs>, packed_view>;

template <class Inputs>
[[nodiscard]] index_t projection_heads(const Inputs& in) {
    if constexpr (uses_gram<Inputs> || uses_packed<Inputs>) {
        return in.output_projection.q_heads;
    } else {
        return extent(in.output_projection, 0);
    }
}

// Scratch of one KV head.
struct projected_norm_scratch {
    std::span<float> values; // [tile_tokens, head_dim]
    std::span<float> norms;  // of the kernels
    std::span<float> rows;   // [packed_rows_at_once, hidden]; empty where nothing is to be read
    std::span<float> packed; // W_O or the Gram matrix of one query head; empty where it is prepared

    template <class Inputs>
    projected_norm_scratch(const Inputs& in, workspace& own) {
        const index_t value_dim = extent(in.values, 2);
        const index_t tokens = kernels::tile_tokens(value_dim);
        values = own.take<float>(tokens * value_dim);
        norms = own.take<float>(kernels::norm_scratch_floats(value_dim, tokens));
        if constexpr (uses_gram<Inputs>) {
            packed = own.take<float>(kernels::panel_floats(value_dim, value_dim));
        } else if constexpr (!uses_packed<Inputs>) {
            const index_t hidden = extent(in.output_projection, 2);
            rows = own.take<float>(packed_rows_at_once * hidden);
            packed = own.take<float>(kernels::panel_floats(value_dim, hidden));
        }
    }

    template <class Inputs>
    [[nodiscard]] static index_t bytes(const Inputs& in) {
        workspace counting = workspace::counting();
        static_cast<void>(projected_norm_scratch(in, counting));
        return counting.needed_bytes();
    }
};

// norms [range] of one KV head.
template <class Inputs>
void projected_norms_of_head(const Inputs& in, index_t kv_head, token_range range,
                             const projected_norm_scratch& scratch, std::span<float> norms) {
    const auto& w_o = in.output_projection;
    cpu_level level = active_cpu_level();
    if constexpr (uses_packed<Inputs>) { level = w_o.level; }
    const kernels::projection_kernels& steps = kernels::projection_kernels_of(level);
    const index_t value_dim = extent(in.values, 2);
    const index_t step = kernels::tile_tokens(value_dim);
    const index_t group_size = projection_heads(in) / in.kv_heads();
    std::fill(norms.begin(), norms.end(), 0.0f);
    // Query heads outside: W_O of a head is packed once, the values are read once per query head of the group.
    for (index_t h = kv_head * group_size; h < (kv_head + 1) * group_size; ++h) {
        const float* packed = scratch.packed.data();
        if constexpr (uses_packed<Inputs>) {
            packed = w_o.head(h);
        } else if constexpr (uses_gram<Inputs>) {
            steps.pack(w_o.head(h), value_dim, 0, value_dim, value_dim, value_dim, scratch.packed.data());
        } else {
            pack_head(w_o, h, steps, scratch.rows.data(), scratch.packed.data());
        }
        for (index_t t = range.begin; t < range.end; t += step) {
            const index_t count = std::min(step, range.end - t);
            const float_rows v = kernels::read_rows(in.values, kv_head, t, count, scratch.values.data());
            float* out = norms.data() + (t - range.begin);
            if constexpr (uses_gram<Inputs>) {
                steps.add_gram_l2(v.data, v.stride, count, packed, value_dim, scratch.norms.data(), out);
            } else {
                index_t hidden = 0;
                if constexpr (uses_packed<Inputs>) {
                    hidden = w_o.hidden;
                } else {
                    hidden = extent(w_o, 2);
                }
                steps.add_l1(v.data, v.stride, count, packed, value_dim, hidden, scratch.norms.data(), out);
            }
        }
    }
    for (float& norm : norms) { norm /= static_cast<float>(group_size); }
}

} // namespace detail

// Bad input of the norms. Returns errc::heads_not_divisible. Requires W_O rows of the values' head_dim, and as
// many query heads as the queries have where the layer has queries.
template <class Inputs>
[[nodiscard]] status validate_projection(const Inputs& in) {
    static_assert(Inputs::has_values, "kvtrim: projected value norms need the values: pass "
                                      "layer(keys, values); see base/layer.hpp");
    static_assert(Inputs::has_output_projection,
                  "kvtrim: projected value norms need W_O: pass "
                  "layer(keys, values).with_output_projection(w_o); see base/layer.hpp");
    const index_t q_heads = detail::projection_heads(in);
    if (q_heads == 0 || in.kv_heads() == 0 || q_heads % in.kv_heads() != 0) {
        return {errc::heads_not_divisible, "W_O must have a positive multiple of kv_heads query heads"};
    }
    if constexpr (Inputs::has_queries) {
        KVTRIM_EXPECTS(extent(in.queries, 0) == q_heads, "W_O and the queries must agree in q_heads");
    }
    if constexpr (detail::uses_gram<Inputs>) {
        KVTRIM_EXPECTS(in.output_projection.head_dim == extent(in.values, 2),
                       "the Gram matrices and the values must agree in head_dim");
    } else if constexpr (detail::uses_packed<Inputs>) {
        KVTRIM_EXPECTS(in.output_projection.head_dim == extent(in.values, 2),
                       "the packed W_O and the values must agree in head_dim");
    } else {
        KVTRIM_EXPECTS(row_count(in.output_projection, 0) == extent(in.values, 2),
                       "W_O must be [q_heads, head_dim, hidden] with the values' head_dim");
    }
    return {};
}

template <class Inputs>
[[nodiscard]] index_t projected_value_norms_bytes(const Inputs& in) {
    return for_each_head_bytes(in.kv_heads(), detail::projected_norm_scratch::bytes(in));
}

// norms [offsets[kv_heads]] of the candidates of every KV head, in the layout of `norms.offsets`.
// Returns errc::heads_not_divisible or workspace_too_small, with nothing written.
template <class Inputs, executor Executor>
[[nodiscard]] status projected_value_norms(const Inputs& in, const protection& protect,
                                           const score_rows& norms, workspace& scratch, Executor& ex) {
    if (const status s = validate_projection(in); !s.ok()) { return s; }
    return for_each_head(in.kv_heads(), detail::projected_norm_scratch::bytes(in), scratch, ex,
                         [&](index_t g, workspace& own) {
                             const detail::projected_norm_scratch memory(in, own);
                             detail::projected_norms_of_head(in, g, candidates(protect, in.tokens(g)), memory,
                                                             norms.row(g));
                         });
}

} // namespace kvtrim
