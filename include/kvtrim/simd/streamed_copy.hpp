// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Copies that are written past the caches (non-temporal stores): nothing is evicted from the caches, and the destination is
// not read before it is written. On x86-64 by SSE2. Elsewhere, and to addresses that are no multiple of 16, they are plain
// copies: the language has no such store.

#include <kvtrim/core/region.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace KVTRIM_NAMESPACE::simd {

/// Copies `bytes`, a multiple of 64. The two may overlap where to <= from. Other threads may read the copy after
/// finish_streamed_copies().
KVTRIM_INLINE void streamed_copy(const void* from, void* to, std::size_t bytes) {
#if defined(__SSE2__)
    if (reinterpret_cast<std::uintptr_t>(to) % 16 == 0) {
        const auto* source = static_cast<const __m128i*>(from);
        auto* target = static_cast<__m128i*>(to);
        for (std::size_t i = 0; i < bytes; i += 64, source += 4, target += 4) {
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
    std::memmove(to, from, bytes);
}

/// Orders the streamed copies of this thread before what it stores next, as plain stores are.
KVTRIM_INLINE void finish_streamed_copies() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

} // namespace KVTRIM_NAMESPACE::simd
