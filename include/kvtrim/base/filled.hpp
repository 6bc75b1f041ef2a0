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

#include <kvtrim/base/tensor_view.hpp>

#include <algorithm>
#include <span>

namespace kvtrim {

template <element T>
class filled {
  public:
    using element_type = T;

    // Requires a length between 0 and capacity for each head.
    filled(const strided<T, 3>& cache, std::span<const index_t> lengths) : cache_(cache), lengths_(lengths) {
        KVTRIM_EXPECTS(static_cast<index_t>(lengths.size()) == cache.extent(0),
                       "filled: lengths must have one entry per head");
        for (const index_t length : lengths) {
            KVTRIM_EXPECTS(0 <= length && length <= cache.extent(1),
                           "filled: a length must be between 0 and the capacity");
            longest_ = std::max(longest_, length);
        }
    }

    [[nodiscard]] static constexpr std::size_t rank() { return 3; }
    [[nodiscard]] index_t extent(std::size_t r) const { return r == 1 ? longest_ : cache_.extent(r); }
    [[nodiscard]] index_t stride(std::size_t r) const { return cache_.stride(r); }
    [[nodiscard]] T* data_handle() const { return cache_.data_handle(); }
    [[nodiscard]] index_t rows(index_t head) const { return lengths_[static_cast<std::size_t>(head)]; }
    [[nodiscard]] T& operator()(index_t head, index_t token, index_t d) const {
        return cache_(head, token, d);
    }

  private:
    strided<T, 3> cache_;
    std::span<const index_t> lengths_;
    index_t longest_ = 0;
};

} // namespace kvtrim
