// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Moves rows from scattered places to neighbouring ones, at memory bandwidth.
//
// Above streamed_bytes in all, rows are written past the caches (non-temporal stores): nothing is evicted from the caches,
// and the destination is not read before it is written. Rows are prefetched eight rows ahead. Below streamed_bytes, and for
// rows that are not whole cache lines, memmove is used. Measured: see bench/NOTES.md.

#include <kvtrim/core/status.hpp>

#include <cstdint>
#include <cstring>
#include <span>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace KVTRIM_NAMESPACE::kernels {

/// From this total on, rows are written past the caches.
inline constexpr index_t streamed_bytes = index_t{4} << 20;

/// Moves rows of one size. They are visible to other threads when the mover is destroyed.
class row_mover {
  public:
    /// Of rows of row_bytes, about `total` bytes in all.
    row_mover(index_t row_bytes, index_t total)
        : bytes_(static_cast<std::size_t>(row_bytes)),
          streams_(total >= streamed_bytes && row_bytes % 64 == 0) {}
    row_mover(const row_mover&) = delete;
    row_mover& operator=(const row_mover&) = delete;
    /// Makes the rows visible to other threads.
    ~row_mover() {
#if defined(__SSE2__)
        if (streams_) { _mm_sfence(); }
#endif
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
    static constexpr std::size_t ahead = 8;

    void fetch([[maybe_unused]] const void* row) const {
#if defined(__SSE2__)
        for (std::size_t i = 0; i < bytes_; i += 64) {
            _mm_prefetch(static_cast<const char*>(row) + i, _MM_HINT_T0);
        }
#endif
    }

    void move_row(const void* from, void* to) const {
#if defined(__SSE2__)
        if (streams_ && reinterpret_cast<std::uintptr_t>(to) % 16 == 0) {
            const auto* source = static_cast<const __m128i*>(from);
            auto* target = static_cast<__m128i*>(to);
            for (std::size_t i = 0; i < bytes_; i += 64, source += 4, target += 4) {
                const __m128i a = _mm_loadu_si128(source), b = _mm_loadu_si128(source + 1);
                const __m128i c = _mm_loadu_si128(source + 2), d = _mm_loadu_si128(source + 3);
                _mm_stream_si128(target, a);
                _mm_stream_si128(target + 1, b);
                _mm_stream_si128(target + 2, c);
                _mm_stream_si128(target + 3, d);
            }
            return;
        }
#endif
        std::memmove(to, from, bytes_);
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
