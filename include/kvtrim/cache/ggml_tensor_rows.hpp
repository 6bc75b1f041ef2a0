// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A cache of any of ggml's element types, known at run time: one C++ type for all tensors, so that a policy is compiled once
// for an engine whose user chooses the types of K and V.
//
//   ggml's type number   0 f32   1 f16   30 bf16   2 q4_0   3 q4_1   6 q5_0   7 q5_1   8 q8_0   20 iq4_nl
//
//   element (head, token, d)  at  data + head * head_stride + token * token_stride + d * element_stride
//
//   strides in bytes, of any sign; for blocks, element_stride is the size of a block, and d counts as in cache/ggml_rows.hpp
//
// ggml's headers are not needed. To view a ggml_tensor: view_ggml in adapter/ggml.hpp.
// Rows read, score and move as those of the typed view (strided, ggml_rows), bit for bit. Cost: a branch per tile, and a
// copy of rows that are read in place from the typed view (f32, and bf16 where the processor multiplies it). visit(fn) calls
// fn with the typed view: compact_in_place of a transposed V is faster so, as it moves channel by channel.

#include <kvtrim/cache/ggml_rows.hpp>
#include <kvtrim/cache/read_rows.hpp>

#include <variant>

namespace KVTRIM_NAMESPACE {

namespace detail {

// The typed view of rows, [heads, tokens, head_dim] at strides {head, token, element} in bytes, or of heads in one row.
template <class T>
struct ggml_view {
    using type = ggml_rows<T>;

    [[nodiscard]] static type make(void* data, const std::array<index_t, 3>& extents,
                                   const std::array<index_t, 3>& strides) {
        if (strides[2] != static_cast<index_t>(sizeof(T))) {
            return type::invalid("ggml: blocks of a row lie one after the other");
        }
        return {static_cast<T*>(data), extents, {strides[0], strides[1]}};
    }
    [[nodiscard]] static type make(void* data, const std::array<index_t, 3>& extents, index_t token_stride) {
        return type::heads_in_row(static_cast<T*>(data), extents, token_stride);
    }
};

template <element T>
struct ggml_view<T> {
    using type = strided<T, 3>;
    static constexpr auto bytes = static_cast<index_t>(sizeof(T));

    [[nodiscard]] static type make(void* data, const std::array<index_t, 3>& extents,
                                   const std::array<index_t, 3>& strides) {
        if (!fits_in_memory(extents, strides, sizeof(float), 1)) { return too_large(); }
        if (strides[0] % bytes != 0 || strides[1] % bytes != 0 || strides[2] % bytes != 0 ||
            reinterpret_cast<std::uintptr_t>(data) % sizeof(T) != 0) {
            return type::invalid("ggml: data and strides must be whole elements");
        }
        return {static_cast<T*>(data), extents,
                std::array{strides[0] / bytes, strides[1] / bytes, strides[2] / bytes}};
    }
    [[nodiscard]] static type make(void* data, const std::array<index_t, 3>& extents, index_t token_stride) {
        if (extents[2] < 0 || extents[2] > std::numeric_limits<index_t>::max() / bytes) {
            return too_large();
        }
        return make(data, extents, {extents[2] * bytes, token_stride, bytes});
    }

  private:
    [[nodiscard]] static type too_large() {
        return type::invalid("ggml: extents or strides beyond what memory can hold");
    }
};

// An element or a block, and ggml's number of it.
template <class T, int Number>
struct numbered {};

template <class... Numbered>
struct ggml_views;
template <class... T, int... Number>
struct ggml_views<numbered<T, Number>...> {
    using any = std::variant<typename ggml_view<T>::type...>;

    // The view that ggml_view<T> makes, of the T with this number.
    template <class... Args>
    [[nodiscard]] static any make(int type, const Args&... args) {
        any view = strided<float, 3>::invalid("ggml: rows of this type are not read");
        static_cast<void>(((type == Number ? (view = ggml_view<T>::make(args...), true) : false) || ...));
        return view;
    }
    template <class U>
    [[nodiscard]] static constexpr int number_of() {
        return ((std::is_same_v<T, U> ? Number + 1 : 0) + ...) - 1;
    }
    // Whether this is the number of another type than those that are read element by element.
    [[nodiscard]] static constexpr bool is_block(int type) {
        return !((element<T> && type == Number) || ...);
    }
};

using all_ggml_views =
    ggml_views<numbered<float, 0>, numbered<f16, 1>, numbered<bf16, 30>, numbered<block_q4_0, 2>,
               numbered<block_q4_1, 3>, numbered<block_q5_0, 6>, numbered<block_q5_1, 7>,
               numbered<block_q8_0, 8>, numbered<block_iq4_nl, 20>>;

[[nodiscard]] constexpr bool is_ggml_block(int type) {
    return all_ggml_views::is_block(type);
}

} // namespace detail

/// ggml's number of an element or a block; -1 of other types.
template <class T>
inline constexpr int ggml_type_number = detail::all_ggml_views::number_of<T>();

/// A cache of rows of a type known at run time: a row_source (cache/row_source.hpp) that moves its own rows.
class ggml_tensor_rows {
  public:
    /// No rows.
    ggml_tensor_rows() = default;

    /// extents {kv_heads, tokens, head_dim}, strides {head, token, element} in bytes. The view is empty, and validate() says why,
    /// for another type, strides that are no whole elements, blocks that do not lie one after the other, and what the typed view
    /// refuses.
    ggml_tensor_rows(int type, void* data, const std::array<index_t, 3>& extents,
                     const std::array<index_t, 3>& byte_strides)
        : view_(detail::all_ggml_views::make(type, data, extents, byte_strides)) {}

