// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// DLPack tensors as kvtrim views: torch, NumPy, JAX and others, without linking to them. No copy, no ownership.
//
//     kvtrim::strided<kvtrim::bf16, 3> keys = kvtrim::no_tensor<kvtrim::bf16>;
//     kvtrim::status s = kvtrim::view_dlpack(managed->dl_tensor, keys);    // [kv_heads, tokens, head_dim]
//
// A batch [batch, kv_heads, tokens, head_dim] is a view per sequence: view_dlpack(tensor, keys, sequence). For another order
// of the axes permute the tensor, which copies nothing either (torch: permute, transpose). Strides may be null (row-major).
//
// Read-only tensors are viewed as strided<const T, 3>; DLPack has no flag for them before its version 1.0.
// The tensor must outlive the view. Needs dlpack/dlpack.h (Debian: libdlpack-dev).

#include <kvtrim/base/tensor_view.hpp>

#include <dlpack/dlpack.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>

namespace kvtrim {

// A view of nothing, to be overwritten.
template <element T>
inline constexpr strided<T, 3> no_tensor{nullptr, {0, 0, 0}};

namespace detail {

template <class T>
[[nodiscard]] constexpr DLDataType dlpack_type() {
    using value = std::remove_const_t<T>;
    static_assert(std::is_same_v<value, float> || std::is_same_v<value, f16> || std::is_same_v<value, bf16>,
                  "kvtrim: view_dlpack views float, f16 or bf16");
    const auto code = std::is_same_v<value, bf16> ? kDLBfloat : kDLFloat;
    return {static_cast<std::uint8_t>(code), static_cast<std::uint8_t>(8 * sizeof(value)), 1};
}

} // namespace detail

/// Writes the view [extent, extent, extent] of a tensor of rank 3, or of item `batch` of one of rank 4.
/// Returns invalid_parameter, with `out` as it was: memory that the CPU does not address, another element, lanes, rank or
/// item, no shape, extents that are negative or more than memory can hold, elements without data or off their alignment.
template <element T>
[[nodiscard]] status view_dlpack(const DLTensor& tensor, strided<T, 3>& out, index_t batch = 0) {
    const auto device = tensor.device.device_type;
    if (device != kDLCPU && device != kDLCUDAHost && device != kDLROCMHost) {
        return {errc::invalid_parameter, "dlpack: the tensor must be in memory of the CPU"};
    }
    constexpr DLDataType type = detail::dlpack_type<T>();
    if (tensor.dtype.code != type.code || tensor.dtype.bits != type.bits || tensor.dtype.lanes != 1) {
        return {errc::invalid_parameter, "dlpack: the tensor has other elements than the view"};
    }
    if (tensor.ndim != 3 && tensor.ndim != 4) {
        return {errc::invalid_parameter, "dlpack: the tensor must have 3 axes, or 4 with a batch"};
    }
    if (tensor.shape == nullptr) { return {errc::invalid_parameter, "dlpack: the tensor has no shape"}; }
    std::array<index_t, 4> shape{};
    std::copy_n(tensor.shape, tensor.ndim, shape.begin());
    if (std::any_of(shape.begin(), shape.end(), [](index_t extent) { return extent < 0; })) {
        return {errc::invalid_parameter, "dlpack: extents must not be negative"};
    }
    if (!detail::fits_in_memory(shape, sizeof(T))) {
        return {errc::invalid_parameter, "dlpack: extents of more elements than memory can hold"};
    }
    typename strided<T, 3>::indices extents{}, strides{};
    index_t offset = 0;
    bool empty = false;
    index_t row_major = 1;
    for (int axis = tensor.ndim; axis-- > 0;) {
        const index_t extent = shape[static_cast<std::size_t>(axis)];
        const index_t stride = tensor.strides != nullptr ? tensor.strides[axis] : row_major;
        row_major *= extent;
        const int r = axis - (tensor.ndim - 3);
        if (r < 0) {
            if (batch < 0 || batch >= extent) {
                return {errc::invalid_parameter, "dlpack: the tensor has no such item", extent};
            }
            offset = batch * stride;
            continue;
        }
        extents[static_cast<std::size_t>(r)] = extent;
        strides[static_cast<std::size_t>(r)] = stride;
        empty = empty || extent == 0;
    }
    if (tensor.ndim == 3 && batch != 0) {
        return {errc::invalid_parameter, "dlpack: the tensor has no such item", 1};
    }
    if (empty) {
        out = {nullptr, extents, strides};
        return {};
    }
    const auto address = reinterpret_cast<std::uintptr_t>(tensor.data) + tensor.byte_offset;
    if (tensor.data == nullptr || address % alignof(T) != 0) {
        return {errc::invalid_parameter, "dlpack: the data is null or off the alignment of its elements"};
    }
    out = {reinterpret_cast<T*>(address) + offset, extents, strides};
    return {};
}

} // namespace kvtrim
