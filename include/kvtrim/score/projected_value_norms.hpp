// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// How far a token's value can move the layer's output: the norm of its value after the output projection.
//
//   L1 (exact)   norm[g, t] = mean over query heads h of group g of || v[g, t] * W_O[h] ||_1
//   L2 (Gram)    norm[g, t] = mean over h of sqrt( v G_h v^T ),   G_h = W_O[h] * W_O[h]^T  [head_dim, head_dim]
//
// The Gram form needs no tokens x hidden product: hidden / head_dim times fewer flops once G is prepared. It ranks
// by a different norm; how far the kept sets agree is reported in docs/demo-results.md. Both prepared forms, gram_projection and
// packed_projection (W_O as the kernels read it), are made once per model layer.
// W_O is [q_heads, head_dim, hidden]; a torch weight [hidden, q_heads * head_dim] is the strided view
// {head_dim, 1, q_heads * head_dim}.
//
// A token's norm depends on its value alone, so an engine may take it when the token enters the cache
// (newest_projected_value_norms; decode/projected_norms.hpp keeps them as long as their tokens) and give known_norms to the scorers.
//
// Source: CriticalKV, arXiv:2502.03805, Sec. 4, Eq. 8; kvpress@8bb29b9 criticalkv_press.py:vwl1norm.
// Departures: values are not repeated per query head; the norms of fp16 values are taken in float.
// Cost: L1 2 * q_heads * tokens * head_dim * hidden flops, and packing W_O where it was not prepared; Gram
// 2 * q_heads * tokens * head_dim^2. Workspace per KV head: two tiles, and W_O of one query head unless prepared.

#include <kvtrim/cache/layer.hpp>
#include <kvtrim/cache/read_rows.hpp>
#include <kvtrim/core/eviction_request.hpp>
#include <kvtrim/core/for_each_item.hpp>
#include <kvtrim/plan/token_scores.hpp>
#include <kvtrim/score/prepared_projection.hpp>

#include <span>

namespace KVTRIM_NAMESPACE {

/// Norms that are known already, [kv_heads, tokens or more], rows without gaps. Pass them as the output projection.
struct known_norms {
    strided<const float, 2> rows; ///< [kv_heads, tokens or more]

    /// What validate() of the rows says.
    [[nodiscard]] status validate() const { return rows.validate(); }
    /// Whether the norms share a byte with `other`.
    [[nodiscard]] bool overlaps(const strided_bytes& other) const { return shares_bytes(rows, other); }
};

namespace detail {

template <class Inputs>
using projection_of = std::remove_cvref_t<decltype(std::declval<Inputs>().output_projection)>;
template <class Inputs>
inline constexpr bool uses_gram = std::is_same_v<projection_of<Inputs>, gram_view>;
template <class Inputs>
inline constexpr bool uses_packed = std::is_same_v<projection_of<Inputs>, packed_view>;
template <class Inputs>
inline constexpr bool knows_norms = std::is_same_v<projection_of<Inputs>, known_norms>;

// Whether the types allow products of bf16 tiles without conversion: values and W_O both consist of bf16, or W_O was packed.
template <class Inputs>
inline constexpr bool may_stay_bf16 = std::is_same_v<stored_element<decltype(Inputs::values)>, bf16> &&
                                      (uses_packed<Inputs> || is_made_of<projection_of<Inputs>, bf16>);

// Whether the active kernels multiply these inputs so.
template <class Inputs>
[[nodiscard]] bool stays_bf16(const Inputs& in, const kernels::projection_kernels& steps) {
    if constexpr (may_stay_bf16<Inputs> && uses_packed<Inputs>) {
        return in.output_projection.packed_bf16 != nullptr && keeps<bf16>(in.values);
    }
    return may_stay_bf16<Inputs> && steps.add_bf16_l1 != nullptr && keeps<bf16>(in.values);
}

// Scratch of one KV head.
struct projected_norm_scratch {
    std::span<float> values;     // [tile_tokens, head_dim]
    std::span<bf16> values_bf16; // the same where they may stay bf16
    std::span<float> norms;      // of the kernels
    std::span<float> rows;       // [packed_rows_at_once, hidden]; empty where nothing is to be read
    std::span<float> packed;     // W_O or the Gram matrix of one query head; empty where it is prepared
    std::span<bf16> packed_bf16; // the same where it may stay bf16

