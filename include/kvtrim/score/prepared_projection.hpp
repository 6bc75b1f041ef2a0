// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// W_O prepared once per model layer for the norms of projected values (score/projected_value_norms.hpp).
//
//   gram_projection     G_h = W_O[h] * W_O[h]^T  [head_dim, head_dim] of every query head, for the L2 form
//   packed_projection   W_O in the order that the kernels read, for the exact L1 form
//
// W_O is [q_heads, head_dim, hidden]; a torch weight [hidden, q_heads * head_dim] is the strided view
// {head_dim, 1, q_heads * head_dim}. Both allocate their storage; their views are what is passed as the output projection.
// Query heads are handed out to an executor's workers, which does not change a bit.
// Cost: Gram 2 * q_heads * head_dim^2 * hidden flops; packing reads and writes W_O once. While they are made, a worker has a
// copy of a head (Gram) or of 8 rows (packing) as floats.

#include <kvtrim/cache/read_rows.hpp>
#include <kvtrim/core/for_each_item.hpp>
#include <kvtrim/kernels/product_kernels.hpp>
#include <kvtrim/kernels/projection_kernels.hpp>

#include <algorithm>
#include <array>
#include <vector>

namespace KVTRIM_NAMESPACE {

/// View of the Gram matrices of W_O: data [q_heads, head_dim, head_dim]. Pass it as the output projection to choose the L2
/// form.
struct gram_view {
    const float* data = nullptr; ///< [q_heads, head_dim, head_dim], row-major
    index_t q_heads = 0;         ///< query heads of W_O
    index_t head_dim = 0;        ///< rows and columns of each matrix

    /// Extents [q_heads, head_dim, head_dim].
    [[nodiscard]] index_t extent(std::size_t r) const { return r == 0 ? q_heads : head_dim; }
    /// Returns invalid_parameter for extents that cannot be, or memory that is missing.
    [[nodiscard]] status validate() const {
        return strided<const float, 3>(data, {q_heads, head_dim, head_dim}).validate();
    }
    /// The matrix of a query head, [head_dim, head_dim]; q_head is not checked.
    [[nodiscard]] const float* head(index_t q_head) const { return data + q_head * head_dim * head_dim; }
};

namespace detail {

// Why W_O cannot be prepared.
template <cache_view W>
[[nodiscard]] status validate_to_prepare(const W& w_o) {
    if (const status s = kvtrim::validate(w_o); !s.ok()) { return s; }
    const index_t head_dim = kvtrim::extent(w_o, 1);
    if (!heads_have_rows(w_o, head_dim)) {
        return {errc::rows_differ, "W_O must have head_dim rows in every head"};
    }
    constexpr std::size_t padding =
        32 * 32; // both prepared forms together: at most so many times the elements
    const std::array<index_t, 3> shape{kvtrim::extent(w_o, 0), head_dim,
                                       std::max(head_dim, kvtrim::extent(w_o, 2))};
    if (!fits_in_memory(shape, padding * sizeof(float))) {
        return {errc::invalid_parameter, "W_O has more elements than memory can hold when it is prepared"};
    }
    return {};
}

// Calls fn(q_head, tile) for every query head, with memory for so many floats that the call has alone.
template <class Executor, class Fn>
[[nodiscard]] status for_each_projected_head(index_t q_heads, index_t floats, Executor& ex, Fn&& fn) {
    workspace counting = workspace::counting();
    static_cast<void>(counting.take<float>(floats));
    growing_workspace memory;
    workspace scratch = memory.of_bytes(for_each_item_bytes(ex, q_heads, counting.needed_bytes()));
    return for_each_item(q_heads, counting.needed_bytes(), scratch, ex,
                         [&](index_t h, workspace& own) { fn(h, own.take<float>(floats).data()); });
}

} // namespace detail

/// G_h of every query head, prepared once per layer and kept by the engine.
class gram_projection {
  public:
    /// W_O [q_heads, head_dim, hidden]. Allocates q_heads * head_dim^2 floats. The object is empty, and validate() says why, for
    /// a W_O that is not valid, or whose heads have different numbers of rows, or an executor that calls nothing.
    template <cache_view W, class Executor = serial_executor>
    explicit gram_projection(const W& w_o, Executor&& ex = {}) : validity_(detail::validate_to_prepare(w_o)) {
        if (!validity_.ok()) { return; }
        q_heads_ = extent(w_o, 0);
        head_dim_ = extent(w_o, 1);
        const index_t hidden = extent(w_o, 2);
        gram_.assign(static_cast<std::size_t>(q_heads_ * head_dim_ * head_dim_), 0.0f);
        validity_ =
            detail::for_each_projected_head(q_heads_, head_dim_ * hidden, ex, [&](index_t h, float* tile) {
                const float_rows w = read_rows(w_o, h, 0, head_dim_, tile);
                const index_t step = kernels::tile_hidden(head_dim_);
                for (index_t c = 0; c < hidden; c += step) {
                    kernels::add_gram(w.data + c, w.stride, head_dim_, std::min(step, hidden - c),
                                      gram_.data() + h * head_dim_ * head_dim_);
                }
            });
        if (!validity_.ok()) { q_heads_ = head_dim_ = 0; }
    }

