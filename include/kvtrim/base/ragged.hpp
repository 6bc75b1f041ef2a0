// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A cache whose heads have different lengths: what head-wise eviction leaves behind.
//
//   data    [offsets[kv_heads], head_dim]   the rows of head 0, then of head 1, ...
//   offsets [kv_heads + 1]                  int32, as varlen attention kernels take them (cu_seqlens)
//
// It is a row_source, so that a cache that was cut once can be scored and cut again.

#include <kvtrim/kernels/rows.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>

namespace kvtrim {

template <element T>
class ragged {
  public:
    using element_type = T;

    /// Not valid, and empty: offsets that do not start at 0 or decrease, a head_dim that is negative or more than memory can
    /// hold, rows without data. O(heads).
    ragged(T* data, std::span<const std::int32_t> offsets, index_t head_dim)
        : data_(data), offsets_(offsets), head_dim_(head_dim), validity_(check()) {
        if (!validity_.ok()) {
            static constexpr std::int32_t none[] = {0};
            offsets_ = none;
            head_dim_ = 0;
        }
        for (std::size_t h = 0; h + 1 < offsets_.size(); ++h) {
            longest_ = std::max<index_t>(longest_, offsets_[h + 1] - offsets_[h]);
        }
    }

    [[nodiscard]] status validate() const { return validity_; }
    [[nodiscard]] index_t extent(std::size_t r) const {
        return r == 0 ? static_cast<index_t>(offsets_.size()) - 1 : r == 1 ? longest_ : head_dim_;
    }
    [[nodiscard]] index_t rows(index_t head) const {
        const auto h = static_cast<std::size_t>(head);
        return offsets_[h + 1] - offsets_[h];
    }
    [[nodiscard]] index_t row_bytes() const { return head_dim_ * static_cast<index_t>(sizeof(T)); }
    // All rows, one after the other.
    [[nodiscard]] std::array<strided_bytes, 1> memory() const {
        return std::array{strided_bytes{.first = data_,
                                        .extents = {1, 1, offsets_.back(), 1},
                                        .strides = {0, 0, row_bytes(), 0},
                                        .bytes = row_bytes()}};
    }
    [[nodiscard]] T* row(index_t head, index_t token) const {
        return data_ + (offsets_[static_cast<std::size_t>(head)] + token) * head_dim_;
    }
    [[nodiscard]] std::span<const std::int32_t> offsets() const { return offsets_; }
    [[nodiscard]] T* data_handle() const { return data_; }

    void load_rows(index_t head, index_t first, index_t count, float* tile) const {
        kernels::load_rows(rows_of(head, first, count), 0, 0, count, tile);
    }
    void store_rows(index_t head, index_t first, index_t count, const float* tile) const
        requires(detail::indexes_writable_elements<strided<T, 3>>) {
        kernels::store_rows(rows_of(head, first, count), 0, 0, count, tile);
    }

  private:
    [[nodiscard]] strided<T, 3> rows_of(index_t head, index_t first, index_t count) const {
        return {row(head, first), {1, count, head_dim_}};
    }
    [[nodiscard]] status check() const {
        if (offsets_.empty() || offsets_.front() != 0) {
            return {errc::invalid_table, "ragged: offsets must start with 0"};
        }
        if (!std::is_sorted(offsets_.begin(), offsets_.end())) {
            return {errc::invalid_table, "ragged: offsets must not decrease"};
        }
        if (head_dim_ < 0) { return {errc::invalid_parameter, "ragged: head_dim must not be negative"}; }
        const std::array<index_t, 2> shape{offsets_.back(), head_dim_};
        if (!kvtrim::detail::fits_in_memory(shape, sizeof(T))) {
            return {errc::invalid_parameter, "ragged: more elements than memory can hold"};
        }
        if (data_ == nullptr && offsets_.back() > 0 && head_dim_ > 0) {
            return {errc::invalid_parameter, "ragged: data must not be null"};
        }
        return {};
    }

    T* data_;
    std::span<const std::int32_t> offsets_;
    index_t head_dim_;
    status validity_;
    index_t longest_ = 0;
};

} // namespace kvtrim