    /// Heads one after the other in each token's row, tokens token_stride bytes apart. The view is empty, and validate() says
    /// why, for the same.
    [[nodiscard]] static ggml_tensor_rows
    heads_in_row(int type, void* data, const std::array<index_t, 3>& extents, index_t token_stride) {
        ggml_tensor_rows rows;
        rows.view_ = detail::all_ggml_views::make(type, data, extents, token_stride);
        return rows;
    }

    /// Empty, and validate() says `problem`, a string literal: for functions that make views.
    [[nodiscard]] static ggml_tensor_rows invalid(const char* problem) {
        ggml_tensor_rows rows;
        rows.view_ = strided<float, 3>::invalid(problem);
        return rows;
    }

    /// The typed view, if it is of this type, else null.
    template <class View>
    [[nodiscard]] const View* as() const {
        return std::get_if<View>(&view_);
    }
    /// Returns fn(view) with the typed view: strided<float, 3>, ggml_rows<block_q8_0>, ...
    template <class Fn>
    decltype(auto) visit(Fn&& fn) const {
        return std::visit(fn, view_);
    }

    /// Ok, or why the view is empty.
    [[nodiscard]] status validate() const {
        return visit([](const auto& view) { return view.validate(); });
    }
    /// {kv_heads, tokens, head_dim}[r].
    [[nodiscard]] index_t extent(std::size_t r) const {
        return visit([&](const auto& view) { return view.extent(r); });
    }
    /// Bytes of a head's row of a token.
    [[nodiscard]] index_t row_bytes() const {
        return visit([&](const auto& view) {
            if constexpr (requires { view.row_bytes(); }) {
                return view.row_bytes();
            } else {
                return view.extent(2) * static_cast<index_t>(sizeof(*view.data_handle()));
            }
        });
    }

    /// Decodes rows [first, first + count) of a head to tile [count, head_dim].
    void load_rows(index_t head, index_t first, index_t count, float* tile) const {
        visit([&](const auto& view) { kvtrim::load_rows(view, head, first, count, tile); });
    }
    /// Rows [first, first + count) of a head if the tensor is of bf16, which some processors multiply without widening; else
    /// null data.
    [[nodiscard]] element_rows<bf16> rows_in_place(index_t head, index_t first, index_t count) const {
        const auto* view = as<strided<bf16, 3>>();
        return view == nullptr ? element_rows<bf16>{} : kvtrim::rows_in_place(*view, head, first, count);
    }
    /// Whether the tensor is of bf16.
    [[nodiscard]] bool keeps_elements() const {
        const auto* view = as<strided<bf16, 3>>();
        return view != nullptr && keeps<bf16>(*view);
    }
    /// Copies rows as bf16. Requires keeps_elements().
    void load_rows(index_t head, index_t first, index_t count, bf16* tile) const {
        kvtrim::load_rows(*as<strided<bf16, 3>>(), head, first, count, tile);
    }

    /// Encodes tile [count, head_dim] in rows [first, first + count) of a head. Requires writes_rows().
    void store_rows(index_t head, index_t first, index_t count, const float* tile) const {
        visit([&](const auto& view) {
            if constexpr (row_store<std::remove_cvref_t<decltype(view)>>) {
                kvtrim::store_rows(view, head, first, count, tile);
            }
        });
    }
    /// Whether floats can become rows of this type: blocks of some types are only read.
    [[nodiscard]] bool writes_rows() const {
        return visit([](const auto& view) { return row_store<std::remove_cvref_t<decltype(view)>>; });
    }
    /// The first channels of every row as a view of its own, or the blocks that hold them.
    [[nodiscard]] ggml_tensor_rows first_channels(index_t count) const {
        ggml_tensor_rows channels;
        visit([&](const auto& view) { channels.view_ = kvtrim::first_channels(view, count); });
        return channels;
    }

    /// Copies row `from` of a head to row `to`. Returns invalid_parameter, with nothing moved, where heads share blocks.
    status move_row(index_t head, index_t from, index_t to) const {
        return visit([&](const auto& view) -> status {
            if constexpr (requires { view.move_row(head, from, to); }) {
                return view.move_row(head, from, to);
            } else {
                for (index_t d = 0; d < view.extent(2); ++d) { view(head, to, d) = view(head, from, d); }
                return {};
            }
        });
    }
    /// The bytes of the rows.
    [[nodiscard]] std::array<strided_bytes, 1> memory() const {
        return visit([](const auto& view) { return memory_of(view); });
    }
    /// Whether a row of one head cannot move alone, because heads share blocks.
    [[nodiscard]] bool heads_move_together() const {
        return visit([](const auto& view) {
            if constexpr (requires { view.heads_move_together(); }) { return view.heads_move_together(); }
            return false;
        });
    }
    /// Bytes of a token's row of all heads. Requires heads_move_together().
    [[nodiscard]] index_t token_bytes() const {
        return visit([](const auto& view) -> index_t {
            if constexpr (requires { view.token_bytes(); }) { return view.token_bytes(); }
            return 0;
        });
    }
    /// Copies the row of all heads of token `from` to token `to`. Requires heads_move_together().
    void move_token(index_t from, index_t to) const {
        visit([&](const auto& view) {
            if constexpr (requires { view.move_token(from, to); }) { view.move_token(from, to); }
        });
    }

  private:
    detail::all_ggml_views::any view_ = strided<float, 3>(nullptr, {0, 0, 0});
};

} // namespace KVTRIM_NAMESPACE