    /// Why this object is not valid, or ok.
    [[nodiscard]] status validate() const { return validity_; }
    /// Valid while this object lives and does not change.
    [[nodiscard]] gram_view view() const& { return {gram_.data(), q_heads_, head_dim_}; }
    void view() const&& = delete; ///< of a temporary

  private:
    std::vector<float> gram_; // first, so that assigning a copy throws before all changes
    status validity_;
    index_t q_heads_ = 0;
    index_t head_dim_ = 0;
};

/// View of W_O packed for the kernels of one instruction set: as floats, or as bf16. Pass it as the output projection.
struct packed_view {
    const float* data = nullptr;       ///< W_O packed as floats; null where `packed_bf16` is set
    const bf16* packed_bf16 = nullptr; ///< W_O packed as bf16, or null
    index_t q_heads = 0;               ///< query heads of W_O
    index_t head_dim = 0;              ///< rows of each head
    index_t hidden = 0;                ///< columns of each head
    const kernels::projection_kernels* steps = nullptr; ///< the kernels that W_O was packed for

    /// Extents [q_heads, head_dim, hidden].
    [[nodiscard]] index_t extent(std::size_t r) const {
        return r == 0 ? q_heads : r == 1 ? head_dim : hidden;
    }
    /// Returns invalid_parameter for extents that cannot be, memory or kernels that are missing.
    [[nodiscard]] status validate() const {
        const std::array<index_t, 3> extents{q_heads, head_dim, hidden};
        if (steps == nullptr && q_heads != 0) {
            return {errc::invalid_parameter, "packed_view: the kernels that it was packed for are missing"};
        }
        if (packed_bf16 != nullptr && steps != nullptr && steps->unpack_bf16 == nullptr) {
            return {errc::invalid_parameter, "packed_view: its kernels do not pack bf16"};
        }
        if (packed_bf16 != nullptr) { return strided<const bf16, 3>(packed_bf16, extents).validate(); }
        return strided<const float, 3>(data, extents).validate();
    }
    /// Packed floats of a query head; q_head is not checked.
    [[nodiscard]] const float* head(index_t q_head) const {
        return data + q_head * kernels::panel_floats(head_dim, hidden);
    }
    /// Packed bf16 of a query head; q_head is not checked.
    [[nodiscard]] const bf16* head_bf16(index_t q_head) const {
        return packed_bf16 + q_head * kernels::panel_bf16(head_dim, hidden);
    }
};

namespace detail {

inline constexpr index_t packed_rows_at_once = 8; // even: bf16 is packed in pairs of rows

// Packs matrix `head` [inner, columns] of a view; tile [packed_rows_at_once, columns] is scratch.
template <cache_view W, class Pack, class Packed>
void pack_head(const W& w, index_t head, Pack pack, float* tile, Packed* packed) {
    const index_t inner = row_count(w, head);
    for (index_t i = 0; i < inner; i += packed_rows_at_once) {
        const index_t count = std::min(packed_rows_at_once, inner - i);
        const float_rows rows = read_rows(w, head, i, count, tile);
        pack(rows.data, rows.stride, i, count, inner, extent(w, 2), packed);
    }
}

// The rows of a W_O packed as bf16, for values that are not bf16.
struct unpacked_rows {
    packed_view from;

