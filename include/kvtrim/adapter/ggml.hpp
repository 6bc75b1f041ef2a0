// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// ggml tensors as kvtrim views: permuted, transposed or padded, by their nb[]. No copy.
//
//     kvtrim::ggml_tensor_rows keys;                                       // any type, found out at run time
//     kvtrim::strided<kvtrim::f16, 3> keys{nullptr, {0, 0, 0}};            // or float, bf16
//     kvtrim::ggml_rows<kvtrim::block_q8_0> keys{nullptr, {0, 0, 0}, {0, 0}};      // or another block
//     kvtrim::status s = kvtrim::view_ggml(*k, keys);                      // [kv_heads, tokens, head_dim]
//
// ggml counts axes from the innermost, so the roles of ne[0], ne[1], ne[2] are named:
//
//   attended    [head_dim, tokens, heads]   what ggml_flash_attn_ext takes as q, k and v
//   cached      [head_dim, heads, tokens]   K, and V with flash attention, as llama.cpp views them
//   transposed  [tokens, head_dim, heads]   V without flash attention, as ggml_mul_mat takes it
//   ggml_heads_in_row{heads}  [heads * head_dim, tokens]   K, and V with flash attention, as llama.cpp allocates them: the
//                             only form of blocks whose head_dim is no multiple of 32
//
// One stream: ne[3] is 1; of more, pass a ggml_view_3d (of heads in a row: a ggml_view_2d). W_O of a checkpoint, [q_heads *
// head_dim, hidden], is view_ggml of its ggml_reshape_3d [head_dim, q_heads, hidden] with axes {1, 0, 2}.
// The tensor must outlive the view, and have its data in memory of the CPU.

#include <kvtrim/cache/ggml_tensor_rows.hpp>

#include <ggml-backend.h>
#include <ggml.h>

#include <array>
#include <limits>
#include <type_traits>
#include <utility>

namespace KVTRIM_NAMESPACE {

/// Which axis of the tensor is axis 0, 1 and 2 of the view: heads, rows, elements of a row.
struct ggml_axes {
    int head;    ///< axis of the tensor, 0 the innermost, that is the view's heads
    int row;     ///< the one of rows
    int element; ///< the one of a row's elements