    template <class Inputs>
    projected_norm_scratch(const Inputs& in, workspace& own) {
        const index_t value_dim = extent(in.values, 2);
        const index_t tokens = kernels::tile_tokens(value_dim);
        if constexpr (may_stay_bf16<Inputs>) { values_bf16 = own.take<bf16>(tokens * value_dim); }
        values = own.take<float>(tokens * value_dim);
        norms = own.take<float>(kernels::norm_scratch_floats(tokens));
        if constexpr (uses_gram<Inputs>) {
            packed = own.take<float>(kernels::panel_floats(value_dim, value_dim));
        } else {
            const index_t hidden = extent(in.output_projection, 2);
            if constexpr (uses_packed<Inputs>) {
                const packed_view& w_o = in.output_projection;
                if (w_o.packed_bf16 == nullptr || stays_bf16(in, *w_o.steps)) { return; }
            } else if constexpr (may_stay_bf16<Inputs>) {
                packed_bf16 = own.take<bf16>(kernels::panel_bf16(value_dim, hidden));
            }
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

// W_O or the Gram matrix of query head h, packed.
template <class Inputs>
[[nodiscard]] const float* packed_head(const Inputs& in, index_t h, const kernels::projection_kernels& steps,
                                       const projected_norm_scratch& scratch) {
    const auto& w_o = in.output_projection;
    float* const packed = scratch.packed.data();
    if constexpr (uses_gram<Inputs>) {
        const index_t dim = w_o.head_dim;
        steps.pack(w_o.head(h), dim, 0, dim, dim, dim, packed);
    } else if constexpr (uses_packed<Inputs>) {
        if (w_o.packed_bf16 == nullptr) { return w_o.head(h); }
        pack_head(unpacked_rows{w_o}, h, steps.pack, scratch.rows.data(), packed);
    } else {
        pack_head(w_o, h, steps.pack, scratch.rows.data(), packed);
    }
    return packed;
}

// norms [range] += those of query head h, from values that stay bf16.
template <class Inputs>
void add_bf16_norms(const Inputs& in, index_t kv_head, index_t h, token_range range,
                    const kernels::projection_kernels& steps, const projected_norm_scratch& scratch,
                    float* norms) {
    const index_t value_dim = extent(in.values, 2);
    const index_t step = kernels::tile_tokens(value_dim);
    const bf16* packed_bf16 = scratch.packed_bf16.data();
    if constexpr (uses_packed<Inputs>) {
        packed_bf16 = in.output_projection.head_bf16(h);
    } else {
        pack_head(in.output_projection, h, steps.pack_bf16, scratch.rows.data(), scratch.packed_bf16.data());
    }
    for (index_t t = range.begin; t < range.end; t += step) {
        const index_t count = std::min(step, range.end - t);
        const auto v = read_rows<bf16>(in.values, kv_head, t, count, scratch.values_bf16.data());
        steps.add_bf16_l1(v.data, v.stride, count, packed_bf16, value_dim, extent(in.output_projection, 2),
                          scratch.norms.data(), norms + (t - range.begin));
    }
}

// norms [range] of one KV head. A packed W_O is multiplied by the kernels that it was packed for.
template <class Inputs>
void projected_norms_of_head(
    const Inputs& in, index_t kv_head, token_range range, const projected_norm_scratch& scratch,
    std::span<float> norms,
    const kernels::projection_kernels& active = kernels::active_projection_kernels()) {
    const kernels::projection_kernels* chosen = &active;
    if constexpr (uses_packed<Inputs>) { chosen = in.output_projection.steps; }
    const kernels::projection_kernels& steps = *chosen;
    const index_t value_dim = extent(in.values, 2);
    const index_t step = kernels::tile_tokens(value_dim);
    const index_t group_size = extent(in.output_projection, 0) / in.kv_heads();
    std::fill(norms.begin(), norms.end(), 0.0f);
    // The loop over query heads is the outer one: W_O of a head is packed once, the values are read once per query head of
    // the group.
    for (index_t h = kv_head * group_size; h < (kv_head + 1) * group_size; ++h) {
        if constexpr (may_stay_bf16<Inputs>) {
            if (stays_bf16(in, steps)) {
                add_bf16_norms(in, kv_head, h, range, steps, scratch, norms.data());
                continue;
            }
        }
        const float* const packed = packed_head(in, h, steps, scratch);
        for (index_t t = range.begin; t < range.end; t += step) {
            const index_t count = std::min(step, range.end - t);
            const float_rows v = read_rows(in.values, kv_head, t, count, scratch.values.data());
            float* out = norms.data() + (t - range.begin);
            if constexpr (uses_gram<Inputs>) {
                steps.add_gram_l2(v.data, v.stride, count, packed, value_dim, scratch.norms.data(), out);
            } else {
                steps.add_l1(v.data, v.stride, count, packed, value_dim, extent(in.output_projection, 2),
                             scratch.norms.data(), out);
            }
        }
    }
    for (float& norm : norms) { norm /= static_cast<float>(group_size); }
}

// Writes the norms of rows range_of(g) of every KV head g to norms_of(g).
template <class Inputs, class RangeOf, class NormsOf, class Executor>
[[nodiscard]] status compute_projected_norms(const Inputs& in, RangeOf&& range_of, NormsOf&& norms_of,
                                             workspace& scratch, Executor& ex) {
    if constexpr (knows_norms<Inputs>) {
        for (index_t g = 0; g < in.kv_heads(); ++g) {
            const token_range range = range_of(g);
            if (range.size() > 0) {
                std::copy_n(&in.output_projection.rows(g, range.begin), range.size(), norms_of(g).begin());
            }
        }
        return {};
    } else {
        return for_each_item(in.kv_heads(), projected_norm_scratch::bytes(in), scratch, ex,
                             [&](index_t g, workspace& own) {
                                 const projected_norm_scratch memory(in, own);
                                 projected_norms_of_head(in, g, range_of(g), memory, norms_of(g));
                             });
    }
}

} // namespace detail

/// Checks the input of the norms. Returns what in.validate() says, heads_not_divisible for a W_O of other than a positive
/// multiple of kv_heads, invalid_parameter for known norms of another cache, or with gaps.
template <class Inputs>
[[nodiscard]] status validate_projection(const Inputs& in) {
    static_assert(Inputs::has_values, "kvtrim: projected value norms need the values: pass "
                                      "layer(keys, values); see cache/layer.hpp");
    static_assert(Inputs::has_output_projection,
                  "kvtrim: projected value norms need W_O: pass "
                  "layer(keys, values).with_output_projection(w_o); see cache/layer.hpp");
    if (const status s = in.validate(); !s.ok()) { return s; }
    if constexpr (detail::knows_norms<Inputs>) {
        const auto& rows = in.output_projection.rows;
        if (extent(rows, 0) != in.kv_heads() || extent(rows, 1) < in.longest_row()) {
            return {errc::invalid_parameter, "known norms must be [kv_heads, tokens or more]",
                    in.longest_row()};
        }
        if (rows.stride(1) != 1) {
            return {errc::invalid_parameter, "known norms must lie one after the other"};
        }
    } else {
        const index_t q_heads = extent(in.output_projection, 0);
        if (q_heads == 0 || in.kv_heads() == 0 || q_heads % in.kv_heads() != 0) {
            return {errc::heads_not_divisible, "W_O must have a positive multiple of kv_heads query heads"};
        }
    }
    return {};
}
/// Bytes of workspace for projected_value_norms() and newest_projected_value_norms(); 0 for inputs that validate_projection() refuses.
template <class Inputs, class Executor = serial_executor>
[[nodiscard]] index_t projected_value_norms_bytes(const Inputs& in, const Executor& ex = {}) {
    if constexpr (detail::knows_norms<Inputs>) {
        return 0;
    } else {
        if (!validate_projection(in).ok()) { return 0; }
        return for_each_item_bytes(ex, in.kv_heads(), detail::projected_norm_scratch::bytes(in));
    }
}

/// Writes norms [offsets[kv_heads]], those of the candidates of every KV head, in the layout of `norms.offsets`.
/// Returns what validate_projection() or validate_candidates() says, views_overlap (check_outputs) or workspace_too_small,
/// with nothing written.
template <class Inputs, executor Executor>
[[nodiscard]] status projected_value_norms(const Inputs& in, const protection& protect,
                                           const score_rows& norms, workspace& scratch, Executor& ex) {
    if (const status s = validate_projection(in); !s.ok()) { return s; }
    if (const status s = validate_candidates(in, protect, norms); !s.ok()) { return s; }
    if (const status s = check_outputs(std::array{bytes_of(norms.values)}, in, norms.offsets); !s.ok()) {
        return s;
    }
    return detail::compute_projected_norms(
        in, [&](index_t g) { return candidates(protect, in.tokens(g)); },
        [&](index_t g) { return norms.row(g); }, scratch, ex);
}

/// Writes norms [kv_heads, count], those of the newest `count` tokens of every KV head: the same as if all were taken at
/// once.
/// Returns what validate_projection() says, invalid_parameter for a count that not every head has or for norms that are not
/// [kv_heads, count] and one after the other in a head, views_overlap (check_outputs), or workspace_too_small
/// (projected_value_norms_bytes); with nothing written.
template <class Inputs, executor Executor>
[[nodiscard]] status newest_projected_value_norms(const Inputs& in, index_t count,
                                                  const strided<float, 2>& norms, workspace& scratch,
                                                  Executor& ex) {
    if (const status s = validate_projection(in); !s.ok()) { return s; }
    if (const status s = norms.validate(); !s.ok()) { return s; }
    if (count < 0 || count > in.shortest_row()) {
        return {errc::invalid_parameter, "newest_projected_value_norms: no head may have fewer tokens",
                in.shortest_row()};
    }
    if (norms.extent(0) != in.kv_heads() || norms.extent(1) != count || norms.stride(1) != 1) {
        return {
            errc::invalid_parameter,
            "newest_projected_value_norms: norms must be [kv_heads, count], one after the other in a head"};
    }
    if (count == 0) { return {}; }
    if (const status s = check_outputs(std::array{bytes_of(norms)}, in); !s.ok()) { return s; }
    return detail::compute_projected_norms(
        in,
        [&](index_t g) {
            return token_range{in.tokens(g) - count, in.tokens(g)};
        },
        [&](index_t g) { return std::span(&norms(g, index_t{0}), static_cast<std::size_t>(count)); }, scratch,
        ex);
}

/// The former name of newest_projected_value_norms().
template <class Inputs, executor Executor>
[[deprecated("use newest_projected_value_norms; gone in 0.3")]] [[nodiscard]] status
newest_value_norms(const Inputs& in, index_t count, const strided<float, 2>& norms, workspace& scratch,
                   Executor& ex) {
    return newest_projected_value_norms(in, count, norms, scratch, ex);
}

} // namespace KVTRIM_NAMESPACE
