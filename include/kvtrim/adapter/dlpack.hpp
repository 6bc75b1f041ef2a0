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

#include <kvtrim/cache/strided_bytes.hpp>
#include <kvtrim/cache/tensor_view.hpp>

#include <dlpack/dlpack.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>

namespace KVTRIM_NAMESPACE {

/// A view of nothing, to be overwritten.
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
    std::array<index_t, 4> shape{1, 1, 1, 1}, strides{};
    const auto first_axis = static_cast<std::size_t>(4 - tensor.ndim);
    std::copy_n(tensor.shape, tensor.ndim, shape.begin() + first_axis);
    if (std::any_of(shape.begin(), shape.end(), [](index_t extent) { return extent < 0; })) {
        return {errc::invalid_parameter, "dlpack: extents must not be negative"};
    }
    if (batch < 0 || batch >= shape[0]) {
        return {errc::invalid_parameter, "dlpack: the tensor has no such item", shape[0]};
    }
    if (!detail::fits_in_memory(shape, sizeof(T))) {
        return {errc::invalid_parameter, "dlpack: extents of more elements than memory can hold"};
    }
    index_t row_major = 1; // fits, for the product of all extents does
    for (std::size_t r = 4; r-- > first_axis;) {
        strides[r] = tensor.strides != nullptr ? tensor.strides[r - first_axis] : row_major;
        row_major *= shape[r];
    }
    const std::array<index_t, 3> extents{shape[1], shape[2], shape[3]},
        steps{strides[1], strides[2], strides[3]};
    if (row_major == 0) { // nothing to be read
        out = {nullptr, extents, steps};
        return {};
    }
    const auto address = reinterpret_cast<std::uintptr_t>(tensor.data) + tensor.byte_offset;
    if (tensor.data == nullptr || address % alignof(T) != 0) {
        return {errc::invalid_parameter, "dlpack: the data is null or off the alignment of its elements"};
    }
    T* const first = reinterpret_cast<T*>(address);
    strided_bytes bytes{.first = first, .extents = shape, .bytes = sizeof(T)};
    for (std::size_t r = 0; r < 4; ++r) { bytes.strides[r] = to_bytes(strides[r], sizeof(T)); }
    if (address < reinterpret_cast<std::uintptr_t>(tensor.data) || !bytes.validate().ok()) {
        return {errc::invalid_parameter,
                "dlpack: an offset or strides that lead beyond what memory can hold"};
    }
    out = {first + batch * strides[0], extents, steps};
    return {};
}

} // namespace KVTRIM_NAMESPACE
