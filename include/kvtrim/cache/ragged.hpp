// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A cache whose heads have different lengths: what head-wise eviction leaves behind.
//
//   data    [offsets[kv_heads], head_dim]   the rows of head 0, then of head 1, ...
//   offsets [kv_heads + 1]                  int32, as varlen attention kernels take them (cu_seqlens)
//
// It is a row_source, so that a cache that was cut once can be scored and cut again.

#include <kvtrim/cache/read_rows.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>

namespace KVTRIM_NAMESPACE {

/// How a row_source (cache/row_source.hpp) reads and writes rows of which those of a head follow each other without gaps: the base
/// of Rows, which has row(head, token), the first element of a row, and extent(2), its length.
template <class Rows, element T>
class consecutive_rows {
  public:
    /// The element in memory.
    using element_type = T;

    /// Bytes of a row.
    [[nodiscard]] index_t row_bytes() const { return length() * static_cast<index_t>(sizeof(T)); }
    /// Rows [first, ...) of a head where they lie.
    [[nodiscard]] element_rows<std::remove_const_t<T>> rows_in_place(index_t head, index_t first,
                                                                     index_t) const {
        return {self().row(head, first), length()};
    }
    /// Copies rows [first, first + count) of a head to tile [count, row length], as floats or as elements T.
    template <class Out>
    void load_rows(index_t head, index_t first, index_t count, Out* tile) const {
        copy_rows(rows_in_place(head, first, count), count, length(), tile);
    }
    /// Writes tile [count, row length] to rows [first, first + count) of a head, rounded to T.
    void store_rows(index_t head, index_t first, index_t count, const float* tile) const
        requires(detail::indexes_writable_elements<strided<T, 3>>) {
        kernels::narrow(tile, count * length(), self().row(head, first));
    }

  private:
    [[nodiscard]] const Rows& self() const { return static_cast<const Rows&>(*this); }
    [[nodiscard]] index_t length() const { return self().extent(2); }
};

/// A row_source whose heads follow each other, each with a length of its own.
template <element T>
class ragged : public consecutive_rows<ragged<T>, T> {
  public:
    /// The view is empty, and validate() says why, for offsets that do not start at 0 or decrease, a head_dim that is negative or
    /// more than memory can hold, rows without data. O(heads).
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

    /// Ok, or why the view is empty.
    [[nodiscard]] status validate() const { return validity_; }
    /// {kv_heads, rows of the longest head, head_dim}[r].
    [[nodiscard]] index_t extent(std::size_t r) const {
        return r == 0 ? static_cast<index_t>(offsets_.size()) - 1 : r == 1 ? longest_ : head_dim_;
    }
    /// Rows of a head.
    [[nodiscard]] index_t rows(index_t head) const {
        const auto h = static_cast<std::size_t>(head);
        return offsets_[h + 1] - offsets_[h];
    }
    /// The bytes of all rows, one after the other.
    [[nodiscard]] std::array<strided_bytes, 1> memory() const {
        return std::array{strided_bytes{.first = data_,
                                        .extents = {1, 1, offsets_.back(), 1},
                                        .strides = {0, 0, this->row_bytes(), 0},
                                        .bytes = this->row_bytes()}};
    }
    /// Whether the rows or their offsets share a byte with other memory.
    [[nodiscard]] bool overlaps(const strided_bytes& other) const {
        return overlap(memory().front(), other) || tables_overlap(other);
    }
    /// Whether the offsets do.
    [[nodiscard]] bool tables_overlap(const strided_bytes& other) const {
        return overlap(bytes_of(offsets_), other);
    }
    /// The first element of a row.
    [[nodiscard]] T* row(index_t head, index_t token) const {
        return data_ + (offsets_[static_cast<std::size_t>(head)] + token) * head_dim_;
    }
    /// [kv_heads + 1] where each head begins, in rows.
    [[nodiscard]] std::span<const std::int32_t> offsets() const { return offsets_; }
    /// The first row of head 0.
    [[nodiscard]] T* data_handle() const { return data_; }

  private:
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

/// Whether a view is a ragged one.
template <class V>
inline constexpr bool is_ragged = false;
template <class T>
inline constexpr bool is_ragged<ragged<T>> = true;

} // namespace KVTRIM_NAMESPACE
