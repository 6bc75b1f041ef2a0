// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A cache with room for more: of each head's rows the first lengths[head] are filled.
//
//   cache    [kv_heads, capacity, head_dim]   any strides
//   lengths  [kv_heads]                       filled rows of each head
//
// It is a strided view whose heads have lengths of their own, so a growing cache is scored, cut by compact_in_place and
// grown again in one buffer. The lengths are read at construction (the longest) and at each use: make a new view after
// they change.

#include <kvtrim/cache/row_source.hpp>

#include <algorithm>
#include <span>

namespace KVTRIM_NAMESPACE {

/// A growing cache as a view of rank 3 whose heads have lengths of their own.
template <element T>
class filled {
  public:
    /// The element in memory.
    using element_type = T;

    /// The view is empty, and validate() says why, for a cache that is not valid, other than one length per head, a length
    /// outside 0 ... capacity. O(heads).
    filled(const strided<T, 3>& cache, std::span<const index_t> lengths)
        : cache_(cache), lengths_(lengths), validity_(check()) {
        if (!validity_.ok()) {
            cache_ = strided<T, 3>::invalid(validity_.what());
            lengths_ = {};
        }
        for (const index_t length : lengths_) { longest_ = std::max(longest_, length); }
    }

    /// Ok, or why the view is empty.
    [[nodiscard]] status validate() const { return validity_; }

    /// 3
    [[nodiscard]] static constexpr std::size_t rank() { return 3; }
    /// {kv_heads, rows of the longest head, head_dim}[r].
    [[nodiscard]] index_t extent(std::size_t r) const { return r == 1 ? longest_ : cache_.extent(r); }
    /// The cache's stride r, in elements.
    [[nodiscard]] index_t stride(std::size_t r) const { return cache_.stride(r); }
    /// Element (0, 0, 0).
    [[nodiscard]] T* data_handle() const { return cache_.data_handle(); }
    /// Filled rows of a head.
    [[nodiscard]] index_t rows(index_t head) const { return lengths_[static_cast<std::size_t>(head)]; }
    /// Whether the rows up to the longest head's, or the lengths, share a byte with other memory.
    [[nodiscard]] bool overlaps(const strided_bytes& other) const {
        return overlap(memory_of(*this).front(), other) || tables_overlap(other);
    }
    /// Whether the lengths do.
    [[nodiscard]] bool tables_overlap(const strided_bytes& other) const {
        return overlap(bytes_of(lengths_), other);
    }
    /// Element (head, token, d).
    [[nodiscard]] T& operator()(index_t head, index_t token, index_t d) const {
        return cache_(head, token, d);
    }

  private:
    [[nodiscard]] status check() const {
        if (const status s = cache_.validate(); !s.ok()) { return s; }
        if (static_cast<index_t>(lengths_.size()) != cache_.extent(0)) {
            return {errc::invalid_parameter, "filled: lengths must have one entry per head",
                    cache_.extent(0)};
        }
        for (const index_t length : lengths_) {
            if (length < 0 || length > cache_.extent(1)) {
                return {errc::invalid_parameter, "filled: a length must be between 0 and the capacity"};
            }
        }
        return {};
    }

    strided<T, 3> cache_;
    std::span<const index_t> lengths_;
    status validity_;
    index_t longest_ = 0;
};

} // namespace KVTRIM_NAMESPACE