    [[nodiscard]] index_t extent(std::size_t r) const {
        return r == 0 ? from.q_heads : r == 1 ? from.head_dim : from.hidden;
    }
    void load_rows(index_t head, index_t first, index_t count, float* tile) const {
        from.steps->unpack_bf16(from.head_bf16(head), first, count, from.head_dim, from.hidden, tile);
    }
};

} // namespace detail

/// W_O of every query head, packed once per layer and kept by the engine: exact norms without packing it for each prompt.
class packed_projection {
  public:
    /// W_O [q_heads, head_dim, hidden]. Allocates as many floats, rows padded to 32 columns; for a W_O of bf16 as many
    /// elements of it instead, rows and columns padded, where the steps multiply bf16 (levels amx and neon_bf16). The steps outlive this
    /// object. Not valid, and empty: a W_O that is not, or whose heads have different numbers of rows, an executor that calls nothing.
    template <cache_view W, class Executor = serial_executor>
    explicit packed_projection(
        const W& w_o, const kernels::projection_kernels& steps = kernels::active_projection_kernels(),
        Executor&& ex = {})
        : validity_(detail::validate_to_prepare(w_o)) {
        if (!validity_.ok()) { return; }
        view_ = {nullptr, nullptr, extent(w_o, 0), extent(w_o, 1), extent(w_o, 2), &steps};
        const auto pack_all = [&](auto pack, auto& packed, index_t elements) {
            packed.resize(static_cast<std::size_t>(view_.q_heads * elements));
            validity_ = detail::for_each_projected_head(
                view_.q_heads, detail::packed_rows_at_once * view_.hidden, ex, [&](index_t h, float* tile) {
                    detail::pack_head(w_o, h, pack, tile, packed.data() + h * elements);
                });
            if (!validity_.ok()) { view_ = {}; }
        };
        if constexpr (is_made_of<W, bf16>) {
            if (steps.pack_bf16 != nullptr) {
                pack_all(steps.pack_bf16, packed_bf16_, kernels::panel_bf16(view_.head_dim, view_.hidden));
                return;
            }
        }
        pack_all(steps.pack, packed_, kernels::panel_floats(view_.head_dim, view_.hidden));
    }

    packed_projection(const packed_projection&) = default;       ///< a copy
    packed_projection(packed_projection&&) = default;            ///< takes the memory
    packed_projection& operator=(packed_projection&&) = default; ///< takes the memory
    /// A copy; where an allocation throws this is as it was.
    packed_projection& operator=(const packed_projection& other) { return *this = packed_projection(other); }

    /// Why this object is not valid, or ok.
    [[nodiscard]] status validate() const { return validity_; }
    /// Valid while this object lives and does not change.
    [[nodiscard]] packed_view view() const& {
        packed_view v = view_;
        v.data = packed_.data();
        v.packed_bf16 = packed_bf16_.empty() ? nullptr : packed_bf16_.data();
        return v;
    }
    packed_view view() const&& = delete; ///< of a temporary

  private:
    status validity_;
    packed_view view_;
    std::vector<float> packed_;
    std::vector<bf16> packed_bf16_;
};

} // namespace KVTRIM_NAMESPACE
