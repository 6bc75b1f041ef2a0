// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Moves rows from scattered places to neighbouring ones, at memory bandwidth.
//
// From streamed_bytes in all on, rows of whole cache lines are prefetched eight rows ahead, and written past the caches where
// the processor can and the destination is aligned (simd/streamed_copy.hpp). All others are moved by memmove.
// Measured: see bench/NOTES.md.

#include <kvtrim/core/status.hpp>
#include <kvtrim/simd/prefetch.hpp>
#include <kvtrim/simd/streamed_copy.hpp>

#include <cstring>

namespace KVTRIM_NAMESPACE::kernels {

/// From this total on, rows are prefetched and written past the caches.
inline constexpr index_t streamed_bytes = index_t{4} << 20;

/// Moves rows of one size. They are visible to other threads when the mover is destroyed.
class row_mover {
  public:
    /// Of rows of row_bytes, about `total` bytes in all.
    row_mover(index_t row_bytes, index_t total)
        : bytes_(static_cast<std::size_t>(row_bytes)),
          streams_(total >= streamed_bytes && bytes_ % line_bytes == 0) {}
    row_mover(const row_mover&) = delete;
    row_mover& operator=(const row_mover&) = delete;
    /// Makes the rows visible to other threads.
    ~row_mover() {
        if (streams_) { simd::finish_streamed_copies(); }
    }

    /// Calls place(i) for the source and the destination {from, to} of each of `count` rows, in order. Rows may overlap as
    /// long as none is written before all of it, and of the later ones, was read: to <= from, ascending.
    template <class Place>
    void move(std::size_t count, Place&& place) const {
        for (std::size_t i = 0; i < count; ++i) {
            if (streams_ && i + ahead < count) { fetch(place(i + ahead).from); }
            const auto [from, to] = place(i);
            if (from != to) { move_row(from, to); }
        }
    }

  private:
    static constexpr std::size_t ahead = 8, line_bytes = 64;

    void fetch(const void* row) const {
        for (std::size_t i = 0; i < bytes_; i += line_bytes) {
            simd::prefetch(static_cast<const char*>(row) + i);
        }
    }

    void move_row(const void* from, void* to) const {
        if (streams_) {
            simd::streamed_copy(from, to, bytes_);
        } else {
            std::memmove(to, from, bytes_);
        }
    }

    std::size_t bytes_;
    bool streams_;
};

/// The source and the destination of a row.
struct row_move {
    const void* from; ///< source
    void* to;         ///< destination
};

} // namespace KVTRIM_NAMESPACE::kernels
