// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Hints that memory will be read soon: nothing changes but time, and no address faults.

#include <kvtrim/core/region.hpp>

namespace KVTRIM_NAMESPACE::simd {

/// Brings the cache line of an address into the first level cache.
KVTRIM_INLINE void prefetch(const void* address) {
    __builtin_prefetch(address, 0, 3);
}
/// Brings the cache line of an address into the second level cache.
KVTRIM_INLINE void prefetch_to_l2(const void* address) {
    __builtin_prefetch(address, 0, 2);
}

} // namespace KVTRIM_NAMESPACE::simd
