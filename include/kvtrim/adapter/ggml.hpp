// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// ggml tensors as kvtrim views: permuted, transposed or padded, by their nb[]. No copy.
//
//     kvtrim::strided<kvtrim::f16, 3> keys{nullptr, {0, 0, 0}};            // or float, bf16
//     kvtrim::ggml_rows<kvtrim::block_q8_0> keys{nullptr, {0, 0, 0}, {0, 0}};      // or block_q4_0
//     kvtrim::status s = kvtrim::view_ggml(*k, keys);                      // [kv_heads, tokens, head_dim]
//
// ggml counts axes from the innermost, so the roles of ne[0], ne[1], ne[2] are named:
//
//   attended    [head_dim, tokens, heads]   what ggml_flash_attn_ext takes as q, k and v
//   cached      [head_dim, heads, tokens]   K, and V with flash attention, as llama.cpp keeps them
//   transposed  [tokens, head_dim, heads]   V without flash attention, as ggml_mul_mat takes it
//
// One stream: ne[3] is 1; of more, pass a ggml_view_3d. W_O of a checkpoint, [q_heads * head_dim, hidden], is
// view_ggml of its ggml_reshape_3d [head_dim, q_heads, hidden] with axes {1, 0, 2}.
// The tensor must outlive the view, and have its data in memory of the CPU.

#include <kvtrim/base/tensor_view.hpp>
#include <kvtrim/source/ggml_blocks.hpp>

#include <ggml-backend.h>
#include <ggml.h>

#include <type_traits>

namespace kvtrim {

// Which axis of the tensor is axis 0, 1 and 2 of the view: heads, rows, elements of a row.
struct ggml_axes {
    int head, row, element;

    [[nodiscard]] static constexpr ggml_axes attended() { return {2, 1, 0}; }
    [[nodiscard]] static constexpr ggml_axes cached() { return {1, 2, 0}; }
    [[nodiscard]] static constexpr ggml_axes transposed() { return {2, 0, 1}; }
};

namespace detail {

template <class T>
[[nodiscard]] constexpr ggml_type ggml_type_for() {
    using value = std::remove_const_t<T>;
    static_assert(std::is_same_v<value, float> || std::is_same_v<value, f16> || std::is_same_v<value, bf16>,
                  "kvtrim: view_ggml views float, f16 or bf16");
    return std::is_same_v<value, float> ? GGML_TYPE_F32
           : std::is_same_v<value, f16> ? GGML_TYPE_F16
                                        : GGML_TYPE_BF16;
}

[[nodiscard]] inline status valid_ggml(const ggml_tensor& tensor, ggml_type type) {
    if (tensor.type != type) {
        return {errc::invalid_parameter, "ggml: the tensor has another type than the view"};
    }
    if (tensor.ne[3] != 1) { return {errc::invalid_parameter, "ggml: the tensor must have 3 axes"}; }
    if (tensor.data == nullptr) { return {errc::invalid_parameter, "ggml: the tensor has no data"}; }
    if (tensor.buffer != nullptr && !ggml_backend_buffer_is_host(tensor.buffer)) {
        return {errc::invalid_parameter, "ggml: the tensor must be in memory of the CPU"};
    }
    return {};
}

} // namespace detail

// Returns invalid_parameter, with `out` as it was: another type, a fourth axis, strides that are no whole elements, no
// data, or data that the CPU does not address. Requires axes that are a permutation of 0, 1, 2.
template <element T>
[[nodiscard]] status view_ggml(const ggml_tensor& tensor, strided<T, 3>& out,
                               ggml_axes axes = ggml_axes::attended()) {
    KVTRIM_EXPECTS(((1 << axes.head) | (1 << axes.row) | (1 << axes.element)) == 7,
                   "view_ggml: axes must be a permutation of 0, 1, 2");
    if (const status s = detail::valid_ggml(tensor, detail::ggml_type_for<T>()); !s.ok()) { return s; }
    typename strided<T, 3>::indices extents{}, strides{};
    const int order[] = {axes.head, axes.row, axes.element};
    for (std::size_t r = 0; r < 3; ++r) {
        const auto bytes = static_cast<index_t>(tensor.nb[order[r]]);
        if (bytes % static_cast<index_t>(sizeof(T)) != 0) {
            return {errc::invalid_parameter, "ggml: strides must be whole elements"};
        }
        extents[r] = tensor.ne[order[r]];
        strides[r] = bytes / static_cast<index_t>(sizeof(T));
    }
    out = {static_cast<T*>(tensor.data), extents, strides};
    return {};
}

// The same for blocks; elements of a row are axis 0. Returns invalid_parameter also for blocks that are not contiguous in a
// row, or strides that are odd.
template <class Block>
[[nodiscard]] status view_ggml(const ggml_tensor& tensor, ggml_rows<Block>& out,
                               ggml_axes axes = ggml_axes::attended()) {
    using block = std::remove_const_t<Block>;
    KVTRIM_EXPECTS(axes.element == 0 && axes.head + axes.row == 3 && axes.head * axes.row == 2,
                   "view_ggml: blocks lie along axis 0");
    constexpr auto type = std::is_same_v<block, block_q8_0> ? GGML_TYPE_Q8_0 : GGML_TYPE_Q4_0;
    if (const status s = detail::valid_ggml(tensor, type); !s.ok()) { return s; }
    const auto head = static_cast<index_t>(tensor.nb[axes.head]);
    const auto row = static_cast<index_t>(tensor.nb[axes.row]);
    if (tensor.nb[0] != sizeof(block) || tensor.ne[0] % block::elements != 0 || head % 2 != 0 ||
        row % 2 != 0) {
        return {errc::invalid_parameter, "ggml: rows must be whole blocks, one after the other"};
    }
    out = {static_cast<Block*>(tensor.data),
           {tensor.ne[axes.head], tensor.ne[axes.row], tensor.ne[0]},
           {head, row}};
    return {};
}

} // namespace kvtrim