    [[nodiscard]] static constexpr ggml_axes attended() { return {2, 1, 0}; }   ///< [head_dim, tokens, heads]
    [[nodiscard]] static constexpr ggml_axes cached() { return {1, 2, 0}; }     ///< [head_dim, heads, tokens]
    [[nodiscard]] static constexpr ggml_axes transposed() { return {2, 0, 1}; } ///< [tokens, head_dim, heads]
};

/// A tensor [heads * head_dim, tokens].
struct ggml_heads_in_row {
    index_t heads; ///< heads in each row
};

namespace detail {

static_assert(ggml_type_number<float> == GGML_TYPE_F32 && ggml_type_number<f16> == GGML_TYPE_F16 &&
              ggml_type_number<bf16> == GGML_TYPE_BF16 && ggml_type_number<block_q4_0> == GGML_TYPE_Q4_0 &&
              ggml_type_number<block_q4_1> == GGML_TYPE_Q4_1 &&
              ggml_type_number<block_q5_0> == GGML_TYPE_Q5_0 &&
              ggml_type_number<block_q5_1> == GGML_TYPE_Q5_1 &&
              ggml_type_number<block_q8_0> == GGML_TYPE_Q8_0 &&
              ggml_type_number<block_iq4_nl> == GGML_TYPE_IQ4_NL);

// Why a tensor cannot be viewed, or null.
[[nodiscard]] inline const char* problem_of(const ggml_tensor& tensor) {
    if (tensor.data == nullptr) { return "ggml: the tensor has no data"; }
    if (tensor.buffer != nullptr && !ggml_backend_buffer_is_host(tensor.buffer)) {
        return "ggml: the tensor must be in memory of the CPU";
    }
    if (tensor.ne[3] != 1) { return "ggml: the tensor must have 3 axes: view one stream of it"; }
    for (int axis = 0; axis < 3; ++axis) {
        if (std::cmp_greater(tensor.nb[axis], std::numeric_limits<index_t>::max())) {
            return "ggml: the tensor has strides beyond what memory can hold";
        }
    }
    return nullptr;
}

[[nodiscard]] inline ggml_tensor_rows rows_of(const ggml_tensor& tensor, const ggml_axes& axes) {
    if (const char* problem = problem_of(tensor)) { return ggml_tensor_rows::invalid(problem); }
    const std::array<int, 3> order{axes.head, axes.row, axes.element};
    for (std::size_t r = 0; r < 3; ++r) {
        if (order[r] < 0 || order[r] > 2 || order[r] == order[(r + 1) % 3]) {
            return ggml_tensor_rows::invalid("ggml: axes must be a permutation of 0, 1, 2");
        }
    }
    if (is_ggml_block(tensor.type) && axes.element != 0) {
        return ggml_tensor_rows::invalid("ggml: blocks lie along axis 0");
    }
    std::array<index_t, 3> extents{}, strides{};
    for (std::size_t r = 0; r < 3; ++r) {
        extents[r] = tensor.ne[order[r]];
        strides[r] = static_cast<index_t>(tensor.nb[order[r]]);
    }
    return {tensor.type, tensor.data, extents, strides};
}

[[nodiscard]] inline ggml_tensor_rows rows_of(const ggml_tensor& tensor, const ggml_heads_in_row& row) {
    if (const char* problem = problem_of(tensor)) { return ggml_tensor_rows::invalid(problem); }
    if (row.heads <= 0 || tensor.ne[0] % row.heads != 0) {
        return ggml_tensor_rows::invalid("ggml: a row must be heads * head_dim");
    }
    if (tensor.ne[2] != 1) {
        return ggml_tensor_rows::invalid("ggml: rows of heads have 2 axes: view one stream");
    }
    const auto rows = ggml_tensor_rows::heads_in_row(tensor.type, tensor.data,
                                                     {row.heads, tensor.ne[1], tensor.ne[0] / row.heads},
                                                     static_cast<index_t>(tensor.nb[1]));
    if (rows.validate().ok() && tensor.nb[0] != ggml_type_size(tensor.type)) {
        return ggml_tensor_rows::invalid("ggml: elements or blocks of a row lie one after the other");
    }
    return rows;
}

// Whether `out` has the type of the rows, and is now their view.
template <class T>
[[nodiscard]] bool take_view(const ggml_tensor_rows& rows, strided<T, 3>& out) {
    static_assert(ggml_type_number<std::remove_const_t<T>> >= 0,
                  "kvtrim: view_ggml views float, f16 or bf16");
    const auto* view = rows.as<strided<std::remove_const_t<T>, 3>>();
    if (view == nullptr) { return false; }
    out = {view->data_handle(), std::array{view->extent(0), view->extent(1), view->extent(2)},
           std::array{view->stride(0), view->stride(1), view->stride(2)}};
    return true;
}
template <class Block>
[[nodiscard]] bool take_view(const ggml_tensor_rows& rows, ggml_rows<Block>& out) {
    const auto* view = rows.as<ggml_rows<std::remove_const_t<Block>>>();
    if (view == nullptr) { return false; }
    out = *view;
    return true;
}
[[nodiscard]] inline bool take_view(const ggml_tensor_rows& rows, ggml_tensor_rows& out) {
    out = rows;
    return true;
}

template <class View>
[[nodiscard]] status view_ggml(const ggml_tensor_rows& rows, View& out) {
    if (const status s = rows.validate(); !s.ok()) { return s; }
    return take_view(rows, out)
               ? status{}
               : status{errc::invalid_parameter, "ggml: the tensor has another type than the view"};
}

} // namespace detail

/// Writes the view; `out` is a ggml_tensor_rows, a strided<T, 3> of float, f16 or bf16, or a ggml_rows of any block.
/// Returns invalid_parameter, with `out` as it was: another type, a fourth axis, axes that are no permutation of 0, 1, 2,
/// rows of blocks that are not whole or not along axis 0, strides that are no whole elements, extents that cannot be, no
/// data, or data that the CPU does not address.
template <class View>
[[nodiscard]] status view_ggml(const ggml_tensor& tensor, View& out, ggml_axes axes = ggml_axes::attended()) {
    return detail::view_ggml(detail::rows_of(tensor, axes), out);
}

/// The same of a tensor [heads * head_dim, tokens]; its row, not a head's, must be whole blocks.
template <class View>
[[nodiscard]] status view_ggml(const ggml_tensor& tensor, View& out, ggml_heads_in_row heads) {
    return detail::view_ggml(detail::rows_of(tensor, heads), out);
}

} // namespace KVTRIM_NAMESPACE
