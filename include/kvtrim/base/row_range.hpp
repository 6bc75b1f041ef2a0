// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Some neighbouring rows of every head of a view: the newest queries of a prompt, the first tokens of a cache.
//
//   row_range(view, first, count)   [heads, count, row length], rows [first, first + count) of each head

#include <kvtrim/base/row_source.hpp>

namespace kvtrim {

template <cache_view V>
class row_range {
  public:
    // Requires rows that every head has.
    row_range(const V& view, index_t first, index_t count) : view_(view), first_(first), count_(count) {
        KVTRIM_EXPECTS(first >= 0 && count >= 0, "row_range: first and count must not be negative");
        for (index_t h = 0; h < kvtrim::extent(view, 0); ++h) {
            KVTRIM_EXPECTS(count <= row_count(view, h) - first, "row_range: a head has fewer rows");
        }
    }

    [[nodiscard]] index_t extent(std::size_t r) const {
        return r == 1 ? count_ : static_cast<index_t>(view_.extent(r));
    }
    void load_rows(index_t head, index_t first, index_t count, float* tile) const {
        kvtrim::load_rows(view_, head, first_ + first, count, tile);
    }

  private:
    V view_;
    index_t first_;
    index_t count_;
};

} // namespace kvtrim
